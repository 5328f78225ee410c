"""What the benchmarks of Delta to Postgres share: the rows in a lake, and in tables of Postgres."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.csv
from deltalake import write_deltalake

import headrace
from benchmarks.wide import ROWS_PER_FILE, TABLE, rows
from headrace.testing.postgres import EmbeddedPostgres

NAME = f"{TABLE.schema}.{TABLE.name}"

CREATE = """
CREATE TABLE {} (
    id bigint {}, a integer, status text, amount numeric(18,4),
    placed timestamptz, shipped timestamptz, paid boolean, note text
)
"""

FEED = {"delta.enableChangeDataFeed": "true"}

_databases = (f"bench_{number}" for number in itertools.count())


def parts(size: int) -> Iterator[pa.Table]:
    """`size` rows sorted by key, a file's worth at a time."""
    for first in range(0, size, ROWS_PER_FILE):
        yield rows(np.arange(first, min(first + ROWS_PER_FILE, size)), first)


def write_lake(location: str, size: int) -> str:
    """A Delta table with a Change Data Feed, made on the local disk; gives its path."""
    path = f"{location}/{TABLE.schema}/{TABLE.name}"
    for part in parts(size):
        write_deltalake(path, part, mode="append", configuration=FEED)
    return path


def deposit(session: psycopg.Connection, table: str, part: pa.Table) -> None:
    """Put rows into a table of Postgres, as CSV."""
    text = io.BytesIO()
    pyarrow.csv.write_csv(part, text, pyarrow.csv.WriteOptions(include_header=False))
    with session.cursor().copy(f"COPY {table} FROM STDIN (FORMAT csv)") as copy:
        copy.write(text.getbuffer())


def settle(dsn: str, table: str | None = None) -> None:
    """Give every contestant the same start: no dead rows, no dirty pages."""
    with psycopg.connect(dsn, autocommit=True) as session:
        if table is not None:
            session.execute(f"VACUUM ANALYZE {table}")
        session.execute("CHECKPOINT")


@contextmanager
def database(server: EmbeddedPostgres) -> Iterator[str]:
    """The address of a new database, dropped afterwards."""
    name = next(_databases)
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute(f"CREATE DATABASE {name}")
        try:
            yield server.dsn(name)
        finally:
            session.execute(f"DROP DATABASE {name} WITH (FORCE)")


def catch_up(project: headrace.Project) -> None:
    """Run a project until its destination has what the lake holds now."""
    failures = project.run(once=True)
    if failures:
        raise RuntimeError(f"the run failed: {failures}")


def count(dsn: str, table: str = NAME) -> int:
    """Rows in a table."""
    with psycopg.connect(dsn) as session:
        row = session.execute(f"SELECT count(*) FROM {table}").fetchone()
    return row[0] if row else 0
