"""Rebuilding a table of a test with its own or other rows, and everything that a database is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import sql

from headrace.connectors.postgres import building, generations, records
from headrace.connectors.postgres.building import Build, Built
from headrace.connectors.postgres.identifiers import relation
from headrace.connectors.postgres.target_session import Connection, Cursor
from headrace.model import TableId
from headrace.testing.database import Database
from headrace.testing.postgres import wheel_bin_dir

PIPELINE = "lake_to_shop"
TABLE = TableId("shop", "orders")

Fill = Callable[[Connection, Build], None]

COLUMNS = """
select attname from pg_attribute
 where attrelid = %s::regclass and attnum > 0 and not attisdropped and attgenerated = ''
 order by attnum
"""

NOTE = """
insert into headrace.checkpoints (table_schema, table_name, pipeline, log_id, commit, lsn)
values (%s, %s, %s, 'log', %s, %s)
on conflict (table_schema, table_name)
do update set commit = excluded.commit, lsn = excluded.lsn, held = null
"""


@dataclass(frozen=True)
class Rebuilding:
    """A table and the connections it is rebuilt through."""

    database: Database
    table: TableId = TABLE
    key: tuple[str, ...] = ("id",)

    def columns(self, connection: Connection) -> list[str]:
        name = sql.Identifier(self.table.schema, self.table.name).as_string(connection)
        return [row[0] for row in connection.execute(COLUMNS, [name])]

    def build(self, fill: Fill | None = None) -> Built:
        """A new generation with the live table's own rows, in their order, unless `fill` is."""
        with self.database.connect() as connection:
            build = building.begin(connection, self.table, PIPELINE, self.key)
            if fill is None:
                self.copy(connection, build)
            else:
                fill(connection, build)
        return building.finish(self.database.connect, build, PIPELINE, 2)

    def copy(self, connection: Connection, build: Build, where: str = "true") -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, self.columns(connection)))
        connection.execute(
            sql.SQL(
                "insert into {} ({}) overriding system value select {} from {} where {} order by id"
            ).format(
                relation(build.table),
                columns,
                columns,
                relation(self.table),
                sql.SQL(where),
            )
        )

    def swap(self, built: Built, version: int = 1) -> None:
        with self.database.connect() as connection:
            generations.swap(connection, built, self.commit(version))

    def rebuild(self, fill: Fill | None = None, version: int = 1) -> Built:
        built = self.build(fill)
        self.swap(built, version)
        return built

    def undo(self) -> tuple[str, ...]:
        with self.database.connect() as connection:
            return generations.undo(connection, self.table, "undone by a test")

    def swappable(self, columns: Sequence[str] | None = None) -> str | None:
        with self.database.connect() as connection:
            given = self.columns(connection) if columns is None else columns
            return generations.swappable(connection, self.table, given)

    def commit(self, version: int) -> Callable[[Cursor], None]:
        values = [self.table.schema, self.table.name, PIPELINE, version, version]
        return lambda cursor: cursor.execute(NOTE, values)  # type: ignore[func-returns-value]

    def applied(self, version: int) -> None:
        """Note that the live table holds `version`, as an apply does."""
        with self.database.connect() as connection, connection.transaction():
            cursor = connection.cursor()
            records.ensure(cursor)
            self.commit(version)(cursor)

    def standing(self) -> tuple[int, str | None]:
        rows = self.database.execute(
            "select commit, held from headrace.checkpoints where table_schema = %s "
            "and table_name = %s",
            [self.table.schema, self.table.name],
        )
        return (rows[0][0], rows[0][1])


def dump(database: Database) -> str:
    """All that pg_dump knows of a database, rows included, but Headrace's own schemas.

    Two databases with equal dumps differ in nothing that Postgres would restore.
    """
    command = [wheel_bin_dir() / "pg_dump", "--no-sync", "--restrict-key=x"]
    command += ["--exclude-schema=headrace*", f"--dbname={database.dsn}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


@contextmanager
def temporary_role(database: Database, options: str = "") -> Iterator[str]:
    """A role that is gone with all it owns and may do in this database."""
    name = f"headrace_{os.urandom(4).hex()}"
    database.execute(f"create role {name} {options}")
    try:
        yield name
    finally:
        database.execute(f"drop owned by {name} cascade")
        database.execute(f"drop role {name}")
