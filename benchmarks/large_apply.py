"""A transaction of millions of rows, from the change log to its destination: seconds and memory.

The table has a million rows. The transaction inserts, updates rows that stood before (without the
text that was not sent) and rows of its own, and deletes some; it comes as a capture stages what
Postgres streams: in files of some 30 MB, whose commit was not known when they were written. One
process makes the log; another applies it and tells its peak above what it had when the table stood
and nothing was left to apply. Also with history (mode scd2). Postgres is given the same rows once
more, from a table in it where what the transaction comes to stands ready.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from benchmarks import report, reverse
from headrace.config.connections import PostgresConnection
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.engine.materialize import Materialization
from headrace.engine.protocols import DestinationTable
from headrace.engine.table_state import TableTarget
from headrace.log import CommitDraft, LogReader, LogWriter, SnapshotEvent, open_storage
from headrace.model import (
    BEFORE,
    END_AT,
    OP,
    ORDINAL,
    UNCHANGED,
    ChangeBatch,
    Column,
    Lsn,
    Mode,
    Shape,
    TableId,
    TableSchema,
    TransactionEnd,
    change_schema,
)
from headrace.testing.postgres import EmbeddedPostgres

SIZE = 5_000_000
STANDING = 1_000_000
FILE_ROWS = 400_000
TABLE = TableId("public", "moves")
SCHEMA = TableSchema(
    TABLE,
    1,
    (
        Column("id", pa.int64(), "int8", 1),
        Column("n", pa.int32(), "int4", 2),
        Column("note", pa.string(), "text", 3),
    ),
    ("id",),
)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
FIRST, SECOND = Lsn(1 << 20), Lsn(2 << 20)
OPS = np.array(["i", "i", "i", "i", "i", "i", "i", "u", "u", "d"])  # by the last digit of a row


def notes(keys: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array([f"note {key:019d}" for key in keys.tolist()], pa.string())


def rows(keys: np.ndarray[Any, Any]) -> pa.RecordBatch:
    numbers = pa.array(keys % 1000).cast(pa.int32())
    return pa.RecordBatch.from_arrays([pa.array(keys), numbers, notes(keys)], schema=SCHEMA.arrow())


def changes(size: int) -> Iterator[ChangeBatch]:
    """Of ten, seven inserts, an update of a row from before (its text unsent), one of a row that
    this transaction inserted, and a delete."""
    layout = change_schema(SCHEMA)
    for start in range(0, size, FILE_ROWS):
        place = np.arange(start, min(start + FILE_ROWS, size))
        ten, digit = place // 10, place % 10
        op = OPS[digit]
        keys = STANDING + place
        half = STANDING // 2
        keys = np.where(digit == 7, 2 * (7 * ten % half), keys)
        keys = np.where(digit == 8, STANDING + 10 * np.maximum(ten - ten % 5000, 0), keys)
        keys = np.where(digit == 9, 2 * (ten % half) + 1, keys)
        gone = op == "d"
        unsent = digit == 7
        columns: dict[str, pa.Array] = {
            "id": pa.array(keys, mask=gone),
            "n": pa.array((place % 1000).astype(np.int32), mask=gone),
            "note": pa.array(notes(keys).to_pylist(), pa.string(), mask=gone | unsent),
            OP: pa.array(op),
            ORDINAL: pa.array(place, pa.uint64()),
            UNCHANGED: pa.array([b"\4" if no else None for no in unsent.tolist()], pa.binary()),
            BEFORE: pa.StructArray.from_arrays([pa.array(keys)], ["id"], mask=pa.array(~gone)),
        }
        arrays = [columns.get(f.name, pa.nulls(len(place), f.type)) for f in layout]
        arrays = [
            a if a.type == f.type else a.cast(f.type) for a, f in zip(arrays, layout, strict=True)
        ]
        yield ChangeBatch(SCHEMA, pa.RecordBatch.from_arrays(arrays, schema=layout))


def write_log(folder: str, size: int) -> None:
    with LogWriter.open(open_storage(folder), "bench") as log:
        log.add_schema(SCHEMA)
        with log.stage_snapshot(SCHEMA, FIRST, 0) as chunk:
            chunk.write(rows(np.arange(STANDING)))
        event = SnapshotEvent(TABLE, FIRST, 1, (chunk.file,), taken_at=BEGAN)
        log.commit(CommitDraft(FIRST, BEGAN, snapshots=[event]))
        end = TransactionEnd(SECOND, BEGAN, 7)
        files = [replace(log.stage(batch), transaction=end) for batch in changes(size)]
        log.commit(CommitDraft(SECOND, BEGAN, files=files))


def apply(folder: str, destination: DestinationTable, shape: Shape) -> dict[str, float]:
    reader = LogReader.open(open_storage(folder), "bench")
    target = TableTarget(TABLE, destination, shape=shape)
    carried = Materialization("bench", reader, [target])
    run_until(carried, FIRST)
    idle = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    seconds = report.timed(partial(run_until, carried, SECOND))
    return {
        "seconds": round(seconds, 1),
        "idle_mib": idle,
        "above_idle_mib": _status("VmHWM") - idle,
    }


def run_until(carried: Materialization, position: Lsn) -> None:
    stop = threading.Event()

    def watch() -> None:
        while not carried.reached(position):
            time.sleep(0.02)
        stop.set()
        carried.interrupt()

    watcher = threading.Thread(target=watch)
    watcher.start()
    carried.run(stop, position)
    watcher.join()
    for state in carried.tables.values():
        if state.error is not None:
            raise state.error


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) >> 10


def to_delta(folder: str, log: str, shape: Shape) -> dict[str, float]:
    return apply(log, DeltaDestination(folder).table(TABLE, "bench", shape), shape)


def to_postgres(dsn: str, log: str) -> dict[str, float]:
    place = PostgresDestination(PostgresConnection(type="postgres", url=dsn))
    place.check_writable()
    return apply(log, place.table(TABLE, "bench"), Shape())


READY = f"""
CREATE UNLOGGED TABLE staged AS SELECT * FROM public.moves;
CREATE TABLE ready (id bigint PRIMARY KEY, n integer, note text);
INSERT INTO ready SELECT i, i % 1000, 'note ' || lpad(i::text, 19, '0')
  FROM generate_series(0, {STANDING - 1}) i;
