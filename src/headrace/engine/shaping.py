"""What changes and snapshots come to in a table of the shape that its user chose.

One place per step of a table's life that differs by shape: the schema that stands at the
destination, what a snapshot's rows hold beyond the source's columns, and the net effect of changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.engine.collapse import collapse
from headrace.engine.protocols import DestinationTable
from headrace.log import SnapshotEvent
from headrace.model import ChangeBatch, Lsn, NetChanges, Shape, TableSchema


def shaped(schema: TableSchema, shape: Shape) -> TableSchema:
    """The columns of the destination's table, for one of the source's schema."""
    return schema


def snapshot_schema(schema: TableSchema, shape: Shape, event: SnapshotEvent) -> TableSchema:
    """The same for a snapshot; `missing` holds what its rows have in columns beyond its files'."""
    return shaped(schema, shape)


def net_of(
    shape: Shape,
    destination: DestinationTable,
    schema: TableSchema,
    batches: Sequence[ChangeBatch],
    after: Lsn,
) -> NetChanges:
    """The net effect of `batches`, of the source's `schema`, in the table as `shaped` has it."""
    return collapse(schema, batches, after)
