"""Change batches: ordered changes of one table and one schema version, in Arrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from headrace.model.table import ReplicaIdentity, TableSchema

OP: Final = "_op"  # i, u, d or t (truncate: every table column and _before are null)
COMMIT_LSN: Final = "_commit_lsn"  # end of the transaction's commit record
ORDINAL: Final = "_ordinal"  # place inside the transaction, across tables
COMMIT_TS: Final = "_commit_ts"
XID: Final = "_xid"
UNCHANGED: Final = "_unchanged"  # null, or a bitmap: bit i % 8 of byte i // 8 marks column i
BEFORE: Final = "_before"  # null, or a struct of the old key or, under FULL, of the old row

META_COLUMNS: Final = (OP, COMMIT_LSN, ORDINAL, COMMIT_TS, XID, UNCHANGED, BEFORE)


def change_schema(schema: TableSchema) -> pa.Schema:
    """The Arrow schema of a change batch of `schema`: its columns, then the metadata columns.

    The table's columns hold the row after the change (null for deletes and truncates, null where
    `_unchanged` marks a column); `_before` holds what the source told of the row before it: always
    for deletes, for updates when the key changed or the replica identity is FULL.
    """
    meta = [
        pa.field(OP, pa.string(), nullable=False),
        pa.field(COMMIT_LSN, pa.uint64()),
        pa.field(ORDINAL, pa.uint64(), nullable=False),
        pa.field(COMMIT_TS, pa.timestamp("us", "UTC")),
        pa.field(XID, pa.uint32()),
        pa.field(UNCHANGED, pa.binary()),
        pa.field(BEFORE, before_type(schema)),
    ]
    return pa.schema([*schema.arrow(), *meta])


def before_type(schema: TableSchema) -> pa.StructType:
    """The columns `_before` holds: the key, or the whole row under REPLICA IDENTITY FULL."""
    whole = schema.identity is ReplicaIdentity.FULL or not schema.key
    arrow = schema.arrow()
    return pa.struct([arrow.field(n) for n in (schema.names if whole else schema.key)])


@dataclass(frozen=True)
class ChangeBatch:
    """Changes of one table in position order; `data` follows `change_schema(schema)`."""

    schema: TableSchema
    data: pa.RecordBatch

    @property
    def num_rows(self) -> int:
        return int(self.data.num_rows)


def no_rows(schema: TableSchema) -> ChangeBatch:
    """A batch of no changes."""
    return ChangeBatch(schema, pa.RecordBatch.from_pylist([], change_schema(schema)))
