"""What the engine asks of sources and destinations; connectors fulfil it without importing it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.model import (
    Checkpoint,
    DecodedChanges,
    FeedPlan,
    FileDiff,
    KeyRange,
    Lsn,
    NetChanges,
    Rejected,
    RowPart,
    SnapshotChunk,
    TableId,
    TableSchema,
    TableVersion,
    Visibility,
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

    def decode(self) -> Iterator[DecodedChanges]:
        """All of it in parts, in order; to be gone through once, to the end."""
        ...


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
    def pending_rows(self) -> int:
        """Rows that `take` would hand over to be committed, or that wait for it to be."""
        ...

    @property
    def received_lsn(self) -> Lsn: ...

    @property
    def reply_requested(self) -> bool:
        """The source waits for our position (it may be shutting down)."""
        ...

    def ask_position(self) -> None:
        """Ask the source to tell its position in a keepalive now."""
        ...

    def take(self, keep: int) -> Taken:
        """Hand over what was gathered; of transactions in progress, which were sent before their
        commit, rows may stay that need up to `keep` bytes in all."""
        ...

    def acknowledge(self, lsn: Lsn) -> None: ...

    def close(self) -> None: ...


class Snapshot(Protocol):
    """Tables as of one LSN, readable from as many threads as it was opened for."""

    @property
    def lsn(self) -> Lsn: ...

    @property
    def taken_at(self) -> datetime:
        """The source's clock at that LSN."""
        ...

    def schema(self, table: TableId) -> TableSchema: ...

    def identity(self, table: TableId) -> str:
        """Tells a table from another one of the name, or one of which other rows are told."""
        ...

    def chunks(self, table: TableId) -> Sequence[SnapshotChunk]:
        """What is to be read of a table.

        Raises:
            HeadraceError: it cannot be copied: somebody dropped it, for one.
        """
        ...

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
        self,
        tables: Mapping[TableId, Sequence[KeyRange] | None],
        connections: int,
        place: Callable[[Visibility], Lsn | None],
    ) -> AbstractContextManager[Snapshot]:
        """Tables as of now: the ranges given, or None: the whole table, in chunks that tile it.

        A source that cannot tell by itself which LSN a snapshot is as of asks `place` for it.
        Either all chunks of a table are ranges of its key, in order, or none is.
        """
        ...


class Content(Protocol):
    """A table's rows as of one moment, to be compared with others."""

    @property
    def schema(self) -> TableSchema:
        """The columns in the types that the destination holds them in."""
        ...

    def rows(self) -> Iterator[pa.Table]:
        """All rows, in pieces and in no order; the same ones each time."""
        ...

    def held(self, rows: pa.Table) -> pa.Table:
        """Rows of the source in the types of `schema`."""
        ...


