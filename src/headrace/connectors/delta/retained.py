"""Rows that a Delta table keeps though its source has them no more.

Where deletes mark rows, or are ignored, a resync keeps rows whose keys the source does not have,
and a truncate marks what stands. In mode append all rows are kept always: a row with `_op` t
stands between them and the rows of another snapshot. Nothing here holds more than a batch of rows
in memory, and the index of a snapshot's keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyroaring import BitMap

from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.arrangement import divided
from headrace.connectors.delta.evolution import former_names
from headrace.connectors.delta.names import new_name
from headrace.connectors.delta.rows import RowIndex, live_rows
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.types import stored_schema, to_stored
from headrace.connectors.delta.writer import LASTING_COMPRESSION, DataWriter, write_files
from headrace.errors import UnsuitableTableError
from headrace.failpoints import hit
from headrace.log.storage import Storage
from headrace.model import (
    DELETED_AT,
    OP,
    ORDINAL,
    Checkpoint,
    Metadata,
    OnDelete,
    Shape,
    TableFormat,
    TableSchema,
)
from headrace.model.fingerprint import Hasher

TRUNCATE_OP: Final = "t"


# -- another snapshot ------------------------------------------------------------------------------


def require_same_partitions(state: TableState, schema: TableSchema, layout: TableFormat) -> None:
    """Raises UnsuitableTableError where files that stay are divided by other columns than new ones
    are to be."""
    if tuple(state.partition_by) != layout.partition_by:
        raise UnsuitableTableError(
            f"{schema.table} keeps its past, and its files are partitioned by "
            f"{', '.join(state.partition_by) or 'nothing'}: that cannot change",
            hint=f"set partition_by back, or give {schema.table} another name: in headrace.yaml",
            table=str(schema.table),
        )


def retained(
    storage: Storage,
    state: TableState,
    schema: TableSchema,
    fresh: Sequence[Action],
    shape: Shape,
    layout: TableFormat,
) -> list[Action]:
    """Add actions of rows that stand beside those of a new snapshot, which are in `fresh`.

    Raises:
        LogError: a file cannot be read or written.
        DestinationError: a row's value does not fit the column that the source has now.
    """
    if shape.on_delete is OnDelete.DELETE:
        return []
    survivors = _survivors(storage, state, schema, fresh)
    if shape.on_delete is OnDelete.MARK:
        now = datetime.now(UTC)
        survivors = (_marked(rows, now) for rows in survivors)
    return write_batches(storage, survivors, stored_schema(schema.arrow()), layout.partition_by)


def boundary(
    storage: Storage, schema: TableSchema, at: Checkpoint, layout: TableFormat
) -> list[Action]:
    """The add action of a row of operation `t`, which stands before those of another snapshot, of
    the current state, in a table of changes. Raises LogError."""
    row = {OP: [TRUNCATE_OP], Metadata.LSN.column: [int(at.lsn)], ORDINAL: [0]}
    rows = to_stored(pa.table(row), stored_schema(schema.arrow()))
    return write_files(storage, rows, {}, layout.partition_by).actions


def _survivors(
    storage: Storage, state: TableState, schema: TableSchema, fresh: Iterable[Action]
) -> Iterator[pa.Table]:
    """The rows of the table whose keys the files in `fresh` do not have."""
    stored = stored_schema(schema.arrow())
    key = pa.schema([stored.field(name) for name in schema.key])
    index = RowIndex(storage, key, Hasher.of(key, exact=False))
    index.sync(TableState(files={add["add"]["path"]: add["add"] for add in fresh}))
    formers = former_names(state, schema)
    reading = pa.schema(
        [pa.field(formers[n], stored.field(n).type) for n in stored.names if n in formers]
    )
    for file in state.files.values():
        for told in live_rows(storage, file, reading):
            rows = _renamed(told, formers, schema, stored)
            found, _ = index.find(index.hash(rows.select(key.names)))
            gone = np.ones(rows.num_rows, np.bool_)
            gone[found] = False
            yield rows.filter(pa.array(gone))


def _renamed(
    rows: pa.Table, formers: Mapping[str, str], schema: TableSchema, stored: pa.Schema
) -> pa.Table:
    """Rows under the names that their columns have now; new columns of the source have the constant
    that it keeps for rows from before, all others null."""
    constants = {c.name: schema.missing.get(c.name) for c in schema.columns if c.attnum}
    columns = [
        rows.column(formers[field.name])
        if field.name in formers
        else _constant(constants.get(field.name), field.type, rows.num_rows)
        for field in stored
    ]
    return pa.table(columns, schema=stored)


def _constant(value: pa.Scalar | None, kind: pa.DataType, rows: int) -> pa.Array:
    return pa.nulls(rows, kind) if value is None else pa.repeat(value.cast(kind), rows)


def write_batches(
    storage: Storage, batches: Iterable[pa.Table], stored: pa.Schema, partition_by: Sequence[str]
) -> list[Action]:
    """The rows in one new file for each partition."""
    writers: dict[tuple[str | None, ...], DataWriter] = {}
    with storage.write() as group:
        for rows in batches:
            for values, positions in divided(rows, partition_by):
                partition = tuple(values.values())
                if partition not in writers:
                    path = new_name()
                    file = group.open(path)
                    made = DataWriter(file, path, stored, LASTING_COMPRESSION, values)
                    writers[partition] = made
                writers[partition].write(rows.take(pa.array(positions)))
        return [writer.finish() for writer in writers.values()]


# -- marks -----------------------------------------------------------------------------------------


def _marked(rows: pa.Table, moment: datetime) -> pa.Table:
    """The rows, those that bear no mark with this one."""
    place = rows.schema.get_field_index(DELETED_AT)
    field = rows.schema.field(place)
    marks = pc.fill_null(rows.column(place), pa.scalar(moment, field.type))
    return rows.set_column(place, field, marks)


def all_marked(
    storage: Storage,
    state: TableState,
    replaced: Mapping[str, BitMap],
    schema: pa.Schema,
    moment: datetime,
) -> list[Action]:
    """Add actions of new files with all rows of the table, marked as of `moment` where they were
    not; `replaced` tells, by file, the rows that go, those that went before among them.

    Raises:
        LogError: a file cannot be read or written.
    """
    adds = []
    for path, file in state.files.items():
        parts = live_rows(storage, file, schema, replaced.get(path))
        rows = (_marked(part, moment) for part in parts if part.num_rows)
        adds += write_batches(storage, rows, schema, state.partition_by)
        hit("delta.file_rewritten")
    return adds
