"""Applies a transaction of wide rows from a change log to a Delta table, and tells its memory.

python large_transaction_child.py FOLDER MEGABYTES; prints how far its peak, in MiB, was above what
it had when the table stood and nothing was left to apply.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.connectors.delta.destination import DeltaDestination
from headrace.engine.materialize import Materialization
from headrace.engine.table_state import TableTarget
from headrace.log import CommitDraft, LogReader, LogWriter, SnapshotEvent, open_storage
from headrace.model import (
    OP,
    ORDINAL,
    ChangeBatch,
    Column,
    Lsn,
    TableId,
    TableSchema,
    TransactionEnd,
    change_schema,
)

ROW_BYTES = 8192
FILE_ROWS = 4096  # 32 MiB, as a capture stages them
TABLE = TableId("public", "wide")
COLUMNS = (Column("id", pa.int64(), "int8", 1), Column("v", pa.string(), "text", 2))
SCHEMA = TableSchema(TABLE, 1, COLUMNS, ("id",))
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LOADED, DONE = Lsn(10), Lsn(20)


def changes(rows: int) -> Iterator[ChangeBatch]:
    """Inserts; the values repeat themselves, so that files are small."""
    layout = change_schema(SCHEMA)
    for start in range(0, rows, FILE_ROWS):
        keys = np.arange(start, min(start + FILE_ROWS, rows))
        columns = {
            "id": pa.array(keys),
            "v": pa.array(["x" * ROW_BYTES] * len(keys)),
            OP: pa.array(["i"] * len(keys)),
            ORDINAL: pa.array(keys, pa.uint64()),
        }
        arrays = [columns.get(f.name, pa.nulls(len(keys), f.type)) for f in layout]
        yield ChangeBatch(SCHEMA, pa.RecordBatch.from_arrays(arrays, schema=layout))


def write(folder: str, rows: int) -> None:
    """A log of an empty snapshot, and of one transaction in several files."""
    with LogWriter.open(open_storage(folder), "wide") as log:
        log.add_schema(SCHEMA)
        event = SnapshotEvent(TABLE, LOADED, 1, (), taken_at=BEGAN)
        log.commit(CommitDraft(LOADED, BEGAN, snapshots=[event]))
        end = TransactionEnd(DONE, BEGAN, 7)
        files = [replace(log.stage(batch), transaction=end) for batch in changes(rows)]
        log.commit(CommitDraft(DONE, BEGAN, files=files))


def carry(carried: Materialization, to: Lsn) -> None:
    stop = threading.Event()
    running = threading.Thread(target=carried.run, args=(stop, to))
    running.start()
    while not carried.reached(to):
        running.join(0.05)
    stop.set()
    carried.interrupt()
    running.join()
    for state in carried.tables.values():
        if state.error is not None:
            raise state.error


def memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) >> 10


def main(folder: str, megabytes: str) -> None:
    write(folder, (int(megabytes) << 20) // ROW_BYTES)
    reader = LogReader.open(open_storage(folder), "wide")
    table = DeltaDestination(f"{folder}/lake").table(TABLE, "pipeline")
    carried = Materialization("pipeline", reader, [TableTarget(TABLE, table)])
    carry(carried, LOADED)
    pa.default_memory_pool().release_unused()
    idle = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    carry(carried, DONE)
    print(memory("VmHWM") - idle)


if __name__ == "__main__":
    main(*sys.argv[1:])
