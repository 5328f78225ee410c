"""The Change Data Feed of a range of versions: planned before it is promised, then read.

PROTOCOL.md, "Change Data Files". The feed's reader is deltalake's, which looks for the switch of
the feed only where a version of the range sets metadata, and finds a missing file only half-way; so
everything that a range needs is looked for here first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from headrace.connectors.delta.columns import MAPPING
from headrace.connectors.delta.failures import source_errors
from headrace.connectors.delta.files import inside, open_parquet
from headrace.connectors.delta.history import FEED, Commit, Header, TableHistory
from headrace.connectors.delta.places import Place
from headrace.connectors.delta.scan import num_records
from headrace.connectors.delta.vectors import vector_path
from headrace.errors import SourceError, SourceUnavailableError
from headrace.log.storage import Storage
from headrace.model import (
    Checkpoint,
    FeedPlan,
    Loss,
    LossKind,
    Segment,
    TableSchema,
    VersionChanges,
)
from headrace.model.feed import COMMIT_VERSION, FEED_COLUMNS

# What deltalake's reader of the feed was seen to read right; it refuses the others.
_READABLE: Final = frozenset(
    {
        "columnMapping",  # the feature; not a table that uses it
        "deletionVectors",
        "timestampNtz",
        "v2Checkpoint",
        "variantType",
        "variantType-preview",
    }
)
LOOKS: Final = 16  # at files of an object store, at a time

SchemaOf = Callable[[Header], TableSchema]
FileAction = Mapping[str, Any]


def switch_on(table: object) -> str:
    """The SQL that switches the feed on."""
    return f"ALTER TABLE {table} SET TBLPROPERTIES ({FEED} = true)"


# -- the plan --------------------------------------------------------------------------------------


def plan_feed(
    history: TableHistory, storage: Storage, schema_of: SchemaOf, after: Checkpoint, to: int
) -> FeedPlan:
    """How to come from `after` to version `to`, or why the feed cannot tell.

    Raises:
        LogError, SourceError: the log cannot be read.
    """
    head = history.head()
    if head < after.commit:
        reason = f"version {after.commit} was applied, but the table's newest is {head}"
        return _lost(LossKind.REPLACED, reason)
    commits = [history.commit(version) for version in range(after.commit + 1, to + 1)]
    found = [commit for commit in commits if commit is not None]
    missing = [v for v, c in enumerate(commits, after.commit + 1) if c is None]
    header = _header_before(history, found, after.commit, to)
    if header is not None and header.log_id != after.log_id:
        return _lost(LossKind.REPLACED, _other_table(header, after))
    if missing or header is None:
        first = missing[0] if missing else after.commit + 1
        return _lost(
            LossKind.LOG_CLEANED,
            f"the Delta log no longer has version {first}",
            "raise delta.logRetentionDuration, or sync more often",
        )
    walk = _Walk(storage, schema_of, after, header)
    for commit in found:
        loss = walk.take(commit)
        if loss is not None:
            return FeedPlan(loss=loss)
    gone = missing_files(storage, walk.needed)
    if gone:
        return _lost(
            LossKind.FILES_GONE,
            f"{len(gone)} of the files that the changes are in are gone, such as {gone[0]}",
            "VACUUM with a longer retention, or sync more often",
        )
    return FeedPlan(_counted(storage, walk.segments))


def _lost(kind: LossKind, reason: str, hint: str = "") -> FeedPlan:
    return FeedPlan(loss=Loss(kind, reason, hint))


def _other_table(header: Header, after: Checkpoint) -> str:
    return f"the table's id is {header.log_id} now; {after.log_id} was applied"


def _header_before(
    history: TableHistory, commits: Sequence[Commit], before: int, to: int
) -> Header | None:
    """What held before a range; where its own log is gone, what holds after it, if unchanged."""
    header = history.header(before)
    if header is None and not any(True for c in commits for _ in c.of("metaData")):
        return history.header(to)
    return header


@dataclass
class _Walk:
    """The segments of a range, grown commit by commit."""

    storage: Storage
    schema_of: SchemaOf
    after: Checkpoint
    header: Header
    segments: list[tuple[TableSchema, list[Commit]]] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)

    def take(self, commit: Commit) -> Loss | None:
        before, self.header = self.header, self.header.after(commit)
        loss = _unreadable(self.header, commit, self.after)
        if loss is not None:
            return loss
        schema = self.schema_of(self.header)
        if not set(schema.key) <= set(schema.names):
            gone = ", ".join(sorted(set(schema.key) - set(schema.names)))
            return Loss(LossKind.UNSUPPORTED, f"version {commit.version} has no column {gone}")
        if commit.version == self.header.since:
            loss = _other_shape(self.schema_of(before), schema, commit)
            if loss is not None:
                return loss
        if not self.segments or self.segments[-1][0].columns != schema.columns:
            self.segments.append((schema, []))
        self.segments[-1][1].append(commit)
        self.needed += _needed_files(commit)
        return None


def _unreadable(header: Header, commit: Commit, after: Checkpoint) -> Loss | None:
    """Why a version's changes cannot be had, whatever its files are."""
    at = f"at version {commit.version}"
    if header.log_id != after.log_id:
        return Loss(LossKind.REPLACED, f"{at} {_other_table(header, after)}")
    if commit.info.get("operation") == "RESTORE":
        return Loss(LossKind.RESTORED, f"{at} RESTORE put former files back")
    if not header.has_feed:
        return Loss(
            LossKind.FEED_OFF, f"the Change Data Feed is off {at}", f"{switch_on('<table>')};"
        )
    reason = unsupported_by_feed(header)
    return Loss(LossKind.UNSUPPORTED, f"{at} {reason}") if reason else None