class DestinationTable(Protocol):
    """One table at a destination, written by one thread."""

    def checkpoint(self, log_id: str) -> Checkpoint | None:
        """Where this table stands in that log; None if it never took anything from it."""
        ...

    def held(self) -> str | None:
        """Why the table is to be left alone (its last rebuild was undone), or None."""
        ...

    def load(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        """Replace the whole content by snapshot files, in one commit that holds the checkpoint."""
        ...

    def apply(self, changes: NetChanges, to: Checkpoint, before: Iterable[NetChanges] = ()) -> None:
        """Apply changes and checkpoint in one commit; at or before the checkpoint, do nothing.

        `before` are parts of the changes that come first, where memory does not hold all at once.
        Each is made when those before it are applied; nobody but `HistoryTable.standing` sees them
        before the commit, nor anybody after an error. They may be asked for anew, from the first.
        """
        ...

    def retry_waiting(self) -> int:
        """Apply parked rows that can stand by now, as the rows that they refer to have come, or
        those that referred to them have gone; how many others are left to wait for that."""
        ...

    def rest(self) -> float:
        """Seconds that should pass between the last commit and the next, for its readers' sake."""
        ...

    def settle(self) -> None:
        """End what is under way beside the commits, when no more of them are to come for now."""
        ...

    def evolve(self, schema: TableSchema) -> None:
        """Follow the source's columns, before rows come that have them.

        Raises:
            UnsupportedSchemaChangeError: the table cannot, or its user does not want it to.
        """
        ...


@runtime_checkable
class HistoryTable(DestinationTable, Protocol):
    """A table that can keep every version of its rows."""

    def standing(
        self, schema: TableSchema, keys: pa.Table, since: datetime
    ) -> tuple[npt.NDArray[np.intp], pa.Table]:
        """The current versions under `keys`, and of keys without one those that ended at `since` or
        later: positions in `keys`, and rows of `schema`, in the types that the table holds."""
        ...


@runtime_checkable
class MendableTable(Protocol):
    """A table whose content can be compared with a snapshot, and changed by what differs."""

    def follows(self) -> str | None:
        """The id of the change log that its content comes from; None where it holds none."""
        ...

    def content(self, schema: TableSchema) -> Content | None:
        """What the table holds, if differences from it can be written; None: only `load` will do.

        Raises:
            DestinationError: it cannot be read.
        """
        ...

    def mend(self, changes: NetChanges, at: Checkpoint, basis: Content) -> None:
        """Make `changes` to the content `basis`, in one commit that puts the table at `at`, of
        whatever change log it was before.

        Raises:
            DestinationConflictError: the table no longer is what `basis` was read from.
        """
        ...


# -- tables with versions, and the destinations that they are synced to ----------------------------


class VersionedTable(Protocol):
    """One table whose log is its own versions; used from one thread but for `wake`."""

    @property
    def name(self) -> TableId: ...

    def head(self) -> TableVersion:
        """The newest version now.

        Raises:
            TableNotFoundError: there is no table.
            SourceUnavailableError: the storage cannot be asked for now.
        """
        ...

    def await_newer(self, than: int, timeout: float) -> bool:
        """Wait until there is a version after `than`; False when `timeout` seconds are over."""
        ...

    def wake(self) -> None:
        """Make a waiting `await_newer` return; from any thread."""
        ...

    def schema(self, version: int) -> TableSchema:
        """The schema as of a version, with the key that the user declared."""
        ...

    def rows(self, version: int) -> Sequence[RowPart]:
        """The whole table as of a version, in parts that can be read side by side."""
        ...

    def plan(self, after: Checkpoint, to: int) -> FeedPlan:
        """How to come from `after` (`after.commit` is applied) to version `to`, both of the log.

        Everything that the range needs is looked for before it is promised.
        """
        ...

    def changes(self, schema: TableSchema, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """The feed's rows of a range, both ends inclusive, in no order: `schema`'s columns, then
        FEED_COLUMNS."""
        ...

    def file_diff(self, after: Checkpoint, to: int) -> FileDiff | None:
        """What the files of two versions differ by; None where the older one is not known."""
        ...


class SyncedTable(DestinationTable, Protocol):
    """A destination's table that can be built anew, and read back.

    Schemas that it is handed bear its own name for the table, whatever the source's is.
    """

    @property
    def name(self) -> TableId: ...

    def standing(self) -> Checkpoint | None:
        """Where the table stands, whatever log that is in; None if it never took anything from
        this pipeline."""
        ...

    def applied_schema(self) -> TableSchema | None:
        """What `replace`, `evolve` or `apply` was last given; None if it never took anything."""
        ...

    def under(self, rules: str) -> None:
        """Note these rules with every checkpoint from now on: all rows are made by them."""
        ...

    def made_by(self) -> str | None:
        """The rules that all rows are made by, as noted last; None where nobody did."""
        ...

    def prepare(self, schema: TableSchema) -> None:
        """Make the table if it is missing, else make sure that it can hold `schema`.

        Raises:
            ForeignTableError: another pipeline's table, or one with somebody else's rows.
            UnsuitableTableError: a column, type, key or constraint does not fit.
        """
        ...

    def parents(self) -> Mapping[TableId, bool]:
        """The other tables that its rows refer to, and whether each ever took anything."""
        ...

    def count(self) -> int:
        """About how many rows the table holds."""
        ...

    def replace(
        self,
        schema: TableSchema,
        parts: Sequence[RowPart],
        at: Checkpoint,
        rejected: Callable[[], Sequence[Rejected]] = tuple,
    ) -> str | None:
        """Make `parts` the whole content, atomically with the checkpoint; the former content stays
        readable until then. It can be brought back afterwards, unless the table was changed in
        place: then the reason is returned.

        `rejected` is called when all parts have been read: rows for the quarantine.
        """
        ...

    def read(self, schema: TableSchema, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The table's rows as `schema`'s Arrow types, as of one moment."""
        ...
