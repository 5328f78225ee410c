"""A destination of one test: a database, and tables of one pipeline in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
from psycopg.conninfo import conninfo_to_dict

from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.staging import Pace, at_once
from headrace.connectors.postgres.synced_table import PostgresTable
from headrace.model import (
    Checkpoint,
    Column,
    Delivery,
    Fill,
    Lsn,
    NetChanges,
    TableId,
    TableSchema,
)
from headrace.testing.database import Database

LOG = "0b0f6f8e-9d3a-4b43-a1b6-111111111111"
PIPELINE = "lake_to_shop"
NAME = TableId("shop", "customers")

Row = Mapping[str, Any]


def at(commit: int, log_id: str = LOG) -> Checkpoint:
    return Checkpoint(log_id, commit, Lsn(commit))


def schema_of(
    columns: Mapping[str, pa.DataType] | Sequence[Column],
    key: Sequence[str] = ("id",),
    name: TableId = NAME,
) -> TableSchema:
    if isinstance(columns, Mapping):
        columns = [Column(name, kind, str(kind)) for name, kind in columns.items()]
    return TableSchema(name, 0, tuple(columns), tuple(key))


def net(
    schema: TableSchema,
    upserts: Sequence[Row] = (),
    deletes: Sequence[Row] = (),
    *,
    fills: Sequence[Fill] = (),
    truncate: bool = False,
    commit_ts: datetime | None = None,
) -> NetChanges:
    """Rows by column names; a delete names the key, or the whole row where there is none."""
    arrow = schema.arrow()
    gone = pa.schema([arrow.field(n) for n in schema.key]) if schema.key else arrow
    return NetChanges(
        schema,
        pa.Table.from_pylist([dict(row) for row in upserts], arrow),
        pa.Table.from_pylist([dict(row) for row in deletes], gone),
        tuple(fills),
        truncate,
        commit_ts=commit_ts,
    )


@dataclass
class Place:
    """Every table has a connection of its own, closed at the end."""

    database: Database
    pace: Pace = at_once
    opened: list[PostgresTable] = field(default_factory=list)
    parts: Mapping[str, Any] = field(default_factory=dict)  # of the connection, beside its own

    @property
    def destination(self) -> PostgresDestination:
        return PostgresDestination(settings(self.database, **self.parts), pace=self.pace)

    def table(
        self, name: TableId = NAME, pipeline: str = PIPELINE, delivery: Delivery | None = None
    ) -> PostgresTable:
        table = self.destination.table(name, pipeline, delivery)
        self.opened.append(table)
        return table

    def prepared(self, schema: TableSchema, delivery: Delivery | None = None) -> PostgresTable:
        table = self.table(schema.table, delivery=delivery)
        table.prepare(schema)
        return table

    def close(self) -> None:
        for table in self.opened:
            table.close()

    def rows(self, query: str = "select * from shop.customers order by 1") -> list[Any]:
        return self.database.execute(query)


def settings(database: Database, **changes: Any) -> PostgresConnection:
    parts = conninfo_to_dict(database.dsn)
    given = {name: parts[name] for name in ("host", "port", "user", "password") if name in parts}
    whole = {"type": "postgres", **given, "database": parts["dbname"], **changes}
    return PostgresConnection.model_validate(whole)


@contextmanager
def place_in(database: Database) -> Iterator[Place]:
    place = Place(database)
    try:
        yield place
    finally:
        place.close()
