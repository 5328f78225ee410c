"""Upsert: 100,000 changed rows into 5 million, against what people use, and against the limit.

The limit is a plain INSERT … ON CONFLICT from a staging table that holds the rows already, sorted
by key: nothing is read, sent or converted. The others begin with the changed rows outside of the
server, as an Arrow table in memory, and end when they are committed; the whole of Headrace begins
with a commit of the Delta table. Each contestant has a table of its own, with as many upserts
behind it as the others' tables.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from deltalake import DeltaTable
from pydantic import SecretStr

import headrace
from benchmarks import report, reverse
from benchmarks.project import write_reverse_project
from benchmarks.report import Measured
from benchmarks.wide import SCHEMA, rows
from headrace.config import PostgresConnection
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.model import Checkpoint, Lsn, NetChanges, TableId
from headrace.testing.postgres import EmbeddedPostgres

SIZE = 5_000_000
SHARE = 50  # one row of so many changes
ROUNDS = 5
ROW_BY_ROW = 5_000  # rows; what all take is told from these, since it follows their number
PAGE = 1000  # rows in a statement of execute_values; its default of 100 is slower
DLT = "dlt_merge"
PEERS = ("staged_insert", "row_by_row", "execute_values", DLT)

APPLIED = replace(SCHEMA, table=TableId("public", "applied"))
_COLUMNS = ", ".join(SCHEMA.arrow().names)
_ASSIGNED = ", ".join(f"{name} = EXCLUDED.{name}" for name in SCHEMA.arrow().names[1:])
UPSERT = f"INSERT INTO {{}} ({_COLUMNS}) {{}} ON CONFLICT (id) DO UPDATE SET {_ASSIGNED}"

# What a table holds, cheaply: another row or value changes one of these.
CONTENT = "SELECT count(*), sum(id * a), sum(id % 1000 * amount), sum(hashtext(note)) FROM {}"


def changed(size: int, number: int) -> pa.Table:
    """The rows that change in one round, sorted by key."""
    keys = np.random.default_rng(number).choice(size, size // SHARE, replace=False)
    return rows(np.sort(keys), size + number)


# -- the limit and the peers: (address, size, number of the round) to seconds ----------------------


def staged_insert(dsn: str, size: int, number: int) -> float:
    with psycopg.connect(dsn) as session:
        session.execute(reverse.CREATE.format("staged", ""))
        reverse.deposit(session, "staged", changed(size, number))
        session.execute("ANALYZE staged")
        session.commit()
        reverse.settle(dsn, "staged_insert")

        def upsert() -> None:
            session.execute(UPSERT.format("staged_insert", f"SELECT {_COLUMNS} FROM staged"))
            session.commit()

        seconds = report.timed(upsert)
        session.execute("DROP TABLE staged")
    return seconds


def row_by_row(dsn: str, size: int, number: int) -> float:
    """The usual recipe: the rows collected, a statement for each, one transaction."""
    part = changed(size, number)
    some = part.slice(0, ROW_BY_ROW)
    statement = UPSERT.format("row_by_row", f"VALUES ({', '.join(['%s'] * part.num_columns)})")
    with psycopg.connect(dsn) as session:
        reverse.settle(dsn, "row_by_row")

        def upsert() -> None:
            for row in some.to_pylist():
                session.execute(statement, tuple(row.values()))
            session.commit()

        return report.timed(upsert) * part.num_rows / some.num_rows


def execute_values(dsn: str, size: int, number: int) -> float:
    import psycopg2  # of benchmarks/requirements.txt, as dlt
    import psycopg2.extras

    part = changed(size, number)
    statement = UPSERT.format("execute_values", "VALUES %s")
    session = psycopg2.connect(dsn)
    reverse.settle(dsn, "execute_values")

    def upsert() -> None:
        values = [tuple(row.values()) for row in part.to_pylist()]
        with session.cursor() as cursor:
            psycopg2.extras.execute_values(cursor, statement, values, page_size=PAGE)
        session.commit()

    try:
        return report.timed(upsert)
    finally:
        session.close()


def dlt_merge(dsn: str, folder: str, size: int, number: int) -> float:
    """In its fastest form: Parquet through ADBC, MERGE, and a primary key, which it makes none."""
    part = changed(size, number)
    run = _dlt(dsn, folder)
    run(part.slice(0, 1))  # it looks at the destination first, and remembers
    reverse.settle(dsn, DLT)
    return report.timed(lambda: run(part))


def _dlt(dsn: str, folder: str) -> Callable[[pa.Table], None]:
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"
    import dlt

    postgres = dlt.destinations.postgres(dsn)
    pipeline = dlt.pipeline(
        "bench", destination=postgres, dataset_name="public", pipelines_dir=folder
    )

    def run(part: pa.Table) -> None:
        pipeline.run(
            part,
            table_name=DLT,
            write_disposition={"disposition": "merge", "strategy": "upsert"},
            primary_key="id",
            loader_file_format="parquet",
        ).raise_on_failed_jobs()

    return run


def make_peers_tables(dsn: str, folder: str, size: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(reverse.CREATE.format("staged_insert", ""))
        for part in reverse.parts(size):
            reverse.deposit(session, "staged_insert", part)
        _dlt(dsn, folder)(changed(size, 0))
        session.execute(f"TRUNCATE {DLT}")
        session.execute(f"INSERT INTO {DLT} ({_COLUMNS}) SELECT {_COLUMNS} FROM staged_insert")
        for table in ("row_by_row", "execute_values"):
            session.execute(f"CREATE TABLE {table} AS TABLE staged_insert")
        for table in ("staged_insert", "row_by_row", "execute_values", DLT):
            session.execute(f"ALTER TABLE {table} ADD PRIMARY KEY (id)")


# -- ours ------------------------------------------------------------------------------------------


def destination_table(dsn: str) -> Any:
    connection = PostgresConnection(type="postgres", url=SecretStr(dsn))
    return PostgresDestination(connection).table(APPLIED.table, "bench")


def applied(dsn: str, size: int, number: int) -> float:
    """The destination alone: net changes in memory, committed with their checkpoint."""
    part = changed(size, number)
    changes = NetChanges(APPLIED, part, part.select(["id"]).slice(0, 0))
    table = destination_table(dsn)
    to = Checkpoint("bench", number, Lsn(number))
    table.checkpoint("bench")  # connected, as it is when a run goes on
    reverse.settle(dsn, "applied")
    return report.timed(lambda: table.apply(changes, to))


def fill_applied(dsn: str) -> None:
    """The table as the destination makes it, with the peers' rows."""
    destination_table(dsn).prepare(APPLIED)
    with psycopg.connect(dsn) as session:
        session.execute(f"INSERT INTO applied ({_COLUMNS}) SELECT {_COLUMNS} FROM staged_insert")


