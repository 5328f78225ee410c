"""What two versions of a table differ by, file by file: the way to go where the feed is lost.

Whole files are compared, so that rows which an overwrite or a compaction wrote again are among the
added ones; a file whose deletion vector grew or shrank counts with just those rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.connectors.delta.columns import Layout
from headrace.connectors.delta.feed import missing_files, paths_of
from headrace.connectors.delta.scan import FileRows, OpenStorage, row_parts
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.vectors import unique_id
from headrace.model import FileDiff, RowPart, TableSchema


def diff_files(
    storage: OpenStorage, schema: TableSchema, old: TableState, new: TableState
) -> FileDiff:
    """From `old` to `new`, whose schema is `schema`.

    Raises:
        SourceError, LogError: what is needed in any case cannot be read.
    """
    layout = Layout.of(new.metadata)
    keys = layout.only(schema.key)
    added = _rows(new, old)
    added_parts = row_parts(schema.table, storage, layout, added)
    all_keys = row_parts(schema.table, storage, keys, map(FileRows, new.files.values()))
    removed = None
    gone = _rows(old, new)
    paths = (path for piece in gone for path in paths_of(piece))
    if _has_columns(old, keys) and not missing_files(storage(), paths):
        removed = row_parts(schema.table, storage, keys, gone)
    rows = _count(added_parts) + _count(all_keys if removed is None else removed)
    return FileDiff(added_parts, removed, all_keys, rows)


def _rows(state: TableState, other: TableState) -> list[FileRows]:
    """Rows that the files of one state have and those of the other have not."""
    found = []
    for path, file in state.files.items():
        counterpart = other.files.get(path)
        if counterpart is None:
            found.append(FileRows(file))
            continue
        mine, theirs = file.get("deletionVector"), counterpart.get("deletionVector")
        if unique_id(mine) != unique_id(theirs):
            found.append(FileRows(file, between=(mine, theirs)))
    return found


def _has_columns(old: TableState, keys: Layout) -> bool:
    """Whether the older files hold the key as the newer table knows it."""
    before = Layout.of(old.metadata)
    held = {(before.place_of(column), column.type) for column in before.columns}
    return {(keys.place_of(column), column.type) for column in keys.columns} <= held


def _count(parts: Sequence[RowPart]) -> int:
    return sum(part.rows or 0 for part in parts)
