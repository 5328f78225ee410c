"""What brings a table up to date where the feed of its source cannot tell.

The cheapest exact way first: the files that two versions do not share; then the fingerprints of all
rows of both sides. Neither is possible beyond what may be held in memory: the table is then built
anew (facts: a ladder that ends in a rebuild, never in silence).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from headrace.engine.diff import Bounds, row_changes, vanished_keys
from headrace.engine.netting import as_feed, net
from headrace.engine.pinned import Pinned
from headrace.engine.protocols import SyncedTable
from headrace.engine.transform import Transform
from headrace.model import FileDiff, NetChanges, RowPart, TableSchema, TableVersion
from headrace.model.feed import tables


def file_changes(
    schema: TableSchema,
    diff: FileDiff,
    at: TableVersion,
    transform: Transform,
    destination: SyncedTable,
    *,
    newest_by: str | None,
    compared: int,
) -> NetChanges:
    """The changes between two versions by their files, transformed.

    The rows of added files are upserted; a key that only removed files have is gone, or, where
    those cannot be read, one that the destination has and no file.

    Raises:
        TooManyRowsError: more than `compared` keys would have to be compared.
    """
    key = list(schema.key)
    added = _read(schema.arrow(), diff.added)
    keys = schema.arrow().empty_table().select(key).schema
    removed = _read(keys, diff.removed or ())
    feed = [as_feed(schema, added, at), as_feed(schema, removed, at, gone=True)]
    changes = transform.changes(net(schema, pa.concat_tables(feed), newest_by))
    if diff.removed is not None:
        return changes

    def present() -> Iterator[pa.Table]:
        return (transform.keys(rows.select(key)) for rows in tables(diff.keys))

    held = transform.schema.key
    gone = vanished_keys(
        transform.schema, present, lambda: _stored(destination, transform.schema, held), compared
    )
    return replace(changes, deletes=pa.concat_tables([changes.deletes, gone]))


def hash_changes(
    pinned: Pinned,
    at: TableVersion,
    schema: TableSchema,
    destination: SyncedTable,
    bounds: Bounds,
) -> NetChanges:
    """The changes that make the destination equal to `pinned`, rows of `schema` as it has them.

    Raises:
        TooManyRowsError: there is more than `bounds` allow.
    """
    parts, rejected = pinned
    changes = row_changes(
        schema,
        lambda: tables(parts),
        lambda: _stored(destination, schema, schema.names),
        at,
        bounds,
    )
    return replace(changes, rejected=(*changes.rejected, *rejected()))


def _read(schema: pa.Schema, parts: Sequence[RowPart]) -> pa.Table:
    read = [rows.select(schema.names).cast(schema) for rows in tables(parts)]
    return pa.concat_tables([schema.empty_table(), *read])


def _stored(
    destination: SyncedTable, schema: TableSchema, names: Sequence[str]
) -> Iterator[pa.Table]:
    batches = destination.read(schema, names)
    return (pa.Table.from_batches([batch]) for batch in batches)