def unsupported_by_feed(header: Header) -> str:
    """What of a table the reader of the feed cannot read; empty if it reads all of it."""
    if header.configuration.get(MAPPING, "none") != "none":
        return "columns are mapped, which the reader of the feed cannot follow"
    unknown = header.reader_features - _READABLE
    return f"the table uses {', '.join(sorted(unknown))}" if unknown else ""


def _other_shape(old: TableSchema, new: TableSchema, commit: Commit) -> Loss | None:
    """Rows that go in the commit that also takes away or changes columns would read as nulls."""
    rewrites = next(commit.changed("remove"), None) or next(commit.of("cdc"), None)
    changed = [column.name for column in set(old.columns) - set(new.columns)]
    if not (rewrites and changed):
        return None
    named = ", ".join(sorted(changed))
    reason = f"version {commit.version} replaced rows together with the columns {named}"
    return Loss(LossKind.UNSUPPORTED, reason)


# -- the files of a range --------------------------------------------------------------------------


def _needed_files(commit: Commit) -> Iterator[str]:
    """Paths, as the log writes them, of what the feed of a version is read from."""
    cdc = list(commit.of("cdc"))
    if cdc:
        yield from (file["path"] for file in cdc)
        return
    for kind in ("add", "remove"):
        for file in commit.changed(kind):
            yield from files_of(file)


def files_of(file: FileAction) -> Iterator[str]:
    """A data file's path and that of its deletion vector, where that is a file."""
    yield file["path"]
    vector = file.get("deletionVector")
    if vector and vector["storageType"] == "u":
        yield vector_path(vector["pathOrInlineDv"])
    elif vector and vector["storageType"] == "p":
        yield vector["pathOrInlineDv"]


def missing_files(storage: Storage, paths: Iterable[str]) -> list[str]:
    """Those of some paths, as the log writes them, under which there is nothing."""
    wanted = sorted(set(paths))
    with ThreadPoolExecutor(LOOKS) as pool:
        there = pool.map(lambda path: storage.exists(inside(storage, path)), wanted)
        return [path for path, exists in zip(wanted, there, strict=True) if not exists]


