"""The change log: the durable, ordered, columnar record of a capture."""
