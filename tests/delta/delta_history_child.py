"""Takes a life of rows into a table that keeps their versions, in a process that may be killed.

python delta_history_child.py ROOT LAYOUT, which is `vectors`, `rewrite`, or `eager`: with a
compaction at every chance.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from delta_crash_child import EAGER
from delta_samples import LOG_ID, NAME, PIPELINE, AtOnce, Lake, at

from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.engine.shaping import net_of, snapshot_schema
from headrace.log import SnapshotEvent
from headrace.model import (
    BEFORE,
    COMMIT_LSN,
    COMMIT_TS,
    OP,
    ORDINAL,
    ChangeBatch,
    Column,
    Lsn,
    Mode,
    Shape,
    TableFormat,
    TableSchema,
    change_schema,
)

SHAPE: Final = Shape(mode=Mode.SCD2)
SCHEMA: Final = TableSchema(
    NAME,
    1,
    (Column("id", pa.int64(), "bigint", 1), Column("tod", pa.time64("us"), "time", 2)),
    ("id",),
)
BEGAN: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KEYS: Final = range(8)
REWRITTEN: Final = TableFormat(deletion_vectors=False)

Step = Sequence[tuple[str, int, int]]  # op, key, value: one transaction

# By commit of the log: a snapshot, or transactions with their seconds since BEGAN. The source's
# clock goes back before commit 4.
LIFE: Final[tuple[Any, ...]] = (
    [(key, 0) for key in KEYS],
    [(1, [("u", 1, 1), ("u", 2, 1)]), (2, [("u", 1, 2), ("d", 3, 0), ("i", 9, 0)])],
    [(3, [("d", 9, 0), ("u", 4, 1)]), (4, [("t", 0, 0), ("i", 1, 3)]), (5, [("i", 5, 0)])],
    [(1, [("i", 9, 4), ("u", 1, 4)]), (6, [("i", 6, 1)])],
    [(1, 4), (5, 7), (7, 7)],
    [(60, [("u", 5, 8), ("d", 7, 0)])],
)
KILLS: Final = [
    ("delta.load_linked", 1),
    ("delta.dv_written", 2),
    ("delta.data_written", 2),
    ("delta.versions_closed", 1),  # by a truncate
    ("delta.versions_closed", 2),  # by a resync
    ("delta.log_put", 3),
    ("delta.log_put", 5),  # of the resync
]
SNAPSHOTS: Final = {0: 0, 4: 50}  # by commit, seconds since BEGAN


def moment(seconds: int) -> dt.datetime:
    return BEGAN + dt.timedelta(seconds=seconds)


def value(number: int) -> dt.time:
    return dt.time(number, 0, 0, 1)


def batch(transactions: Sequence[tuple[int, Step]]) -> ChangeBatch:
    rows = [
        {
            "id": key if op in "iu" else None,
            "tod": value(number) if op in "iu" else None,
            OP: op,
            COMMIT_LSN: place + 1,
            ORDINAL: ordinal,
            COMMIT_TS: moment(seconds),
            BEFORE: {"id": key} if op == "d" else None,
        }
        for place, (seconds, step) in enumerate(transactions)
        for ordinal, (op, key, number) in enumerate(step)
    ]
    return ChangeBatch(SCHEMA, pa.RecordBatch.from_pylist(rows, schema=change_schema(SCHEMA)))


def main(root: str, layout: str) -> None:
    lake = Lake(Path(root))
    policy = EAGER if layout == "eager" else None
    place = DeltaDestination(str(lake.root / "lake"), beside=AtOnce(), policy=policy)
    live(
        lake, place.table(NAME, PIPELINE, SHAPE, layout=REWRITTEN if layout == "rewrite" else None)
    )


def live(lake: Lake, table: MergeOnReadTable) -> None:
    """From wherever the table stands."""
    standing = table.checkpoint(LOG_ID)
    for commit in range(0 if standing is None else standing.commit, len(LIFE)):
        part, to = LIFE[commit], at(commit + 1)
        if commit in SNAPSHOTS:
            taken = moment(SNAPSHOTS[commit])
            event = SnapshotEvent(NAME, Lsn(to.lsn), 1, (), taken_at=taken)
            rows = [(key, value(number)) for key, number in part]
            table.load(snapshot_schema(SCHEMA, SHAPE, event), lake.snapshot(SCHEMA, rows), to)
        else:
            changes = net_of(SHAPE, table, SCHEMA, [batch(part)], Lsn(0))
            table.apply(changes, to)
    table.settle()


if __name__ == "__main__":
    main(*sys.argv[1:])
