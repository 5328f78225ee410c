"""One folder per system that Headrace speaks to; connectors never import each other."""
