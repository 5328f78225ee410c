"""What changes and snapshots come to in a table of the shape that its user chose.

One place per step of a table's life that differs by shape: the schema that stands at the
destination, what a snapshot's rows hold beyond the source's columns, and the net effect of changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headrace.engine.appending import append_changes, append_schema
from headrace.engine.collapse import collapse
from headrace.engine.decorating import decorate, decorated, truncated_at, undecorate
from headrace.engine.protocols import DestinationTable
from headrace.log import SnapshotEvent
from headrace.model import ChangeBatch, Lsn, Mode, NetChanges, OnDelete, Shape, TableSchema


def shaped(schema: TableSchema, shape: Shape) -> TableSchema:
    """The columns of the destination's table, for one of the source's schema."""
    return append_schema(schema) if shape.mode is Mode.APPEND else decorated(schema, shape)


def snapshot_schema(schema: TableSchema, shape: Shape, event: SnapshotEvent) -> TableSchema:
    """The same for a snapshot; `missing` holds what its rows have in columns beyond its files'."""
    if shape.mode is Mode.APPEND:
        return append_schema(schema, event.lsn)
    return decorated(schema, shape, event.lsn)


def net_of(
    shape: Shape,
    destination: DestinationTable,  # noqa: ARG001 - what it holds decides versions (scd2)
    schema: TableSchema,
    batches: Sequence[ChangeBatch],
    after: Lsn,
) -> NetChanges:
    """The net effect of `batches`, of the source's `schema`, in the table as `shaped` has it."""
    if shape.mode is Mode.APPEND:
        return append_changes(schema, batches, after)
    adorned = [decorate(batch, shape) for batch in batches]
    keep = shape.on_delete is not OnDelete.DELETE
    changes = collapse(adorned[-1].schema, adorned, after, keep=keep)
    told = undecorate(changes, decorated(schema, shape))
    return replace(told, truncated_at=truncated_at(batches)) if told.truncate else told
