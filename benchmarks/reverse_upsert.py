"""Upsert: 100,000 changed rows into 5 million, against what people use, and against the limit.

The limit is a plain INSERT … ON CONFLICT from a staging table that holds the rows already, sorted
by key: nothing is read, sent or converted. All others begin with the changed rows outside of the
server (an Arrow table in memory; for the whole of Headrace a commit of the Delta table) and end
when they are committed. Each contestant has a table of its own, with as many upserts behind it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from deltalake import DeltaTable

import headrace
from benchmarks import report, reverse
from benchmarks.project import write_reverse_project
from benchmarks.report import Measured
from benchmarks.wide import SCHEMA, rows
from headrace.testing.postgres import EmbeddedPostgres

SIZE = 5_000_000
SHARE = 50  # one row of so many changes
ROUNDS = 5
ROW_BY_ROW = 5_000  # rows, from which the time of all is told: it follows their number
PAGE = 1000  # rows per statement of execute_values, whose default of 100 is slower
PEERS = ("limit", "row_by_row", "execute_values", "dlt")

_COLUMNS = ", ".join(SCHEMA.arrow().names)
_ASSIGNED = ", ".join(f"{name} = EXCLUDED.{name}" for name in SCHEMA.arrow().names[1:])
UPSERT = f"INSERT INTO {{}} ({_COLUMNS}) {{}} ON CONFLICT (id) DO UPDATE SET {_ASSIGNED}"

Contest = Callable[[str, pa.Table], float]  # address and changed rows to seconds


def changed(size: int, number: int) -> pa.Table:
    """The rows that change in one round, sorted by key."""
    keys = np.random.default_rng(number).choice(size, size // SHARE, replace=False)
    return rows(np.sort(keys), size + number)


def limit(dsn: str, part: pa.Table) -> float:
    with psycopg.connect(dsn) as session:
        session.execute(reverse.CREATE.format("staged", ""))
        reverse.deposit(session, "staged", part)
        session.commit()
        session.execute("ANALYZE staged")
        session.commit()
        reverse.settle(dsn)

        def upsert() -> None:
            session.execute(UPSERT.format("limit_", f"SELECT {_COLUMNS} FROM staged"))
            session.commit()

        seconds = report.timed(upsert)
        session.execute("DROP TABLE staged")
    return seconds


def row_by_row(dsn: str, part: pa.Table) -> float:
    """The usual recipe: the rows collected, a statement for each, one transaction."""
    statement = UPSERT.format("row_by_row", f"VALUES ({', '.join(['%s'] * part.num_columns)})")
    some = part.slice(0, ROW_BY_ROW)
    with psycopg.connect(dsn) as session:

        def upsert() -> None:
            for row in some.to_pylist():
                session.execute(statement, tuple(row.values()))
            session.commit()

        return report.timed(upsert) * part.num_rows / some.num_rows


def execute_values(dsn: str, part: pa.Table) -> float:
    import psycopg2
    import psycopg2.extras

    session = psycopg2.connect(dsn)
    statement = UPSERT.format("execute_values", "VALUES %s")

    def upsert() -> None:
        values = [tuple(row.values()) for row in part.to_pylist()]
        with session.cursor() as cursor:
            psycopg2.extras.execute_values(cursor, statement, values, page_size=PAGE)
        session.commit()

    try:
        return report.timed(upsert)
    finally:
        session.close()


def dlt(dsn: str, part: pa.Table) -> float:
    """dlt's merge in its fastest form that works here; its pipeline stands already."""
    pipeline = _dlt_pipeline(dsn)
    return report.timed(lambda: _dlt_run(pipeline, part))


def _dlt_pipeline(dsn: str) -> Any:
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    import dlt

    folder = Path(tempfile.gettempdir()) / f"bench-dlt-{os.getpid()}"
    return dlt.pipeline(
        "bench",
        destination=dlt.destinations.postgres(dsn),
        dataset_name="public",
        pipelines_dir=str(folder),
    )


def _dlt_run(pipeline: Any, part: pa.Table) -> None:
    pipeline.run(
        part,
        table_name="dlt",
        write_disposition={"disposition": "merge", "strategy": "upsert"},
        primary_key="id",
        loader_file_format="csv",
    ).raise_on_failed_jobs()


def main(size: int | None = None) -> None:
    raise NotImplementedError
