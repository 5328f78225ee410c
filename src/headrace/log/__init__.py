"""The change log: the durable, ordered, columnar record of a capture."""

from headrace.log.feed import LogFeed
from headrace.log.manifest import (
    CommitDraft,
    LogFile,
    Manifest,
    SchemaChange,
    SnapshotEvent,
    SnapshotFile,
)
from headrace.log.reader import LogReader
from headrace.log.retention import Expired, expire
from headrace.log.storage import Storage, open_storage
from headrace.log.writer import LogWriter, SnapshotChunkWriter

__all__ = [
    "CommitDraft",
    "Expired",
    "LogFeed",
    "LogFile",
    "LogReader",
    "LogWriter",
    "Manifest",
    "SchemaChange",
    "SnapshotChunkWriter",
    "SnapshotEvent",
    "SnapshotFile",
    "Storage",
    "expire",
    "open_storage",
]
