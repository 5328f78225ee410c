"""headrace.yaml as typed settings."""

from headrace.config.connections import DeltaConnection, PostgresConnection
from headrace.config.loading import load
from headrace.config.selection import SelectedTable, select_tables
from headrace.config.settings import Capture, Pipeline, Settings, TableEntry, json_schema

__all__ = [
    "Capture",
    "DeltaConnection",
    "Pipeline",
    "PostgresConnection",
    "SelectedTable",
    "Settings",
    "TableEntry",
    "json_schema",
    "load",
    "select_tables",
]
