"""The one writer of a change log: stages files, then commits them by one manifest. DESIGN.md §6.

Threads: every method may be called from any thread at any time; commits happen one after the other.
A draft may name files that other threads staged, once `stage` has returned there.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace import failpoints
from headrace.errors import LogError, LogLockedError, LogUnavailableError, ObjectExistsError
from headrace.log.documents import (
    Floor,
    latest_schemas,
    read_manifest,
    read_schema,
    write_schemas,
)
from headrace.log.feed import LogFeed
from headrace.log.layout import Layout
from headrace.log.lock import Lock
from headrace.log.manifest import (
    CommitDraft,
    LogFile,
    Manifest,
    SchemaChange,
    SnapshotFile,
    encode,
)
from headrace.log.parquet import RowWriter, count_ops, lsn_range, read_changes, write_changes
from headrace.log.recovery import Recovered, recover, sweep
from headrace.log.staging import Staging
from headrace.log.storage import Storage
from headrace.log.unfinished import (
    UnfinishedCopy,
    read_unfinished,
    still_valid,
    write_unfinished,
)
from headrace.model import XID, ChangeBatch, Lsn, TableId, TableSchema

# Snapshot files become data files of tables, and every Parquet reader there is reads Snappy.
SNAPSHOT_COMPRESSION: Final = "snappy"

# Files that are written together: all are open at once, and a process may often have no more than
# 1,024 descriptors.
AT_ONCE: Final = 128


T = TypeVar("T")


class SnapshotChunkWriter:
    """One file of a snapshot, written by one thread; `file` tells of it after a clean end."""

    def __init__(self, rows: RowWriter) -> None:
        self._rows = rows
        self.written: SnapshotFile | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows in the table's columns. Raises LogError, LogFullError."""
        self._rows.write(batch)

    @property
    def file(self) -> SnapshotFile:
        if self.written is None:
            raise LogError("this chunk of a snapshot is not complete")
        return self.written


