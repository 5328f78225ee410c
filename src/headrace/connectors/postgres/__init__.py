"""Postgres: the replication stream, snapshots, types and preflight checks."""
