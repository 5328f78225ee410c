"""headrace.yaml as typed settings."""
