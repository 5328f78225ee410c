"""What changes and snapshots come to in a table of the shape that its user chose.

One place per step of a table's life that differs by shape: the schema that stands at the
destination, what a snapshot's rows hold beyond the source's columns, and the net effect of changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.engine.appending import append_changes, append_schema
from headrace.engine.collapse import collapse
from headrace.engine.decorating import decorate, decorated, marked_by_truncates, undecorate
from headrace.engine.history import history, require_tracked, versioned
from headrace.engine.protocols import DestinationTable, HistoryTable
from headrace.errors import UnsuitableShapeError
from headrace.log import SnapshotEvent
from headrace.model import ChangeBatch, Lsn, Mode, NetChanges, OnDelete, Shape, TableSchema


def shaped(schema: TableSchema, shape: Shape) -> TableSchema:
    """The columns of the destination's table, for one of the source's schema."""
    if shape.mode is Mode.APPEND:
        return append_schema(schema)
    columns = decorated(schema, shape)
    if shape.mode is Mode.SCD2:
        require_tracked(schema, shape.track)
        return versioned(columns)
    return columns


def snapshot_schema(schema: TableSchema, shape: Shape, event: SnapshotEvent) -> TableSchema:
    """The same for a snapshot; `missing` holds what its rows have in columns beyond its files'."""
    if shape.mode is Mode.APPEND:
        return append_schema(schema, event.lsn)
    columns = decorated(schema, shape, event.lsn)
    if shape.mode is Mode.SCD2:
        require_tracked(schema, shape.track)
        return versioned(columns, _taken_at(event))
    return columns


def _taken_at(event: SnapshotEvent) -> datetime:
    if event.taken_at is None:
        raise UnsuitableShapeError(
            f"the snapshot of {event.table} in the change log is of an older format, which does "
            "not tell when it was taken: mode: scd2 needs to know",
            hint=f"headrace resync {event.table}",
            table=str(event.table),
        )
    return event.taken_at


def net_of(
    shape: Shape,
    destination: DestinationTable,
    schema: TableSchema,
    batches: Sequence[ChangeBatch],
    after: Lsn,
) -> NetChanges:
    """The net effect of `batches`, of the source's `schema`, in the table as `shaped` has it."""
    if shape.mode is Mode.APPEND:
        return append_changes(schema, batches, after)
    adorned = [decorate(batch, shape) for batch in batches]
    if shape.mode is Mode.SCD2:
        return _versions(shape, destination, schema, adorned, after)
    keep = shape.on_delete is not OnDelete.DELETE
    emptied = None
    if shape.on_delete is OnDelete.MARK:
        adorned, emptied = marked_by_truncates(adorned, after)
    changes = collapse(adorned[-1].schema, adorned, after, keep=keep)
    told = undecorate(changes, decorated(schema, shape))
    return replace(told, truncate=True, truncated_at=emptied) if emptied else told


def _versions(
    shape: Shape,
    destination: DestinationTable,
    schema: TableSchema,
    adorned: Sequence[ChangeBatch],
    after: Lsn,
) -> NetChanges:
    """Versions, in the light of those that the destination holds."""
    assert isinstance(destination, HistoryTable)  # the file's check sees to it
    outside, inside = shaped(schema, shape), versioned(adorned[-1].schema)

    def standing(keys: pa.Table, since: datetime) -> tuple[npt.NDArray[np.intp], pa.Table]:
        which, rows = destination.standing(outside, keys, since)
        return which, rows.select(outside.names).rename_columns(inside.names)

    tracked = shape.track or schema.names
    changes = history(adorned[-1].schema, adorned, after, tracked, standing)
    return replace(changes, schema=outside, upserts=changes.upserts.rename_columns(outside.names))
