"""The versions of a Delta table, as its log tells them: commits, metadata, and what is still known.

PROTOCOL.md, "Delta Log Entries", "Action Reconciliation" and "In-Commit Timestamps". Commits are
read once and remembered for a while, so that following a table costs one request a version; which
files a version has is worked out only when it is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Lock
from typing import Any, Final, TypeVar

from headrace.connectors.delta.actions import Action, decode, log_path
from headrace.connectors.delta.checkpoints import (
    EVERYTHING,
    HEADER,
    LOG,
    checkpoints_by_uuid,
    classic_checkpoints,
    read_checkpoint,
    with_sidecars,
)
from headrace.connectors.delta.state import TableState, commit_versions
from headrace.errors import HistoryLostError, ObjectMissingError, SourceError, TableNotFoundError
from headrace.log.storage import Storage
from headrace.model import Checkpoint

_T = TypeVar("_T")

FEED: Final = "delta.enableChangeDataFeed"

LOOKS: Final = 16  # commits read at a time: on an object store a request each
_COMMITS: Final = 64  # kept in memory; more than a continuous pipeline is ever behind
_LATEST: Final = 253_402_300_799_999  # the end of the year 9999, as datetime knows no later one
_HEADERS: Final = 4096  # a reference each: most versions share one


@dataclass(frozen=True)
class Commit:
    """The actions of one version."""

    version: int
    actions: Sequence[Action]

    def of(self, kind: str) -> Iterator[Mapping[str, Any]]:
        return (action[kind] for action in self.actions if kind in action)

    def changed(self, kind: str) -> Iterator[Mapping[str, Any]]:
        """Its add or remove actions that change data: compaction does not."""
        return (file for file in self.of(kind) if file.get("dataChange", True))

    @property
    def info(self) -> Mapping[str, Any]:
        return next(self.of("commitInfo"), {})

    @property
    def time(self) -> datetime:
        """In-commit timestamp, else what the writer put down, else the newest of its files."""
        return datetime.fromtimestamp(self.milliseconds / 1000, UTC)

    @property
    def milliseconds(self) -> int:
        """The same, since 1970."""
        stamp = self.info.get("inCommitTimestamp") or self.info.get("timestamp")
        files = [file.get("modificationTime") for file in self.of("add")]
        files += [file.get("deletionTimestamp") for file in self.of("remove")]
        newest = int(stamp or max((time for time in files if time), default=0))
        return min(max(newest, 0), _LATEST)  # some writers count in other units


@dataclass(frozen=True)
class Header:
    """What holds for a version beside its files; `since` is the version that last set metadata."""

    protocol: Mapping[str, Any]
    metadata: Mapping[str, Any]
    since: int

    def after(self, commit: Commit) -> Header:
        metadata, protocol = next(commit.of("metaData"), None), next(commit.of("protocol"), None)
        header = self if protocol is None else replace(self, protocol=protocol)
        if metadata is None:
            return header
        return replace(header, metadata=metadata, since=commit.version)

    @property
    def log_id(self) -> str:
        return str(self.metadata["id"])

    @property
    def configuration(self) -> Mapping[str, str]:
        return self.metadata.get("configuration") or {}

    @property
    def has_feed(self) -> bool:
        return self.configuration.get(FEED, "").lower() == "true"

    @property
    def reader_features(self) -> frozenset[str]:
        return frozenset(self.protocol.get("readerFeatures") or ())


class TableHistory:
    """The log below the root of a storage; from one thread, `storage` is asked anew each time."""

    def __init__(self, storage: Callable[[], Storage]) -> None:
        self._storage = storage
        self._commits: OrderedDict[int, Commit] = OrderedDict()
        self._headers: OrderedDict[int, Header] = OrderedDict()
        self._lock = Lock()  # commits are read side by side
        self._head = -1
        self._head_bytes = b""

    def head(self) -> int:
        """The newest version.

        What was known is forgotten where the newest commit is not what it was: another table has
        taken the place of this one.

        Raises:
            TableNotFoundError: there is no table.
            LogError: the log cannot be read.
        """
        if self._head < 0 or not self._still_stands():
            self._forget()
            self._head = self._newest_listed()
        while (commit := self._read(self._head + 1)) is not None:
            self._head = commit.version
        return self._head

    def has(self, version: int) -> bool:
        """Whether there is a commit of a version: one cheap request."""
        return self._storage().exists(log_path(version))

    def commit(self, version: int) -> Commit | None:
        """A version's commit; None where the log no longer has it.

        Raises:
            SourceError: it is damaged.
            LogError: it cannot be read.
        """
        known = self._commits.get(version)
        return known if known is not None else self._read(version)

    def commits(self, first: int, last: int) -> list[Commit | None]:
        """Commits of a range, both ends inclusive, as `commit` gives each; read side by side."""
        with ThreadPoolExecutor(LOOKS) as pool:
            return list(pool.map(self.commit, range(first, last + 1)))

    def oldest(self) -> int:
        """The oldest version that the log still tells whole.

        Raises:
            TableNotFoundError: there is no table.
            LogError: the log cannot be read.
        """
        commits, checkpoints = self._listed()
        if commits[:1] == [0]:
            return 0
        if not checkpoints:
            raise TableNotFoundError(f"there is no Delta table at {self._storage().url}")
        return min(checkpoints)

    def is_another(self, than: Checkpoint) -> bool:
        """Whether the commit that a checkpoint names is not the one that was applied: the table was
        put back to an older state of its files, say from a backup, and written on from there."""
        commit = self.commit(than.commit)
        known = int(than.lsn) not in (0, than.commit)
        return known and commit is not None and commit.milliseconds != int(than.lsn)

    def header(self, version: int) -> Header | None:
        """Protocol and metadata as of a version; None where the log no longer tells them."""
        known = self._headers.get(version)
        if known is not None:
            return known
        before = self._headers.get(version - 1)
        commit = None if before is None else self.commit(version)
        if before is None or commit is None:
            return self._header_from_checkpoint(version)
        return self._remember(version, before.after(commit))

    def state(self, version: int) -> TableState | None:
        """Everything as of a version, its files too; None where the log no longer tells it."""
        start = self._start(version)
        if start is None:
            return None
        state = TableState()
        at, paths = start
        if paths:
            found = read_checkpoint(self._storage(), paths, EVERYTHING)
            state.replay(at, with_sidecars(self._storage(), found))
        for number in range(at + 1, version + 1):
            commit = self.commit(number)
            if commit is None:
                return None
            state.replay(number, commit.actions)
        return state if state.metadata and state.protocol else None

    # -- reading -----------------------------------------------------------------------------------

    def _still_stands(self) -> bool:
        try:
            return self._storage().get(log_path(self._head)) == self._head_bytes
        except ObjectMissingError:
            return False

    def _forget(self) -> None:
        self._head, self._head_bytes = -1, b""
        self._commits.clear()
        self._headers.clear()

    def _listed(self) -> tuple[list[int], Mapping[int, Sequence[str]]]:
        """The versions that have a commit, and the files of each checkpoint."""
        paths = [entry.path for entry in self._storage().list(LOG)]
        return commit_versions(paths), checkpoints_by_uuid(paths) | classic_checkpoints(paths)

    def _newest_listed(self) -> int:
        commits, checkpoints = self._listed()
        newest = max([*commits, *checkpoints], default=-1)
        if newest < 0:
            raise TableNotFoundError(f"there is no Delta table at {self._storage().url}")
        self._read(newest)
        return newest

    def _read(self, version: int) -> Commit | None:
        try:
            data = self._storage().get(log_path(version))
        except ObjectMissingError:
            return None
        try:
            commit = Commit(version, _decoded(data))
        except ValueError as error:
            where = self._storage().location(log_path(version))
            raise SourceError(
                f"{where} is damaged: {error}", hint="restore it from a backup", path=where
            ) from error
        with self._lock:
            if version >= self._head:
                self._head_bytes = data
            _put(self._commits, version, commit, _COMMITS)
        return commit

    def _remember(self, version: int, header: Header) -> Header:
        _put(self._headers, version, header, _HEADERS)
        return header

    def _start(self, version: int) -> tuple[int, Sequence[str]] | None:
        """The newest checkpoint up to a version and its files; -1 and none for the beginning."""
        commits, checkpoints = self._listed()
        usable = [number for number in checkpoints if number <= version]
        if usable:
            return max(usable), checkpoints[max(usable)]
        return (-1, ()) if commits[:1] == [0] else None

    def _header_from_checkpoint(self, version: int) -> Header | None:
        start = self._start(version)
        if start is None:
            return None
        at, paths = start
        header = _header_of(read_checkpoint(self._storage(), paths, HEADER), at)
        for number in range(at + 1, version + 1):
            commit = self.commit(number)
            if commit is None:
                return None
            header = header.after(commit)
            self._remember(number, header)
        if not (header.metadata and header.protocol):
            return None
        return self._remember(version, header)


def _decoded(data: bytes) -> list[Action]:
    """No writer commits nothing at all: an empty file is one that is not whole yet, or any more.

    Raises:
        ValueError: the commit is damaged.
    """
    actions = decode(data)
    if not actions:
        raise ValueError("it is empty")
    return actions


def _header_of(actions: Iterable[Action], version: int) -> Header:
    return Header({}, {}, version).after(Commit(version, list(actions)))


def _put(cache: OrderedDict[int, _T], key: int, value: _T, size: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > size:
        cache.popitem(last=False)


def lost(table: object, version: int) -> HistoryLostError:
    return HistoryLostError(
        f"{table}: the Delta log no longer tells what the table was at version {version}",
        hint="raise delta.logRetentionDuration; the table is then read as it is now",
        table=str(table),
        version=version,
    )
