"""The plan of a Change Data Feed: what a range of versions needs is looked for before it is read.

PROTOCOL.md, "Change Data Files". A feed can be lost in several ways, and most of them show, if at
all, half-way through reading: so each is looked for here, and told as a `Loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from headrace.connectors.delta.changes import changed_rows
from headrace.connectors.delta.columns import Layout
from headrace.connectors.delta.files import inside, open_parquet
from headrace.connectors.delta.history import FEED, Commit, Header, TableHistory
from headrace.connectors.delta.scan import READABLE, FileRows
from headrace.connectors.delta.vectors import vector_path
from headrace.log.storage import Storage
from headrace.model import (
    Checkpoint,
    FeedPlan,
    Loss,
    LossKind,
    Segment,
    TableId,
    TableSchema,
    VersionChanges,
)

AT_ONCE: Final = 256  # commits in memory, whatever the backlog
LOOKS: Final = 16  # at files of an object store, at a time

SchemaOf = Callable[[Header], TableSchema]


def switch_on(table: TableId) -> str:
    """The SQL that switches the feed on."""
    return f"ALTER TABLE {table} SET TBLPROPERTIES ({FEED} = true)"


def plan_feed(
    table: TableId,
    history: TableHistory,
    storage: Storage,
    schema_of: SchemaOf,
    after: Checkpoint,
    to: int,
) -> FeedPlan:
    """How to come from `after` to version `to` of a table, or why the feed cannot tell.

    Raises:
        LogError, SourceError: the log or a file's footer cannot be read.
    """
    head = history.head()
    if head < after.commit:
        reason = f"version {after.commit} was applied, but the table's newest is {head}"
        return _lost(LossKind.REPLACED, reason)
    header = history.header(to)
    if header is None or header.log_id == after.log_id:
        header = _header_before(history, after.commit, to)
    if header is None:
        return _cleaned(after.commit + 1)
    if header.log_id != after.log_id:
        return _lost(LossKind.REPLACED, _other_table(header, after))
    if history.is_another(after):
        reason = f"version {after.commit} is not the one that was applied: the table was put back"
        return _lost(LossKind.REPLACED, reason)
    walk = _Walk(table, storage, schema_of, after, header)
    for first in range(after.commit + 1, to + 1, AT_ONCE):
        commits = history.commits(first, min(first + AT_ONCE - 1, to))
        if None in commits:
            return _cleaned(first + commits.index(None))
        loss = walk.take([commit for commit in commits if commit is not None])
        if loss is not None:
            return FeedPlan(loss=loss)
    return FeedPlan(walk.planned())


def _lost(kind: LossKind, reason: str, hint: str = "") -> FeedPlan:
    return FeedPlan(loss=Loss(kind, reason, hint))


def _other_table(header: Header, after: Checkpoint) -> str:
    return f"the table's id is {header.log_id}, and changes of {after.log_id} were applied"


def _cleaned(version: int) -> FeedPlan:
    return _lost(
        LossKind.LOG_CLEANED,
        f"the Delta log no longer has version {version}",
        "raise delta.logRetentionDuration, or sync more often",
    )


def _header_before(history: TableHistory, before: int, to: int) -> Header | None:
    """What held before a range; where its own log is gone, what holds after it, if unchanged."""
    header = history.header(before)
    if header is not None:
        return header
    commits = (history.commit(version) for version in range(before + 1, to + 1))
    changed = any(commit is None or any(commit.of("metaData")) for commit in commits)
    return None if changed else history.header(to)


@dataclass
class _Walk:
    """The segments of a range, grown by some commits at a time."""

    table: TableId
    storage: Storage
    schema_of: SchemaOf
    after: Checkpoint
    header: Header
    segments: list[tuple[TableSchema, list[tuple[int, datetime]]]] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)  # of the feed, by version

    def take(self, commits: Sequence[Commit]) -> Loss | None:
        for commit in commits:
            before, self.header = self.header, self.header.after(commit)
            loss = self._unreadable(commit) or self._grow(before, commit)
            if loss is not None:
                return loss
        return self._look(commits)

    def _unreadable(self, commit: Commit) -> Loss | None:
        """Why a version's changes cannot be had, whatever its files are."""
        header, at = self.header, f"at version {commit.version}"
        if header.log_id != self.after.log_id:
            return Loss(LossKind.REPLACED, f"{at} {_other_table(header, self.after)}")
        if commit.info.get("operation") == "RESTORE":
            return Loss(LossKind.RESTORED, f"{at} RESTORE put former files back")
        if not header.has_feed:
            reason = f"{at} the Change Data Feed is off"
            return Loss(LossKind.FEED_OFF, reason, switch_on(self.table))
        unknown = header.reader_features - READABLE
        if unknown:
            return Loss(LossKind.UNSUPPORTED, f"{at} the table uses {', '.join(sorted(unknown))}")
        partitions = header.metadata.get("partitionColumns")
        if partitions and any(f.get("partitionValues") is None for f in commit.changed("remove")):
            return Loss(LossKind.UNSUPPORTED, f"{at} the partition of removed files is not told")
        return None

    def _grow(self, before: Header, commit: Commit) -> Loss | None:
        """Into the last segment, or into one of its own."""
        version = (commit.version, commit.time)
        if self.segments and self.header.metadata is before.metadata:
            self.segments[-1][1].append(version)
            return None
        schema = self.schema_of(self.header)
        if not set(schema.key) <= set(schema.names):
            gone = ", ".join(sorted(set(schema.key) - set(schema.names)))
            return Loss(LossKind.UNSUPPORTED, f"version {commit.version} has no column {gone}")
        if not self.segments or self.segments[-1][0].columns != schema.columns:
            self.segments.append((schema, []))
        self.segments[-1][1].append(version)
        return _reshaped(before, self.header, schema.key, commit)

    def _look(self, commits: Sequence[Commit]) -> Loss | None:
        """At the files of some commits, and at how many rows they hold."""
        changes = [change for commit in commits for change in changed_rows(commit)]
        paths = (path for change in changes for path in paths_of(change.piece))
        missing = missing_files(self.storage, paths)
        if missing:
            return Loss(
                LossKind.FILES_GONE,
                f"files that hold the changes are gone ({len(missing)}), such as {missing[0]}",
                "VACUUM with a longer retention, or sync more often",
            )
        with ThreadPoolExecutor(LOOKS) as pool:
            rows = pool.map(lambda commit: _feed_rows(self.storage, commit), commits)
            self.rows.update(zip((commit.version for commit in commits), rows, strict=True))
        return None

    def planned(self) -> tuple[Segment, ...]:
        return tuple(
            Segment(schema, tuple(VersionChanges(n, time, self.rows[n]) for n, time in versions))
            for schema, versions in self.segments
        )


