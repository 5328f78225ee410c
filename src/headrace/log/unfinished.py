"""Copies of tables that are not complete yet: the ranges of keys that are, which survive a restart.

Such a copy is a document beside the commits, put anew with each range that is done; it names files
that no manifest does, and keeps them from being swept. The commit that makes the snapshot part of
the log names them too; then the document goes. So readers of the log see whole snapshots only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from headrace.errors import ObjectMissingError
from headrace.log.documents import Floor, read_manifest
from headrace.log.layout import Layout, staged_under
from headrace.log.manifest import FORMAT, Manifest, SnapshotFile, parse_document
from headrace.log.storage import Storage
from headrace.model import KeyRange, Lsn, TableId


@dataclass(frozen=True)
class RangeCopy:
    """The rows of a range of keys as of `lsn`, which was at `taken_at` by the source's clock.

    Without an LSN the range is still to be copied.
    """

    keys: KeyRange
    lsn: Lsn | None = None
    taken_at: datetime | None = None
    files: tuple[SnapshotFile, ...] = ()


@dataclass(frozen=True)
class UnfinishedCopy:
    """A table's ranges, in order. All were copied under one schema version, from what the source
    calls `identity`; commits behind `after` hold every change that one of them lacks."""

    table: TableId
    schema_version: int
    identity: str
    after: int
    ranges: tuple[RangeCopy, ...]

    @property
    def files(self) -> tuple[SnapshotFile, ...]:
        return tuple(file for part in self.ranges for file in part.files)

    @property
    def done(self) -> tuple[RangeCopy, ...]:
        return tuple(part for part in self.ranges if part.lsn is not None)

    @property
    def rows(self) -> int:
        """Of the ranges that are done."""
        return sum(file.rows for file in self.files)


def write_unfinished(storage: Storage, layout: Layout, copy: UnfinishedCopy) -> None:
    data = {
        "format": FORMAT,
        "schema": copy.table.schema,
        "table": copy.table.name,
        "schema_version": copy.schema_version,
        "identity": copy.identity,
        "after": copy.after,
        "ranges": [_encode(part) for part in copy.ranges],
    }
    storage.put(layout.unfinished_copy(copy.table), json.dumps(data, ensure_ascii=False).encode())


def read_unfinished(storage: Storage, layout: Layout) -> dict[TableId, UnfinishedCopy]:
    """All of them, as they were put last.

    Raises:
        LogCorruptError: one is damaged.
    """
    copies = {}
    for entry in storage.list(layout.unfinished):
        with suppress(ObjectMissingError):  # completed just now
            data = storage.get(entry.path)
            copy = parse_document(data, storage.location(entry.path), _decode)
            copies[copy.table] = copy
    return copies


def still_valid(
    storage: Storage,
    layout: Layout,
    copies: Iterable[UnfinishedCopy],
    floor: Floor,
    head: Manifest | None,
) -> dict[TableId, UnfinishedCopy]:
    """Those of the copies that can be gone on with; the documents of the others are removed.

    One is void whose files a commit names: it was completed. And one whose files, or the changes
    that they lack, are gone.
    """
    valid = {copy.table: copy for copy in copies if copy.after >= floor.commit}
    paths = {file.path for copy in valid.values() for file in copy.files}
    there = {entry.path for entry in storage.list(layout.data[1])} if paths else set()
    committed = set(_committed(storage, layout, paths, floor, head))
    for copy in list(copies):
        own = {file.path for file in copy.files}
        if copy.table not in valid or own & committed or not own <= there:
            valid.pop(copy.table, None)
            storage.delete([layout.unfinished_copy(copy.table)])
    return valid


def _committed(
    storage: Storage, layout: Layout, paths: set[str], floor: Floor, head: Manifest | None
) -> Iterator[str]:
    """Those of `paths` that a manifest names. See `Manifest.settled`."""
    settled = head.settled if head else 0
    yield from (path for path in paths if (staged_under(path) or 0) <= settled)
    if paths and head:
        for number in range(max(settled, floor.commit) + 1, head.commit + 1):
            yield from paths & read_manifest(storage, layout, number).paths


def _encode(part: RangeCopy) -> dict[str, Any]:
    known: dict[str, Any] = {"low": part.keys.low, "high": part.keys.high}
    if part.lsn is None or part.taken_at is None:
        return known
    return {
        **known,
        "lsn": str(part.lsn),
        "taken_at": part.taken_at.astimezone(UTC).isoformat(timespec="microseconds"),
        "files": [{"path": f.path, "rows": f.rows, "bytes": f.bytes} for f in part.files],
    }


def _decode(data: Mapping[str, Any]) -> UnfinishedCopy:
    return UnfinishedCopy(
        table=TableId(data["schema"], data["table"]),
        schema_version=data["schema_version"],
        identity=data["identity"],
        after=data["after"],
        ranges=tuple(_decode_range(part) for part in data["ranges"]),
    )


def _decode_range(data: Mapping[str, Any]) -> RangeCopy:
    keys = KeyRange(data["low"], data["high"])
    if "lsn" not in data:
        return RangeCopy(keys)
    files = tuple(SnapshotFile(f["path"], f["rows"], f["bytes"]) for f in data["files"])
    return RangeCopy(keys, Lsn.parse(data["lsn"]), datetime.fromisoformat(data["taken_at"]), files)
