"""The logical replication protocol: bytes in, events and columns out; no I/O."""