class LogWriter:
    """Holds the lock of one capture's change log from `open` to `close`."""

    def __init__(
        self,
        storage: Storage,
        layout: Layout,
        lock: Lock,
        recovered: Recovered,
        feed: LogFeed,
        compression: str,
    ) -> None:
        self.storage, self.layout, self.feed = storage, layout, feed
        self.log_id = recovered.log_id
        self._lock = lock
        self._floor = recovered.floor
        self._head = recovered.head
        self._token = str(uuid.uuid4())
        self._compression = compression
        self._committing = threading.Lock()
        self._recording = threading.Lock()  # of schemas
        self._unfinished = read_unfinished(storage, layout)
        self._staging = self._nothing_staged()
        self._schemas: list[SchemaChange] = []

    @classmethod
    def open(
        cls,
        storage: Storage,
        capture: str,
        *,
        feed: LogFeed | None = None,
        snapshot_compression: str = SNAPSHOT_COMPRESSION,
    ) -> Self:
        """Take the lock, find the head, sweep what no manifest names; begin the log if it is new.

        Raises:
            LogLockedError: another process writes it; the error says which.
            LogCorruptError: a commit is missing or damaged.
        """
        layout = Layout(capture)
        lock = storage.lock(layout.lock)
        try:
            recovered = recover(storage, layout)
            log = cls(storage, layout, lock, recovered, feed or LogFeed(), snapshot_compression)
            if lock.took_over:
                log._fence()
            log._sweep(recovered.floor)
        except BaseException:
            lock.release()
            raise
        log.feed.attach(log._next - 1)
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> Manifest | None:
        """The newest commit; None while the log has none."""
        return self._head

    @property
    def position(self) -> Lsn | None:
        """How far the log durably holds the source; None where it has nothing of the stream."""
        return (self._head.to_lsn or None) if self._head else None

    @property
    def _next(self) -> int:
        return (self._head.commit if self._head else self._floor.commit) + 1

    # -- staging -----------------------------------------------------------------------------------

    def stage(self, batch: ChangeBatch) -> LogFile:
        """Write one batch durably, still invisible; see `stage_all`."""
        return self.stage_all([batch])[0]

    def stage_all(self, batches: Sequence[ChangeBatch]) -> list[LogFile]:
        """Write batches durably, a file each, still invisible; cheaper together than one by one.

        Batches of a transaction in progress (null `_commit_lsn`) give files whose `transaction` has
        to be set before they are committed. Empty batches are not allowed.

        Raises:
            LogFullError: no room; nothing is left behind.
        """
        self._lock.check()
        paths = [self._staging.begin(partial(self.layout.changes, b.schema.table)) for b in batches]
        try:
            named = list(zip(batches, paths, strict=True))
            files = [file for group in _groups(named) for file in self._write(group)]
        except BaseException:
            self._forget(paths)
            raise
        failpoints.hit("log.file_renamed")
        for file, batch in zip(files, batches, strict=True):
            if file.max_lsn is not None:  # else it lives long, and is read with its transaction
                self._staging.hold(file.path, batch)
        return files

    def without(self, file: LogFile, xids: npt.NDArray[np.uint32]) -> LogFile | None:
        """A staged file of a transaction in progress, written anew without the rows that these
        subtransactions made; None where no row is left. The old file is there still.

        Raises:
            LogFullError: no room; nothing is left behind.
        """
        schema = read_schema(self.storage, self.layout.schema(file.table, file.schema_version))
        where = self.storage.location(file.path)
        table = read_changes(self.storage.get(file.path), schema, None, None, where)
        void = pc.is_in(table[XID], value_set=pa.array(xids))
        batches = table.filter(pc.invert(void)).combine_chunks().to_batches()
        return self.stage(ChangeBatch(schema, batches[0])) if batches else None

    def _write(self, named: Sequence[tuple[ChangeBatch, str]]) -> list[LogFile]:
        files = []
        synced = partial(failpoints.hit, "log.file_written")
        with self.storage.write(synced) as group:
            for batch, path in named:
                lsns = lsn_range(batch.data)
                file = group.open(path)
                write_changes(file, batch)
                files.append(
                    LogFile(
                        path=path,
                        table=batch.schema.table,
                        schema_version=batch.schema.version,
                        rows=batch.num_rows,
                        ops=count_ops(batch.data),
                        min_lsn=lsns and lsns[0],
                        max_lsn=lsns and lsns[1],
                        bytes=file.tell(),
                    )
                )
        return files

    @contextlib.contextmanager
    def stage_snapshot(
        self, schema: TableSchema, lsn: Lsn, chunk: int
    ) -> Iterator[SnapshotChunkWriter]:
        """Write a part of a table's snapshot; on a clean end it is durable, still invisible.

        An error inside removes the file.
        """
        self._lock.check()
        path = self._staging.begin(partial(self.layout.chunk, schema.table, lsn, chunk))
        try:
            with self.storage.write() as group:
                file = group.open(path)
                rows = RowWriter(file, schema, self._compression)
                writer = SnapshotChunkWriter(rows)
                yield writer
                rows.finish()
                size = file.tell()
        except BaseException:
            self._forget([path])
            raise
        writer.written = SnapshotFile(path, rows.rows, size)
        failpoints.hit("snapshot.chunk_written")

    def discard(self, files: Iterable[LogFile | SnapshotFile]) -> None:
        """Remove staged files that the caller commits no more.

        Those that a commit of unknown outcome names stay until the next commit tells whether it
        was made; committed ones stay for good.
        """
        self._forget(self._staging.removable(file.path for file in files))

    def _forget(self, paths: Sequence[str]) -> None:
        """Remove what nobody will name; where that fails, the next start does."""
        with contextlib.suppress(LogError):
            self._lock.check()  # the next writer gives the same names
            self.storage.delete(paths)
            self._staging.drop(paths)

    # -- copies that are not complete --------------------------------------------------------------

    @property
    def unfinished(self) -> Mapping[TableId, UnfinishedCopy]:
        return dict(self._unfinished)

    def keep(self, copy: UnfinishedCopy) -> None:
        """Have the staged files of a copy survive a restart, those it had before and has no more
        go. Once a commit holds a snapshot of the table, the copy is forgotten."""
        self._lock.check()
        former = self._unfinished.get(copy.table)
        write_unfinished(self.storage, self.layout, copy)
        self._unfinished[copy.table] = copy
        failpoints.hit("snapshot.range_kept")
        if former is not None:
            self.discard(set(former.files) - set(copy.files))

    def give_up(self, table: TableId) -> None:
        """Forget a copy, with its files as far as they are not part of the log."""
        copy = self._unfinished.pop(table, None)
        if copy is not None:
            with contextlib.suppress(LogError):  # the next start finds that its files are gone
                self._lock.check()
                self.storage.delete([self.layout.unfinished_copy(table)])
            self.discard(copy.files)

    def add_schema(self, schema: TableSchema) -> SchemaChange:
        """Record a schema version; see `add_schemas`."""
        return self.add_schemas([schema])[0]

    def add_schemas(self, schemas: Sequence[TableSchema]) -> list[SchemaChange]:
        """Record schema versions durably; the next commit tells of them.

        Raises:
            LogError: another schema has one's version number.
        """
        with self._recording:
            for group in _groups(schemas):
                write_schemas(self.storage, self.layout, group)
        changes = [SchemaChange(schema.table, schema.version) for schema in schemas]
        self._schemas.extend(change for change in changes if change not in self._schemas)
        return changes

    def latest_schemas(self) -> dict[TableId, TableSchema]:
        """The newest schema version of each table, to go on from after a restart."""
        return latest_schemas(self.storage, self.layout)

    # -- committing --------------------------------------------------------------------------------

    def commit(self, draft: CommitDraft) -> Manifest:
        """Make staged files, and the position, part of the log: all of it or nothing.

        After LogFullError or LogUnavailableError the same draft may be committed again, or another
        one whose changes begin at `position` as it stands then.

        Raises:
            LogLockedError: another writer has committed; this one must stop.
            LogUnavailableError: also where an earlier commit, of unknown outcome, turns out to have
                been made: `position` has moved.
            LogError: the draft goes back, repeats changes, or names files that are not staged.
        """
        self._lock.check()
        with self._committing:
            manifest = self._manifest(draft)
            found = self._put(manifest)
            self._head = found
            del self._schemas[: len(found.schemas)]
            self.feed.publish(found, self._staging.committed(found.paths))
            self._forget(self._staging.unwanted())
            for event in found.snapshots:
                self.give_up(event.table)
            _require_same(found, manifest)
            return found

    def _manifest(self, draft: CommitDraft) -> Manifest:
        position = self._head.to_lsn if self._head else Lsn(0)
        manifest = Manifest(
            commit=self._next,
            log_id=self.log_id,
            writer=self._token,
            settled=0,
            from_lsn=position,
            to_lsn=position if draft.to_lsn is None else draft.to_lsn,
            commit_ts=draft.commit_ts,
            written_at=datetime.now(UTC),
            files=tuple(draft.files),
            schemas=tuple(self._schemas),
            snapshots=tuple(draft.snapshots),
            stopped=tuple(draft.stopped),
        )
        _check_range(manifest)
        return replace(manifest, settled=self._staging.settled(manifest.paths))

    def _put(self, manifest: Manifest) -> Manifest:
        """Put a manifest; gives the one that stands there now, which this writer made."""
        path = self.layout.manifest(manifest.commit)
        self._staging.doubt(manifest.paths)
        try:
            self.storage.put(path, encode(manifest), create=True)
        except ObjectExistsError as error:
            found = read_manifest(self.storage, self.layout, manifest.commit)
            if found.writer == self._token:
                return found  # an earlier put succeeded without our knowing it
            raise LogLockedError(
                f"{self.storage.location(path)} was put by another writer",
                hint="stop the other process; this one goes on after a restart",
            ) from error
        failpoints.hit("log.manifest_put")
        return manifest

    def _fence(self) -> None:
        """Take the next commit number, so that a former writer that still runs fails at its next.

        Else it could commit files that are swept here.
        """
        while True:
            try:
                self.commit(CommitDraft(None))
            except LogLockedError:
                self._head = read_manifest(self.storage, self.layout, self._next)
                self._staging = self._nothing_staged()
            else:
                return

    def _nothing_staged(self) -> Staging:
        """Nothing but what an earlier writer kept."""
        staging = Staging(self._next, self.feed.limit)
        staging.adopt(f.path for copy in self._unfinished.values() for f in copy.files)
        return staging

    def _sweep(self, floor: Floor) -> None:
        """Remove what nothing names, copies that cannot be gone on with among it."""
        known = self._unfinished.values()
        self._unfinished = still_valid(self.storage, self.layout, known, floor, self._head)
        self._staging = self._nothing_staged()
        kept = {f.path for copy in self._unfinished.values() for f in copy.files}
        sweep(self.storage, self.layout, floor, self._head, kept)

    def close(self) -> None:
        """Let go of the lock; staged files are left to the next start's sweep."""
        self.feed.detach()
        self._lock.release()


def _groups(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """What is written together, a file each."""
    return (items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE))


def _require_same(found: Manifest, meant: Manifest) -> None:
    """Tell the caller that an earlier draft was committed; the same one differs in times only."""
    if replace(found, written_at=meant.written_at, settled=meant.settled) != meant:
        raise LogUnavailableError(
            f"commit {found.commit} was made after all when its put failed; its changes are not "
            "to be committed again",
            hint="Headrace goes on after it by itself",
        )


def _check_range(manifest: Manifest) -> None:
    """Refuse what would break invariant 2: going back, repeating, or half a transaction."""
    first, last = manifest.from_lsn, manifest.to_lsn
    if last < first:
        raise LogError(f"a commit up to {last} would go back: the log stands at {first}")
    for file in manifest.files:
        if file.first_lsn is None or file.last_lsn is None:
            raise LogError(f"{file.path} belongs to a transaction that has not committed")
        if not first < file.first_lsn <= file.last_lsn <= last:
            raise LogError(
                f"{file.path} holds changes from {file.first_lsn} to {file.last_lsn}, "
                f"outside of the commit's range: after {first}, up to {last}"
            )