CREATE UNLOGGED TABLE gone AS SELECT id FROM ready EXCEPT SELECT id FROM staged;
"""
SETTLED = ("VACUUM ANALYZE ready", "ANALYZE staged", "ANALYZE gone", "CHECKPOINT")
FROM_READY = """
DELETE FROM ready USING gone WHERE ready.id = gone.id;
INSERT INTO ready AS t SELECT * FROM staged ORDER BY id
    ON CONFLICT (id) DO UPDATE SET n = excluded.n, note = excluded.note
 WHERE (t.n, t.note) IS DISTINCT FROM (excluded.n, excluded.note);
"""


def from_ready(dsn: str) -> float:
    """Seconds that Postgres takes without anybody who reads, collapses and sends: the limit."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("SET synchronous_commit = off")
        session.execute(READY.encode())
        for statement in SETTLED:
            session.execute(statement.encode())
        return report.timed(lambda: session.execute(FROM_READY.encode()))


def main(size: int = SIZE) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = f"{folder}/state"
        report.in_child(write_log, log, size)
        delta = report.in_child(to_delta, f"{folder}/lake", log, Shape()).value
        history = report.in_child(to_delta, f"{folder}/past", log, Shape(Mode.SCD2)).value
        sums = [sums_of(f"{folder}/{place}", where) for place, where in TABLES.items()]
        with EmbeddedPostgres() as server, reverse.database(server) as dsn:
            postgres = report.in_child(to_postgres, dsn, log).value
            with psycopg.connect(dsn) as session:
                sums.append(session.execute(SUMS.format("public.moves", "true")).fetchone())
            postgres["from_ready_s"] = round(from_ready(dsn), 1)
    if len(set(sums)) > 1:
        raise RuntimeError(f"Delta, its history and Postgres differ: {sums}")
    postgres["ratio"] = round(postgres["from_ready_s"] / postgres["seconds"], 2)
    result = {"rows": size, "delta": delta, "delta_scd2": history, "postgres": postgres}
    report.write("large_apply", result, keep=size == SIZE)


SUMS = "select count(*), cast(sum(id) as bigint), cast(sum(n) as bigint) from {} where {}"
TABLES = {"lake": "true", "past": f'"{END_AT}" is null'}


def sums_of(lake: str, where: str) -> tuple[int, ...]:
    table = DeltaTable(Path(lake) / TABLE.schema / TABLE.name)
    found = QueryBuilder().register("t", table).execute(SUMS.format("t", where))
    return tuple(column[0].as_py() for column in pa.table(found).columns)
