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
from headrace.log.unfinished import RangeCopy, UnfinishedCopy
from headrace.log.writer import LogWriter, SnapshotChunkWriter

__all__ = [
    "CommitDraft",
    "Expired",
    "LogFeed",
    "LogFile",
    "LogReader",
    "LogWriter",
    "Manifest",
    "RangeCopy",
    "SchemaChange",
    "SnapshotChunkWriter",
    "SnapshotEvent",
    "SnapshotFile",
    "Storage",
    "UnfinishedCopy",
    "expire",
    "open_storage",
]