def commit_to_lake(path: str, size: int, number: int) -> None:
    table = DeltaTable(path)
    merge = table.merge(changed(size, number), "t.id = s.id", source_alias="s", target_alias="t")
    merge.when_matched_update_all().when_not_matched_insert_all().execute()


def carried(dsn: str, project: str) -> float:
    """The whole way: from a version of the Delta table to its rows committed, a run of its own."""
    reverse.settle(dsn, reverse.NAME)
    loaded = headrace.load(project)
    return report.timed(lambda: reverse.catch_up(loaded))


# --------------------------------------------------------------------------------------------------


def contest(server: EmbeddedPostgres, size: int, folder: str) -> dict[str, list[Measured]]:
    numbers = {name: iter(range(1, 1 + ROUNDS)) for name in ("headrace", "headrace_apply", *PEERS)}
    with reverse.database(server) as dsn:
        lake = reverse.write_lake(f"{folder}/lake", size)
        project = str(write_reverse_project(folder, f"{folder}/lake", dsn, reverse.NAME))
        reverse.catch_up(headrace.load(project))
        make_peers_tables(dsn, f"{folder}/dlt", size)
        fill_applied(dsn)

        def ours() -> Measured:
            commit_to_lake(lake, size, next(numbers["headrace"]))
            return report.in_child(carried, dsn, project)

        def other(name: str, function: Callable[..., float], *arguments: Any) -> Measured:
            return report.in_child(function, dsn, *arguments, size, next(numbers[name]))

        results = report.interleaved(
            ROUNDS,
            {
                "headrace": ours,
                "headrace_apply": partial(other, "headrace_apply", applied),
                "staged_insert": partial(other, "staged_insert", staged_insert),
                "row_by_row": partial(other, "row_by_row", row_by_row),
                "execute_values": partial(other, "execute_values", execute_values),
                DLT: partial(other, DLT, dlt_merge, f"{folder}/dlt"),
            },
        )
        _require_same(dsn, (reverse.NAME, "applied", "execute_values", DLT))
    return results


def _require_same(dsn: str, tables: tuple[str, ...]) -> None:
    with psycopg.connect(dsn) as session:
        expected = session.execute(CONTENT.format("staged_insert")).fetchone()
        for table in tables:
            found = session.execute(CONTENT.format(table)).fetchone()
            if found != expected:
                raise RuntimeError(f"{table} holds {found}, not {expected}")


def figures(results: Mapping[str, list[Measured]], size: int) -> dict[str, Any]:
    seconds = {name: report.median(measured) for name, measured in results.items()}
    ours, limit = seconds["headrace"], seconds["staged_insert"]
    return {
        "rows": size,
        "changed": size // SHARE,
        "limit": "INSERT … ON CONFLICT from a ready staging table",
        "ratio": round(limit / ours, 3),
        "ratio_apply": round(limit / seconds["headrace_apply"], 3),
        "times_faster_than": {name: round(seconds[name] / ours, 1) for name in PEERS[1:]},
        "row_by_row_measured_rows": ROW_BY_ROW,
        **{f"{n}_seconds": [round(m.value, 3) for m in ms] for n, ms in results.items()},
        "peak_mib": {name: report.peak(measured) for name, measured in results.items()},
    }


def main(size: int = SIZE) -> None:
    with EmbeddedPostgres() as server, tempfile.TemporaryDirectory() as folder:
        results = contest(server, size, folder)
    report.write("reverse_upsert", figures(results, size), keep=size == SIZE)
