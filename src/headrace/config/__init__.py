"""headrace.yaml as typed settings."""

from headrace.config.connections import Connection, DeltaConnection, PostgresConnection
from headrace.config.entries import Mode, TableEntry
from headrace.config.load import DEFAULT_FILE, load, parse
from headrace.config.routes import Route
from headrace.config.selection import SelectedTable, named_tables, select_tables, targets
from headrace.config.settings import Capture, Pipeline, Settings, Sync, Throttle, json_schema

__all__ = [
    "DEFAULT_FILE",
    "Capture",
    "Connection",
    "DeltaConnection",
    "Mode",
    "Pipeline",
    "PostgresConnection",
    "Route",
    "SelectedTable",
    "Settings",
    "Sync",
    "TableEntry",
    "Throttle",
    "json_schema",
    "load",
    "named_tables",
    "parse",
    "select_tables",
    "targets",
]
