"""Moves changes: capture into the log, materialization out of it; sees Protocols only."""
