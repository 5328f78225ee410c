"""What the engine asks of sources and destinations; connectors fulfil it without importing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from headrace.model import ChangeBatch, Checkpoint, Lsn, NetChanges, TableId, TableSchema


class Taken(Protocol):
    """What a stream has gathered, still to be decoded; decoding may happen in another thread."""

    @property
    def to_lsn(self) -> Lsn:
        """End of the last complete transaction, or of the last keepalive after it."""
        ...

    @property
    def commit_ts(self) -> datetime | None:
        """Commit time of the newest complete transaction, if there is one."""
        ...

    @property
    def transactions(self) -> int: ...

    def decode(self) -> DecodedChanges: ...


@dataclass(frozen=True)
class DecodedChanges:
    """Batches of whole transactions, and of a transaction whose commit is still to come.

    `unfinished` batches have null `_commit_lsn`, `_commit_ts` and `_xid`. `finished_transaction`
    tells about the transaction that earlier `unfinished` batches belong to, once it has committed.
    """

    batches: Sequence[ChangeBatch]
    unfinished: Sequence[ChangeBatch] = ()
    failed: Sequence[tuple[TableId, Exception]] = ()


class ChangeStream(Protocol):
    """A running replication stream, used from one thread."""

    def receive(self, timeout: float) -> bool:
        """Take in what has arrived, waiting up to `timeout` seconds; False if nothing had."""
        ...

    @property
    def in_transaction(self) -> bool: ...

    @property
    def pending_bytes(self) -> int: ...

    @property
    def received_lsn(self) -> Lsn: ...

    def take(self) -> Taken: ...

    def acknowledge(self, lsn: Lsn) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SnapshotChunk:
    """A part of one table to be copied, such as a range of pages; `where` is the source's own."""

    table: TableId
    number: int
    where: str
    rows: int  # the planner's estimate


class Snapshot(Protocol):
    """All tables as of one LSN, readable from several threads."""

    lsn: Lsn

    def schema(self, table: TableId) -> TableSchema: ...

    def chunks(self, table: TableId) -> Sequence[SnapshotChunk]: ...

    def read(self, chunk: SnapshotChunk) -> Iterator[pa.RecordBatch]: ...


class Source(Protocol):
    """One database that can be streamed and copied."""

    def current_lsn(self) -> Lsn: ...

    def stream(self, from_lsn: Lsn | None) -> ChangeStream: ...

    def snapshot(self, tables: Sequence[TableId]) -> AbstractContextManager[Snapshot]: ...


class DestinationTable(Protocol):
    """One table at a destination, written by one thread."""

    def checkpoint(self, log_id: str) -> Checkpoint | None:
        """Where this table stands in that log; None if it never took anything from it."""
        ...

    def load(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        """Replace the whole content by snapshot files, in one commit that holds the checkpoint."""
        ...

    def apply(self, changes: NetChanges, to: Checkpoint) -> None:
        """Apply changes and checkpoint in one commit; at or before the checkpoint, do nothing."""
        ...

    def evolve(self, schema: TableSchema) -> None:
        """Follow added columns. Raises UnsupportedSchemaChangeError on anything else."""
        ...
