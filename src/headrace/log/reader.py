"""Readers of a change log: they follow its commits and read its files, and lock nothing.

A reader in the writer's process shares a LogFeed with it and finds the newest commits in memory;
any other reader polls. Readers are independent of each other; one reader serves several threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn, Self, TypeVar

import pyarrow as pa

from headrace.errors import LogCorruptError, LogError, LogGapError, ObjectMissingError
from headrace.log.documents import (
    Floor,
    check_continuous,
    list_commits,
    read_floor,
    read_identity,
    read_manifest,
    read_schema,
)
from headrace.log.feed import LogFeed
from headrace.log.layout import Layout, staged_under
from headrace.log.manifest import LogFile, Manifest, SnapshotEvent, SnapshotFile
from headrace.log.parquet import read_changes, read_rows
from headrace.log.retention import forget_position, read_position, write_position
from headrace.log.storage import Storage
from headrace.log.unfinished import UnfinishedCopy, read_unfinished
from headrace.model import ChangeBatch, TableId, TableSchema

K = TypeVar("K")
T = TypeVar("T")

_SLOW: Final = 0.01  # seconds for a request, from where on several at a time pay
_REQUESTS: Final = 16

_RESYNC: Final = "headrace resync the tables that were left behind"


class LogReader:
    """A view on one capture's change log."""

    def __init__(self, storage: Storage, layout: Layout, log_id: str, feed: LogFeed | None) -> None:
        self.storage, self.layout, self.log_id = storage, layout, log_id
        self._feed = feed
        self._known: int | None = None
        self._schemas: dict[tuple[TableId, int], TableSchema] = {}
        self._closed = threading.Event()

    @classmethod
    def open(cls, storage: Storage, capture: str, *, feed: LogFeed | None = None) -> Self:
        """Raises LogError if no capture has begun this log yet."""
        layout = Layout(capture)
        try:
            log_id = read_identity(storage, layout)
        except ObjectMissingError as error:
            raise LogError(
                f"there is no change log at {storage.location(layout.root)}", hint="headrace run"
            ) from error
        return cls(storage, layout, log_id, feed)

    # -- commits -----------------------------------------------------------------------------------

    @property
    def floor(self) -> int:
        """The newest commit that retention has removed; 0 if none."""
        return read_floor(self.storage, self.layout).commit

    def head(self) -> int:
        """The newest commit's number; `floor` while there is none.

        Raises:
            LogCorruptError: a commit between floor and head is missing.
        """
        live = self._live()
        if live is not None:
            return live
        if self._known is None:
            numbers = list_commits(self.storage, self.layout)
            floor = read_floor(self.storage, self.layout)
            where = self.storage.location(self.layout.commits)
            self._known = check_continuous(numbers, floor, where)
        while self._exists(self._known + 1):
            self._known += 1
        return self._known

    def manifests(self, after: int, up_to: int | None = None) -> Iterator[Manifest]:
        """The commits that follow `after`, in order, as far as they exist, or to `up_to`.

        Raises:
            LogGapError: retention has removed some of them.
            LogCorruptError: one is missing or damaged.
        """
        number, window = after + 1, 1
        while up_to is None or number <= up_to:
            known = self._live() if up_to is None else up_to
            last = number + window - 1
            last = last if known is None else max(min(last, known), number)
            for manifest in self._map(self._manifest, range(number, last + 1)):
                if manifest is None:
                    self._check_end(number, required=up_to is not None)
                    return
                yield manifest
                number += 1
            window = min(window * 2, _REQUESTS)

    def _map(self, function: Callable[[K], T], items: Sequence[K]) -> Iterator[T]:
        """Do requests side by side where they take long; in order."""
        if len(items) < 2 or self.storage.latency < _SLOW:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(min(_REQUESTS, len(items))) as pool:
            yield from pool.map(function, items)

    def _manifest(self, number: int) -> Manifest | None:
        recent = self._feed.manifest(number) if self._feed else None
        if recent is not None:
            return recent
        live = self._live()
        if live is not None and number > live:
            return None
        try:
            manifest = read_manifest(self.storage, self.layout, number)
        except ObjectMissingError:
            return None
        if manifest.log_id != self.log_id:
            raise LogCorruptError(
                f"commit {number} belongs to change log {manifest.log_id}, not {self.log_id}",
                hint=_RESYNC,
            )
        return manifest

    def _check_end(self, number: int, *, required: bool) -> None:
        """Tell the end of the log, after which nothing is, from a commit that is gone."""
        live = self._live()
        if live is not None and number > live and not required:
            return
        floor = read_floor(self.storage, self.layout)
        if number <= floor.commit:
            raise LogGapError(
                f"commit {number} was removed by retention; the log begins after {floor.commit}",
                hint=_RESYNC,
            )
        # A commit may have been put since it was looked for; then it is there now.
        if (required or self._exists(number + 1)) and not self._exists(number):
            raise LogCorruptError(
                f"{self.storage.location(self.layout.manifest(number))} is missing",
                hint="restore it from a backup, or resync",
            )

    def _live(self) -> int | None:
        """The head, where a writer in this process tells it."""
        return self._feed.head if self._feed else None

    def _exists(self, number: int) -> bool:
        return self.storage.exists(self.layout.manifest(number))

    def wait(self, after: int, timeout: float) -> bool:
        """Whether a commit after `after` exists, waiting up to `timeout` seconds for it."""
        if self._feed is not None and self._live() is not None:
            return self._feed.wait(after, timeout, self._closed)
        deadline = time.monotonic() + timeout
        pause = self.storage.latency
        while not self._exists(after + 1):
            left = deadline - time.monotonic()
            if left <= 0 or self._closed.wait(min(pause, left)):
                return False
            pause = min(pause * 2, self.storage.latency * 50)  # at most 2 % of the time is requests
        return True

    # -- files -------------------------------------------------------------------------------------

    def read(self, file: LogFile) -> Sequence[ChangeBatch]:
        """A file's changes, with the transaction filled in that the manifest tells.

        Raises:
            LogGapError: retention has removed it.
            LogCorruptError: it is missing, damaged, or not what its manifest says.
        """
        held = self._feed.batch(file.path) if self._feed else None
        if held is not None:
            return [held]
        schema = self.schema(file.table, file.schema_version)
        table = self._table(file, schema, None)
        return [ChangeBatch(schema, batch) for batch in table.to_batches()]

    def read_all(self, files: Sequence[LogFile]) -> list[ChangeBatch]:
        """The changes of several files, file by file; see `read`."""
        return [batch for batches in self._map(self.read, files) for batch in batches]

    def read_columns(self, file: LogFile, columns: Sequence[str]) -> pa.Table:
        """Some columns of a file; see `read`."""
        return self._table(file, self.schema(file.table, file.schema_version), columns)

    def _table(self, file: LogFile, schema: TableSchema, columns: Sequence[str] | None) -> pa.Table:
        where = self.storage.location(file.path)
        data = self._there(file.path, lambda: self.storage.get(file.path))
        table = read_changes(data, schema, file.transaction, columns, where)
        if table.num_rows != file.rows:
            raise LogCorruptError(
                f"{where} has {table.num_rows} rows, its manifest says {file.rows}", hint=_RESYNC
            )
        return table

    def _there(self, path: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except ObjectMissingError as error:
            self._missing(path, error)

    def _missing(self, path: str, error: ObjectMissingError | None) -> NoReturn:
        """A file that a manifest names is gone: by retention, or by somebody's hand."""
        floor = read_floor(self.storage, self.layout)
        if _may_be_removed(path, floor):
            raise LogGapError(f"{path} was removed by retention", hint=_RESYNC) from error
        raise LogCorruptError(
            f"{self.storage.location(path)} is missing, and a manifest names it", hint=_RESYNC
        ) from error

    def schema(self, table: TableId, version: int) -> TableSchema:
        """A version of a table's schema. Raises LogCorruptError if the log does not hold it."""
        found = self._schemas.get((table, version))
        if found is None:
            path = self.layout.schema(table, version)
            found = self._there(path, lambda: read_schema(self.storage, path))
            self._schemas[(table, version)] = found
        return found

    def snapshot_files(self, event: SnapshotEvent) -> list[str]:
        """Paths or URLs of a snapshot's Parquet files. Raises LogGapError if they are removed."""
        for file in event.files:
            if not self.storage.exists(file.path):
                self._missing(file.path, None)
        return [self.storage.location(file.path) for file in event.files]

    def snapshot_rows(self, event: SnapshotEvent) -> Iterator[pa.Table]:
        """A snapshot's rows, a batch at a time; raises as `snapshot_files` does."""
        schema = self.schema(event.table, event.schema_version)
        for file in event.files:
            yield from self.snapshot_file(schema, file)

    def snapshot_file(
        self, schema: TableSchema, file: SnapshotFile, columns: Sequence[str] = ()
    ) -> Iterator[pa.Table]:
        """The rows of one file of a snapshot, or some columns of them; see `snapshot_rows`."""
        wanted = schema.arrow()
        if columns:
            wanted = pa.schema([wanted.field(name) for name in columns])
        try:
            with self.storage.open(file.path) as data:
                yield from read_rows(data, wanted, self.storage.location(file.path))
        except ObjectMissingError as error:
            self._missing(file.path, error)

    def unfinished(self) -> Mapping[TableId, UnfinishedCopy]:
        """Copies of tables that are not complete, as far as their ranges are."""
        return read_unfinished(self.storage, self.layout)

    # -- positions ---------------------------------------------------------------------------------

    def position(self, name: str) -> dict[str, Any] | None:
        """What `record_position` recorded last under this name."""
        return read_position(self.storage, self.layout, name)

    def record_position(self, name: str, position: Mapping[str, Any]) -> None:
        """Register as a reader that retention waits for; see `retention.write_position`."""
        write_position(self.storage, self.layout, name, position)

    def forget_position(self, name: str) -> None:
        """Unregister: retention waits for this name no longer."""
        forget_position(self.storage, self.layout, name)

    def close(self) -> None:
        """End every `wait`, now and later; all else still works."""
        self._closed.set()
        if self._feed is not None:
            self._feed.interrupt()


def _may_be_removed(path: str, floor: Floor) -> bool:
    begun = staged_under(path)
    return begun is not None and begun <= max(floor.commit, floor.snapshots)