def _counted(
    storage: Storage, segments: Iterable[tuple[TableSchema, Sequence[Commit]]]
) -> tuple[Segment, ...]:
    commits = [(schema, commit) for schema, part in segments for commit in part]
    with ThreadPoolExecutor(LOOKS) as pool:
        rows = list(pool.map(lambda pair: _feed_rows(storage, pair[1]), commits))
    counted = iter(
        VersionChanges(commit.version, commit.time, n)
        for (_, commit), n in zip(commits, rows, strict=True)
    )
    return tuple(Segment(schema, tuple(next(counted) for _ in part)) for schema, part in segments)


def _feed_rows(storage: Storage, commit: Commit) -> int:
    """Rows of the feed of a version: by statistics, else by footers."""
    cdc = list(commit.of("cdc"))
    if cdc:
        return sum(_footer_rows(storage, file) for file in cdc)
    added = {file["path"]: file for file in commit.changed("add")}
    removed = {file["path"]: file for file in commit.changed("remove")}
    rows = 0
    for path in added.keys() | removed.keys():
        if path in added and path in removed:
            rows += abs(_dead(added[path]) - _dead(removed[path]))
        else:
            rows += _live(storage, added.get(path) or removed[path])
    return rows


def _dead(file: FileAction) -> int:
    return int((file.get("deletionVector") or {}).get("cardinality", 0))


def _live(storage: Storage, file: FileAction) -> int:
    records = num_records(file)
    return (_footer_rows(storage, file) if records is None else records) - _dead(file)


def _footer_rows(storage: Storage, file: FileAction) -> int:
    with open_parquet(storage, file["path"]) as parquet:
        return int(parquet.metadata.num_rows)


# -- reading ---------------------------------------------------------------------------------------


def read_feed(
    place: Callable[[], Place], schema: TableSchema, first: int, last: int
) -> Iterator[pa.RecordBatch]:
    """The feed's rows from one version to another, both inclusive, as `schema` and FEED_COLUMNS.

    Raises:
        SourceUnavailableError: the storage does not answer, or a file or version vanished.
        SourceError: the feed cannot be read.
    """
    at = place()
    try:
        with source_errors(schema.table):
            delta = DeltaTable(at.url, version=last, storage_options=dict(at.options) or None)
            stream = pa.RecordBatchReader.from_stream(delta.load_cdf(first, last))
            for batch in stream:
                yield _as_feed(batch, schema, first, last)
    except SourceError as error:
        raise _reason(at.storage, schema, error) from error.__cause__


def _reason(storage: Storage, schema: TableSchema, error: SourceError) -> SourceError:
    """Whether reading may go better another time: the library's errors do not tell."""
    gone = str(error.__cause__).lower()
    vanished = any(sign in gone for sign in ("not found", "no such file", "404"))
    if error.transient or not vanished:
        with source_errors(schema.table):
            storage.exists("_delta_log")  # raises where the storage is away
        return error
    return SourceUnavailableError(
        f"{schema.table}: a file or version vanished while the changes were read: {error.message}",
        hint="Headrace looks for another way; VACUUM with a longer retention",
        table=str(schema.table),
    )


def _as_feed(batch: pa.RecordBatch, schema: TableSchema, first: int, last: int) -> pa.RecordBatch:
    wanted = pa.schema([*schema.arrow(), *FEED_COLUMNS])
    rows = pa.record_batch(
        [pc.cast(batch.column(field.name), field.type) for field in wanted], schema=wanted
    )
    versions = pc.min_max(rows.column(COMMIT_VERSION)).as_py()
    if rows.num_rows and not first <= versions["min"] <= versions["max"] <= last:
        raise SourceError(
            f"{schema.table}: the feed of {first} to {last} gave {json.dumps(versions)}",
            hint="this is a fault of the feed's reader: please report it",
        )
    return rows
