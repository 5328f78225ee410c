"""Columns that Headrace adds to a source's rows: what brought a row, and when the source lost it.

Change batches get them as ordinary columns before they are collapsed, so that collapsing needs to
know nothing of them. There they bear other names than at the destination: a batch's own columns
have some of those (model/batch.py).

Where deleted rows stay, a delete becomes an update of its row that leaves all values unsent, and so
does, of the row under the old key, an update that moves a row. So the row that stays has the values
that it had last, however the changes are cut into stretches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.factorize import factorize
from headrace.engine.lineage import Bools
from headrace.engine.unchanged import bitmap_of, unsent_columns
from headrace.errors import UnsuitableShapeError
from headrace.model import (
    BEFORE,
    COMMIT_LSN,
    COMMIT_TS,
    DELETED_AT,
    OP,
    UNCHANGED,
    XID,
    ChangeBatch,
    Column,
    Lsn,
    Metadata,
    NetChanges,
    OnDelete,
    Shape,
    TableSchema,
    change_schema,
)
from headrace.model.batch import before_type

SNAPSHOT_OP: Final = "r"  # of rows that a snapshot brought

_MOMENT: Final = Column(DELETED_AT, pa.timestamp("us", "UTC"), "timestamptz")
_COLUMNS: Final = {
    Metadata.LSN: Column("_lsn", pa.int64(), "bigint"),
    Metadata.COMMIT_TS: Column("_commit_ts", pa.timestamp("us", "UTC"), "timestamptz"),
    Metadata.OP: Column("_op", pa.string(), "text"),
    Metadata.XID: Column("_xid", pa.int64(), "bigint"),
}
_TOLD: Final = {
    Metadata.LSN: COMMIT_LSN,
    Metadata.COMMIT_TS: COMMIT_TS,
    Metadata.OP: OP,
    Metadata.XID: XID,
}
_INSIDE: Final = "\0"  # begins the names inside batches; no name of Postgres has it


def added_columns(shape: Shape) -> tuple[Column, ...]:
    """What stands after the source's columns."""
    marks = shape.on_delete is OnDelete.MARK
    return ((_MOMENT,) if marks else ()) + tuple(_COLUMNS[told] for told in shape.metadata)


def decorated(schema: TableSchema, shape: Shape, at: Lsn | None = None) -> TableSchema:
    """The schema with the added columns; `missing` tells what rows of a snapshot as of `at` have.

    Raises:
        UnsuitableShapeError: the table has no key, or a column of its own of such a name.
    """
    added = added_columns(shape)
    if not added and shape.on_delete is OnDelete.DELETE:
        return schema
    require_key(schema, shape)
    require_free(schema, [column.name for column in added])
    known = {"_op": pa.scalar(SNAPSHOT_OP), "_lsn": pa.scalar(int(at), pa.int64())} if at else {}
    names = {column.name for column in added}
    missing = {**schema.missing, **{name: known[name] for name in names & known.keys()}}
    return replace(schema, columns=schema.columns + added, missing=missing)


def require_key(schema: TableSchema, shape: Shape) -> None:
    """Rows of a table without a key are found by all their values: they can bear no others."""
    if schema.key:
        return
    what = "metadata" if shape.metadata else f"on_delete: {shape.on_delete.value}"
    raise UnsuitableShapeError(
        f"{schema.table} has no key, and {what} needs one to find rows by",
        hint=f"give {schema.table} a primary key, name one with key:, or leave {what} out",
        table=str(schema.table),
    )


def require_free(schema: TableSchema, names: Sequence[str]) -> None:
    """Refuse a table with a column of such a name, in whatever case, as Delta compares them."""
    taken = {name.lower() for name in names}
    for name in schema.names:
        if name.lower() in taken:
            raise UnsuitableShapeError(
                f"{schema.table} has a column {name}, which is the name of one that Headrace adds",
                hint=f"rename {name} at the source, or leave out what adds a column of this name",
                table=str(schema.table),
                column=name,
            )


def decorate(batch: ChangeBatch, shape: Shape) -> ChangeBatch:
    """The batch with the added columns, under names of their own."""
    if shape.on_delete is OnDelete.IGNORE:
        batch = _without_deletes(batch)
    told = batch.data
    metadata = {_COLUMNS[word]: told[_TOLD[word]] for word in shape.metadata}
    if shape.on_delete is not OnDelete.MARK:
        return _extended(batch, metadata)
    batch, times, origin = _marked(batch)
    spread = {column: values.take(origin) for column, values in metadata.items()}
    return _extended(batch, {_MOMENT: times, **spread})


def undecorate(changes: NetChanges, schema: TableSchema) -> NetChanges:
    """Net changes of decorated batches, in the names of `schema`, which is `decorated`."""
    inside = replace(changes.schema, columns=schema.columns, missing=schema.missing)
    return replace(changes, schema=inside, upserts=changes.upserts.rename_columns(schema.names))