def _reshaped(old: Header, new: Header, key: Sequence[str], commit: Commit) -> Loss | None:
    """Rows that go in the very commit that changes columns are read by the new columns: a key that
    the old files lack would be null, a type that changed would not fit."""
    if not any(change.kind != "insert" for change in changed_rows(commit)):
        return None
    before, after = Layout.of(old.metadata), Layout.of(new.metadata)
    types = {before.place_of(column): column.type for column in before.columns}
    unfit = [
        column.name
        for column in after.columns
        if types.get(after.place_of(column), None if column.name in key else column.type)
        != column.type
    ]
    if not unfit:
        return None
    named = ", ".join(sorted(unfit))
    return Loss(
        LossKind.UNSUPPORTED,
        f"version {commit.version} replaced rows and at the same time the columns {named}",
    )


# -- the files of a range --------------------------------------------------------------------------


def paths_of(piece: FileRows) -> Iterator[str]:
    """What rows of a file are read from, as the log writes it; a deletion vector that stands in
    the log itself is in no file."""
    yield piece.add["path"]
    for vector in piece.vectors:
        if vector["storageType"] == "u":
            yield vector_path(vector["pathOrInlineDv"])
        elif vector["storageType"] == "p":
            yield vector["pathOrInlineDv"]


def missing_files(storage: Storage, paths: Iterable[str]) -> list[str]:
    """Those of some paths, as the log writes them, under which there is nothing."""
    wanted = sorted(set(paths))
    with ThreadPoolExecutor(LOOKS) as pool:
        there = pool.map(lambda path: storage.exists(inside(storage, path)), wanted)
        return [path for path, exists in zip(wanted, there, strict=True) if not exists]


def _feed_rows(storage: Storage, commit: Commit) -> int:
    """Rows of the feed of a version: by statistics, else by footers."""
    total = 0
    for change in changed_rows(commit):
        rows = change.piece.rows
        if rows is None:
            with open_parquet(storage, change.piece.add["path"]) as parquet:
                rows = int(parquet.metadata.num_rows)
        total += rows
    return total
