"""What the engine asks of sources and destinations; connectors fulfil it without importing it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from headrace.model import (
    Checkpoint,
    DecodedChanges,
    Lsn,
    NetChanges,
    SnapshotChunk,
    TableId,
    TableSchema,
)


class Taken(Protocol):
    """What a stream has gathered, still to be decoded, which may happen in another thread."""

    @property
    def to_lsn(self) -> Lsn:
        """End of the last whole transaction, or of a later keepalive outside a transaction."""
        ...

    @property
    def commit_ts(self) -> datetime | None:
        """Commit time of the newest whole transaction, if there is one."""
        ...

    @property
    def transactions(self) -> int: ...

    def decode(self) -> DecodedChanges: ...


class ChangeStream(Protocol):
    """A running replication stream, used from one thread (but for `wake`)."""

    def receive(self, timeout: float) -> bool:
        """Take in what has arrived, waiting up to `timeout` seconds; False if nothing had.

        Raises:
            SourceUnavailableError: the connection is lost or silent.
        """
        ...

    def wake(self) -> None:
        """Make a waiting `receive` return; from any thread."""
        ...

    @property
    def in_transaction(self) -> bool: ...

    @property
    def pending_bytes(self) -> int: ...

    @property
    def pending_rows(self) -> int: ...

    @property
    def received_lsn(self) -> Lsn: ...

    @property
    def reply_requested(self) -> bool:
        """The source waits for our position (it may be shutting down)."""
        ...

    def ask_position(self) -> None:
        """Ask the source to tell its position in a keepalive now."""
        ...

    def take(self) -> Taken: ...

    def acknowledge(self, lsn: Lsn) -> None: ...

    def close(self) -> None: ...


class Snapshot(Protocol):
    """Tables as of one LSN, readable from as many threads as it was opened for."""

    @property
    def lsn(self) -> Lsn: ...

    def schema(self, table: TableId) -> TableSchema: ...

    def chunks(self, table: TableId) -> Sequence[SnapshotChunk]: ...

    def read(self, chunk: SnapshotChunk) -> Generator[pa.RecordBatch]: ...


class Source(Protocol):
    """One database that can be streamed and copied."""

    def prepare(self, log_position: Lsn | None) -> Lsn:
        """Where the stream goes on after `log_position` (None: a log just begun).

        Raises:
            SlotLostError: the source no longer holds what comes after that position.
        """
        ...

    def current_lsn(self) -> Lsn: ...

    def departed(self) -> Mapping[TableId, str]:
        """Tables whose changes the stream no longer tells, with the reason; each is told once."""
        ...

    def stream(self, from_lsn: Lsn) -> ChangeStream: ...

    def snapshot(
        self, tables: Sequence[TableId], connections: int
    ) -> AbstractContextManager[Snapshot]: ...


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

    def rest(self) -> float:
        """Seconds that should pass between the last commit and the next, for its readers' sake."""
        ...

    def evolve(self, schema: TableSchema) -> None:
        """Follow added columns. Raises UnsupportedSchemaChangeError on anything else."""
        ...
