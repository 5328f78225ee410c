"""The words of the domain as frozen values: no I/O, no connector, no engine."""

from headrace.model.batch import (
    BEFORE,
    COMMIT_LSN,
    COMMIT_TS,
    META_COLUMNS,
    OP,
    ORDINAL,
    UNCHANGED,
    XID,
    ChangeBatch,
    change_schema,
)
from headrace.model.captured import DecodedChanges, SnapshotChunk, TransactionEnd
from headrace.model.changes import Fill, NetChanges
from headrace.model.checkpoint import Checkpoint
from headrace.model.lsn import Lsn
from headrace.model.table import Column, ReplicaIdentity, TableId, TableSchema

__all__ = [
    "BEFORE",
    "COMMIT_LSN",
    "COMMIT_TS",
    "META_COLUMNS",
    "OP",
    "ORDINAL",
    "UNCHANGED",
    "XID",
    "ChangeBatch",
    "Checkpoint",
    "Column",
    "DecodedChanges",
    "Fill",
    "Lsn",
    "NetChanges",
    "ReplicaIdentity",
    "SnapshotChunk",
    "TableId",
    "TableSchema",
    "TransactionEnd",
    "change_schema",
]
