"""The rows of a Change Data Feed: from change files, else from what a commit adds and removes.

PROTOCOL.md, "Change Data Files" and "Action Reconciliation": a version with change files is told by
these alone; any other by its added and removed files, and by the rows that a deletion vector took.
Read by our own scan rather than by deltalake's `load_cdf` (1.6.6), which does not find files of
partitions whose names are escaped, refuses mapped columns, widened types and vacuumProtocolCheck,
and materializes the whole table's state for each reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from headrace.connectors.delta.columns import DataColumn, Layout
from headrace.connectors.delta.history import Commit
from headrace.connectors.delta.scan import FileRows, read_file
from headrace.connectors.delta.vectors import unique_id
from headrace.log.storage import Storage
from headrace.model.feed import CHANGE_TYPE, COMMIT_TIMESTAMP, COMMIT_VERSION, FEED_COLUMNS

AHEAD: Final = 8  # small files read at a time: on an object store each costs a few requests
_SMALL: Final = 4 << 20  # bytes of Parquet

_CHANGE_TYPE: Final = DataColumn({"name": CHANGE_TYPE, "type": "string"}, pa.string())


@dataclass(frozen=True)
class ChangedRows:
    """Rows of a file that came (`insert`) or went (`delete`); of a change file where `kind` is
    empty: it says of each row itself."""

    piece: FileRows
    kind: str


def changed_rows(commit: Commit) -> Iterator[ChangedRows]:
    """What the feed of a version is read from."""
    told = list(commit.of("cdc"))
    if told:
        yield from (ChangedRows(FileRows(file), "") for file in told)
        return
    added = {file["path"]: file for file in commit.changed("add")}
    removed = {file["path"]: file for file in commit.changed("remove")}
    for path, file in removed.items():
        if path not in added:
            yield ChangedRows(FileRows(file), "delete")
    for path, file in added.items():
        if path not in removed:
            yield ChangedRows(FileRows(file), "insert")
        else:
            yield from _by_vectors(removed[path], file)


def _by_vectors(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[ChangedRows]:
    """A file that stays, with another deletion vector; one that shrank brings rows back."""
    old, new = before.get("deletionVector"), after.get("deletionVector")
    if unique_id(old) == unique_id(new):
        return
    if new:
        yield ChangedRows(FileRows(after, between=(old, new)), "delete")
    if old:
        yield ChangedRows(FileRows(after, between=(new, old)), "insert")


def read_changes(
    storage: Storage, layout: Layout, commits: Iterable[Commit]
) -> Iterator[pa.RecordBatch]:
    """The feed's rows of some versions as the layout's columns and FEED_COLUMNS.

    Raises:
        LogError, DestinationError, pa.ArrowException: as `read_file` does.
    """
    waiting: deque[Iterator[pa.RecordBatch] | Future[list[pa.RecordBatch]]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for commit in commits:
            for change in changed_rows(commit):
                rows = _read(storage, layout, commit, change)
                small = change.piece.add.get("size", _SMALL) < _SMALL
                waiting.append(pool.submit(list, rows) if small else rows)
                if len(waiting) == AHEAD:
                    yield from _taken(waiting.popleft())
        while waiting:
            yield from _taken(waiting.popleft())


def _taken(
    rows: Iterator[pa.RecordBatch] | Future[list[pa.RecordBatch]],
) -> Iterable[pa.RecordBatch]:
    return rows.result() if isinstance(rows, Future) else rows


def _read(
    storage: Storage, layout: Layout, commit: Commit, change: ChangedRows
) -> Iterator[pa.RecordBatch]:
    schema = pa.schema([*layout.arrow(), *FEED_COLUMNS])
    wanted = layout if change.kind else layout.plus(_CHANGE_TYPE)
    stamp = {
        CHANGE_TYPE: change.kind,
        COMMIT_VERSION: commit.version,
        COMMIT_TIMESTAMP: commit.time,
    }
    for batch in read_file(storage, wanted, change.piece):
        columns = [
            batch.column(field.name)
            if field.name in batch.schema.names
            else pa.repeat(pa.scalar(stamp[field.name], field.type), batch.num_rows)
            for field in schema
        ]
        yield pa.record_batch(columns, schema=schema)
