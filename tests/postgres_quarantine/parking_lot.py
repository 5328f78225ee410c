"""A destination table whose batches are landed with a quarantine beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psycopg
import pyarrow as pa
from psycopg.conninfo import conninfo_to_dict

from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres import quarantine, records, replay
from headrace.connectors.postgres.bisection import LandRows, Part
from headrace.connectors.postgres.merge import Landing, delete_staging, upsert_staging
from headrace.connectors.postgres.parked import ParkedRow
from headrace.connectors.postgres.parts import parts
from headrace.connectors.postgres.quarantine import Quarantine
from headrace.connectors.postgres.replay import Replayed
from headrace.connectors.postgres.staging import at_once
from headrace.connectors.postgres.target_table import read_target
from headrace.connectors.postgres.writing import write_plan
from headrace.model import (
    Checkpoint,
    Column,
    Delivery,
    Lsn,
    NetChanges,
    Rejected,
    TableId,
    TableSchema,
)
from headrace.testing.database import Database

LOG = "6f7f6a0e-0000-4000-8000-000000000000"
Row = Mapping[str, Any]


def settings_of(database: Database) -> PostgresConnection:
    parameters = conninfo_to_dict(database.dsn)
    return PostgresConnection(
        type="postgres",
        host=str(parameters["host"]),
        port=int(parameters["port"] or 0),
        database=str(parameters["dbname"]),
        user=str(parameters["user"]),
        password=str(parameters["password"]),
        sslmode="disable",
    )


@dataclass(frozen=True)
class Kept:
    """A table of `database`, in schema public; every call is one transaction."""

    database: Database
    schema: TableSchema
    max_rows: int = 1000

    @classmethod
    def make(
        cls,
        database: Database,
        ddl: str,
        columns: Mapping[str, pa.DataType],
        *,
        key: Sequence[str] = ("id",),
        table: str = "t",
        max_rows: int = 1000,
    ) -> Kept:
        database.execute(ddl)
        made = tuple(Column(name, kind, "") for name, kind in columns.items())
        kept = cls(
            database,
            TableSchema(TableId("public", table), 1, made, tuple(key)),
            max_rows,
        )
        with database.connect() as connection, connection.transaction():
            records.ensure(connection.cursor())
        return kept

    @property
    def place(self) -> Quarantine:
        return Quarantine(self.schema.table, "lake_to_shop", self.schema.key, self.max_rows)

    def table(self, rows: Sequence[Row], columns: Sequence[str] | None = None) -> pa.Table:
        arrow = self.schema.arrow()
        kept = arrow if columns is None else pa.schema([arrow.field(name) for name in columns])
        return pa.Table.from_pylist([dict(row) for row in rows], kept)

    def changes(
        self,
        upserts: Sequence[Row] | pa.Table = (),
        deletes: Sequence[Row] = (),
        rejected: Sequence[Rejected] = (),
        *,
        truncate: bool = False,
    ) -> NetChanges:
        rows = upserts if isinstance(upserts, pa.Table) else self.table(upserts)
        gone = self.table(deletes, self.schema.key or None)
        return NetChanges(self.schema, rows, gone, rejected=tuple(rejected), truncate=truncate)

    def apply(self, *args: Any, version: int = 7, **options: Any) -> int:
        """Apply changes as a destination does; how many rows were parked."""
        changes = self.changes(*args, **options)
        with closing(self.database.connect()) as connection:
            made = Maker(connection, self)
            with connection.transaction():
                return made.apply(changes, version)

    def retry(self, ids: Sequence[int] | None = None) -> Replayed:
        with closing(self.database.connect()) as connection:
            made = Maker(connection, self)
            with connection.transaction():
                cursor = connection.cursor()
                return replay.retry(cursor, self.place, self.schema, made.parts, ids)

    def retry_waiting(self) -> Replayed:
        with closing(self.database.connect()) as connection:
            made = Maker(connection, self)
            with connection.transaction():
                cursor = connection.cursor()
                return replay.retry_waiting(cursor, self.place, self.schema, made.parts)

    def with_columns(self, columns: Mapping[str, pa.DataType]) -> Kept:
        made = tuple(Column(name, kind, "") for name, kind in columns.items())
        return replace(self, schema=replace(self.schema, columns=made))

    def rows(self) -> list[tuple[Any, ...]]:
        """What a reader finds, by key."""
        names = ", ".join(f'"{name}"' for name in self.schema.names)
        return self.database.execute(f"select {names} from {self.schema.table} order by 1, 2")

    def parked(self) -> list[ParkedRow]:
        with self.database.connect() as connection:
            return quarantine.find(connection.cursor(), table=self.schema.table)


class Maker:
    """Lands rows of one table through one connection, counting how often it is asked to."""

    def __init__(self, connection: psycopg.Connection[Any], kept: Kept) -> None:
        self.connection = connection
        self.cursor = connection.cursor()
        self.kept = kept
        target = read_target(self.cursor, kept.schema.table)
        assert target is not None
        self.plan = write_plan(kept.schema, target, Delivery())
        for staging in {delete_staging(self.plan), upsert_staging(self.plan)}:
            connection.execute(staging.ddl())
        self.landings = 0

    def parts(self, upserts: pa.Table, deletes: pa.Table) -> list[Part]:
        landing = Landing(self.cursor, self.plan, at_once)
        made = parts(self.cursor, self.plan, landing, upserts, deletes)
        return [replace(part, land=partial(self._land, part.land)) for part in made]

    def apply(self, changes: NetChanges, version: int = 7) -> int:
        place = self.kept.place
        left = quarantine.supersede(self.cursor, place, changes)
        if left.truncate:
            Landing(self.cursor, self.plan, at_once).truncate()
        made = self.parts(left.upserts, left.deletes)
        at = Checkpoint(LOG, version, Lsn(version))
        return quarantine.land_or_park(self.cursor, place, made, left.rejected, at)

    def _land(self, land: LandRows, rows: pa.Table) -> None:
        self.landings += 1
        land(rows)
