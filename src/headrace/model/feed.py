"""What a table with versions tells of its changes, and of what it can no longer tell.

A Delta table with a Change Data Feed is a change log of its own: its versions are the commits, its
metadata id is the log's id. PROTOCOL.md, "Change Data Files"; the feed's columns keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final

import pyarrow as pa

from headrace.model.table import TableSchema

CHANGE_TYPE: Final = "_change_type"  # insert, delete, update_preimage or update_postimage
COMMIT_VERSION: Final = "_commit_version"  # int64
COMMIT_TIMESTAMP: Final = "_commit_timestamp"  # timestamp[us, UTC]
FEED_COLUMNS: Final = (
    pa.field(CHANGE_TYPE, pa.string()),
    pa.field(COMMIT_VERSION, pa.int64()),
    pa.field(COMMIT_TIMESTAMP, pa.timestamp("us", "UTC")),
)


@dataclass(frozen=True)
class TableVersion:
    """One version of a table. `log_id` is the metadata id: another one is another table."""

    log_id: str
    number: int
    commit_ts: datetime


@dataclass(frozen=True)
class VersionChanges:
    """One version of a range; `rows` of the feed are an estimate, never too low by much."""

    number: int
    commit_ts: datetime
    rows: int


@dataclass(frozen=True)
class Segment:
    """Consecutive versions that share one schema."""

    schema: TableSchema
    versions: tuple[VersionChanges, ...]

    @property
    def last(self) -> int:
        return self.versions[-1].number


class LossKind(Enum):
    """Why a range of the feed cannot be read."""

    FEED_OFF = "feed off"  # for the whole range or a part of it
    LOG_CLEANED = "log cleaned"  # commits of the range are gone
    FILES_GONE = "files vacuumed"  # the log names files that are gone
    REPLACED = "table replaced"  # another metadata id, or an older version than was applied
    RESTORED = "table restored"  # RESTORE put former files back
    UNSUPPORTED = "unsupported feature"  # the reader of the feed cannot read this table's


@dataclass(frozen=True)
class Loss:
    """Why the changes cannot be read as such; `reason` is a sentence for a person."""

    kind: LossKind
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class FeedPlan:
    """How to get from one version to another: segments in order, or the loss of all of them."""

    segments: tuple[Segment, ...] = ()
    loss: Loss | None = None


@dataclass(frozen=True)
class RowPart:
    """A part of a table's rows; `read` may be called again, from any thread, once per reading."""

    read: Callable[[], Iterator[pa.RecordBatch]]
    rows: int | None = None


def tables(parts: Iterable[RowPart]) -> Iterator[pa.Table]:
    """The rows of all parts, batch after batch."""
    return (pa.Table.from_batches([batch]) for part in parts for batch in part.read())


@dataclass(frozen=True)
class FileDiff:
    """What two versions differ by, file by file.

    `added` are rows that may be new or changed (unchanged ones among them: whole files are
    compared). `removed` hold the key columns of rows that may have gone or changed. Where removed
    files can no longer be read `removed` is None, and `keys` reads the key columns of every row of
    the newer version: a key that is not among them is gone.
    """

    added: tuple[RowPart, ...]
    removed: tuple[RowPart, ...] | None
    keys: tuple[RowPart, ...]
    rows: int  # that would be read, an estimate
