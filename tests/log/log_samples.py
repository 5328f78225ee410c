"""Schemas, batches and commits for the change log's tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa

from headrace.log import CommitDraft, LogReader, LogWriter, Manifest, Storage
from headrace.model import ChangeBatch, Column, Lsn, TableId, TableSchema, change_schema

CAPTURE = "shop"
ORDERS = TableSchema(
    TableId("public", "orders"),
    1,
    (Column("id", pa.int64(), "bigint", 1), Column("note", pa.string(), "text", 2)),
    ("id",),
)
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def change(row: int, lsn: int | None, op: str = "i", ordinal: int = 0) -> dict[str, object]:
    """One change; `lsn` None is one of a transaction that has not committed yet."""
    return {
        "id": row,
        "note": f"note {row}",
        "_op": op,
        "_commit_lsn": lsn,
        "_ordinal": ordinal,
        "_commit_ts": None if lsn is None else WHEN,
        "_xid": None if lsn is None else 700,
        "_unchanged": None,
        "_before": None,
    }


def batch(changes: Sequence[dict[str, object]], schema: TableSchema = ORDERS) -> ChangeBatch:
    data = pa.RecordBatch.from_pylist(list(changes), schema=change_schema(schema))
    return ChangeBatch(schema, data)


def inserts(lsn: int, rows: Sequence[int], schema: TableSchema = ORDERS) -> ChangeBatch:
    """One transaction that inserts `rows` and ends at `lsn`."""
    return batch([change(row, lsn, ordinal=n) for n, row in enumerate(rows)], schema)


def rows_of(ids: Sequence[int], schema: TableSchema = ORDERS) -> pa.RecordBatch:
    rows = [{"id": i, "note": f"note {i}"} for i in ids]
    return pa.RecordBatch.from_pylist(rows, schema=schema.arrow())


def commit(log: LogWriter, lsn: int, rows: Sequence[int]) -> Manifest:
    return log.commit(CommitDraft(Lsn(lsn), WHEN, [log.stage(inserts(lsn, rows))]))


def committed_rows(storage: Storage) -> list[tuple[int, int]]:
    """What a fresh reader finds: (commit LSN, id) of every change, in order."""
    reader = LogReader.open(storage, CAPTURE)
    return [
        (row["_commit_lsn"], row["id"])
        for manifest in reader.manifests(0)
        for file in manifest.files
        for part in reader.read(file)
        for row in part.data.to_pylist()
    ]


def data_files(storage: Storage) -> list[str]:
    return [e.path for e in storage.list("log") if e.path.endswith(".parquet")]
