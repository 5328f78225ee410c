"""Delta Lake: tables written by merge-on-read commits of our own."""
