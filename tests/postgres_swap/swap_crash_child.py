"""A process that rebuilds or undoes a table, and is killed on its way by a failpoint."""

from __future__ import annotations

import sys

import psycopg
import pyarrow as pa
from rebuilding import Rebuilding

from headrace.connectors.postgres import building, load
from headrace.model import RowPart
from headrace.testing.database import Database


def rebuild(table: Rebuilding) -> None:
    rows = pa.record_batch({"id": range(1, 4)})
    parts = [RowPart(lambda: iter([rows])), RowPart(lambda: iter([rows]))]
    with table.database.connect() as connection:
        build = building.begin(connection, table.table, "lake_to_shop", ["id"])

    def write(connection: psycopg.Connection[tuple[object, ...]], batch: pa.Table) -> None:
        for number in batch.column("id").to_pylist():
            connection.execute(
                f"insert into headrace_work.{build.table.name} (id, code) values (%s, 'new')"
                " on conflict do nothing",
                [number],
            )

    load.copy_parts(table.database.connect, parts[:1], write, 1)
    built = building.finish(table.database.connect, build, "lake_to_shop", 1)
    table.swap(built, version=8)


if __name__ == "__main__":
    action, dsn = sys.argv[1:]
    table = Rebuilding(Database("", dsn))
    rebuild(table) if action == "rebuild" else table.undo()