def marked_by_truncates(
    batches: Sequence[ChangeBatch], after: Lsn
) -> tuple[list[ChangeBatch], datetime | None]:
    """Decorated batches in which each row that a truncate takes is marked and the truncates are
    left out; and when the first one behind `after` was committed, which marks all other rows."""
    kept: list[ChangeBatch] = []
    next_one, first = pa.nulls(1, _MOMENT.type), None
    for batch in reversed(batches):
        data, place = batch.data, np.arange(batch.num_rows)
        truncates = np.flatnonzero(pc.equal(data[OP], "t").to_numpy(zero_copy_only=False))
        if len(truncates):
            moments = pa.concat_arrays([data[COMMIT_TS].take(pa.array(truncates)), next_one])
            behind = data[COMMIT_LSN].to_numpy()[truncates] > np.uint64(after)
            first = moments[int(np.argmax(behind))].as_py() if behind.any() else first
        else:
            moments = next_one
        times = moments.take(pa.array(np.searchsorted(truncates, place)))
        mark = data.schema.get_field_index(_INSIDE + DELETED_AT)
        marked = pc.coalesce(data.column(mark), times)
        data = data.set_column(mark, data.schema.field(mark), marked)
        kept.append(ChangeBatch(batch.schema, data.filter(pc.not_equal(data[OP], "t"))))
        next_one = moments[:1]
    return kept[::-1], first


def _extended(batch: ChangeBatch, added: dict[Column, pa.Array]) -> ChangeBatch:
    if not added:
        return batch
    columns = tuple(replace(column, name=_INSIDE + column.name) for column in added)
    schema = replace(batch.schema, columns=batch.schema.columns + columns)
    layout = change_schema(schema)
    data = {field.name: array for field, array in zip(batch.data.schema, batch.data, strict=True)}
    for column, values in zip(columns, added.values(), strict=True):
        data[column.name] = values.cast(column.type)
    data[BEFORE] = _widened(data[BEFORE], before_type(schema))
    arrays = [data[field.name] for field in layout]
    return ChangeBatch(schema, pa.RecordBatch.from_arrays(arrays, schema=layout))


def _widened(before: pa.StructArray, kind: pa.StructType) -> pa.StructArray:
    """Old rows in a struct with more columns; those are null, for nobody knows them."""
    if before.type == kind:
        return before
    had = {field.name: before.field(i) for i, field in enumerate(before.type)}
    children = [had.get(field.name, pa.nulls(len(before), field.type)) for field in kind]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=before.is_null())


def _without_deletes(batch: ChangeBatch) -> ChangeBatch:
    stays = pc.is_in(batch.data[OP], pa.array(["i", "u"]))
    return ChangeBatch(batch.schema, batch.data.filter(stays))


# -- marking ---------------------------------------------------------------------------------------


def _marked(batch: ChangeBatch) -> tuple[ChangeBatch, pa.Array, pa.Array]:
    """Deletes as updates, and one more before each update that moves a row; when the source lost
    each row; and which change of the batch each was."""
    moves = _moves(batch)
    origin = np.repeat(np.arange(batch.num_rows), 1 + moves)
    data = batch.data.take(pa.array(origin)) if moves.any() else batch.data
    marks = pc.equal(data[OP], "d").to_numpy(zero_copy_only=False)
    marks[:-1] |= origin[1:] == origin[:-1]
    times = data[COMMIT_TS].take(pa.array(np.arange(len(marks)), mask=~marks))
    if marks.any():
        data = _as_updates(batch.schema, data, marks)
    return ChangeBatch(batch.schema, data), times, pa.array(origin)


def _as_updates(schema: TableSchema, data: pa.RecordBatch, marks: Bools) -> pa.RecordBatch:
    """The changes that `marks` names as updates of the old row that send just what it tells."""
    before = data[BEFORE]
    told = {field.name: before.field(i) for i, field in enumerate(before.type)}
    place = np.arange(len(marks))
    own = pa.array(place, mask=marks)
    arrays = {name: data[name].take(own) for name in data.schema.names}
    for name, values in told.items():
        both = pa.concat_arrays([data[name], values])
        arrays[name] = both.take(pa.array(place + marks * len(marks)))
    for name in (COMMIT_LSN, "_ordinal", COMMIT_TS, XID):
        arrays[name] = data[name]
    arrays[OP] = pc.if_else(pa.array(marks), "u", data[OP])
    unsent = bitmap_of(schema.names, [name for name in schema.names if name not in told])
    arrays[UNCHANGED] = pc.if_else(pa.array(marks), pa.scalar(unsent), data[UNCHANGED])
    return pa.RecordBatch.from_arrays(list(arrays.values()), schema=data.schema)


def _moves(batch: ChangeBatch) -> Bools:
    """Updates that give their row another key."""
    data, moves = batch.data, np.zeros(batch.num_rows, np.bool_)
    told = pc.and_(pc.equal(data[OP], "u"), data[BEFORE].is_valid())
    rows = pa.Table.from_batches([data.filter(told)])
    old = pc.struct_field
    unsent = unsent_columns(rows[UNCHANGED], batch.schema.names)
    differs = np.zeros(rows.num_rows, np.bool_)
    for name in batch.schema.key:
        both = [*rows[name].chunks, *old(rows[BEFORE], name).chunks]
        codes = factorize(pa.table({name: pa.chunked_array(both)}), zeros_equal=True).values
        other = codes[: rows.num_rows] != codes[rows.num_rows :]
        differs |= other & ~unsent.get(name, np.zeros(rows.num_rows, np.bool_))
    moves[told.to_numpy(zero_copy_only=False)] = differs
    return moves
