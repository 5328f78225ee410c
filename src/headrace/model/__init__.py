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
from headrace.model.captured import DecodedChanges, KeyRange, SnapshotChunk, TransactionEnd
from headrace.model.changes import Amendment, Fill, NetChanges, Rejected, RowCounts
from headrace.model.checkpoint import Checkpoint, Reached
from headrace.model.delivery import DELETED_AT, Delivery, OnDelete, SchemaPolicy
from headrace.model.feed import (
    CHANGE_TYPE,
    COMMIT_TIMESTAMP,
    COMMIT_VERSION,
    FEED_COLUMNS,
    FeedPlan,
    FileDiff,
    Loss,
    LossKind,
    RowPart,
    Segment,
    TableVersion,
    VersionChanges,
)
from headrace.model.lake import ChangeFeed, TableFormat
from headrace.model.lsn import Lsn
from headrace.model.rules import Expectation, Mask, MaskKind, OnBreach, RowRules
from headrace.model.shape import END_AT, START_AT, Metadata, Mode, Shape
from headrace.model.table import Column, ReplicaIdentity, TableId, TableSchema

__all__ = [
    "BEFORE",
    "CHANGE_TYPE",
    "COMMIT_LSN",
    "COMMIT_TIMESTAMP",
    "COMMIT_TS",
    "COMMIT_VERSION",
    "DELETED_AT",
    "END_AT",
    "FEED_COLUMNS",
    "META_COLUMNS",
    "OP",
    "ORDINAL",
    "START_AT",
    "UNCHANGED",
    "XID",
    "Amendment",
    "ChangeBatch",
    "ChangeFeed",
    "Checkpoint",
    "Column",
    "DecodedChanges",
    "Delivery",
    "Expectation",
    "FeedPlan",
    "FileDiff",
    "Fill",
    "KeyRange",
    "Loss",
    "LossKind",
    "Lsn",
    "Mask",
    "MaskKind",
    "Metadata",
    "Mode",
    "NetChanges",
    "OnBreach",
    "OnDelete",
    "Reached",
    "Rejected",
    "ReplicaIdentity",
    "RowCounts",
    "RowPart",
    "RowRules",
    "SchemaPolicy",
    "Segment",
    "Shape",
    "SnapshotChunk",
    "TableFormat",
    "TableId",
    "TableSchema",
    "TableVersion",
    "TransactionEnd",
    "VersionChanges",
    "change_schema",
]
