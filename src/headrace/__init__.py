"""Headrace: replication between Postgres and the lakehouse."""

from importlib.metadata import version

__version__ = version("headrace")
