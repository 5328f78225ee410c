"""Brings change batches of older schema versions to the newest, so that they can be joined.

A column is known by its catalog number, so it keeps its values under another name and in a wider
type. A row from before an addition has the constant that Postgres keeps for such rows
(pg_attribute.attmissingval), or NULL. What was dropped is left out, and never handed to another
column of its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.unchanged import move_bits
from headrace.errors import UnsupportedSchemaChangeError
from headrace.model import (
    BEFORE,
    OP,
    UNCHANGED,
    ChangeBatch,
    Column,
    ReplicaIdentity,
    TableSchema,
    change_schema,
)
from headrace.model.batch import before_type
from headrace.model.widening import carries_over


def conform(batch: ChangeBatch, schema: TableSchema) -> ChangeBatch:
    """The same changes as `change_schema(schema)` lays them out; the batch itself if it fits.

    Added columns hold their constant in rows and in whole old rows. A whole old row is cut down to
    the key where `schema` promises no more.

    Raises:
        UnsupportedSchemaChangeError: values cannot be carried over: a type changed to one that does
            not hold them all, or other columns are the key.
    """
    if batch.schema.same_shape(schema):
        return batch
    require_followable(batch.schema, schema)
    old, data = batch.schema, batch.data
    exists = pc.is_in(data[OP], pa.array(["i", "u"])).to_numpy(zero_copy_only=False)
    row = _carried({name: data[name] for name in old.names}, old, schema)
    replaced = {
        **_widen(row, exists, schema),
        UNCHANGED: move_bits(data[UNCHANGED], _positions(old, schema), len(schema.columns)),
        BEFORE: _widen_before(data[BEFORE], old, schema),
    }
    layout = change_schema(schema)
    arrays = [replaced[n] if n in replaced else data[n] for n in layout.names]
    return ChangeBatch(schema, pa.RecordBatch.from_arrays(arrays, schema=layout))


def with_common_identity(schema: TableSchema, batches: Iterable[ChangeBatch]) -> TableSchema:
    """`schema` with the replica identity that every batch can fulfil.

    Where a keyed table was not FULL all the time, only its old keys can be relied on.
    """
    full = ReplicaIdentity.FULL
    if schema.identity is not full or not schema.key:
        return schema
    if all(batch.schema.identity is full for batch in batches):
        return schema
    return replace(schema, identity=ReplicaIdentity.DEFAULT)


def require_followable(old: TableSchema, new: TableSchema) -> None:
    """Make sure that rows of one version can be laid out as the other has them.

    Raises:
        UnsupportedSchemaChangeError: they cannot; says why.
    """
    for column in new.columns:
        former = old.counterpart(column)
        if former is not None and not carries_over(
            former.type, former.source_type, column.type, column.source_type
        ):
            raise _unsupported(new, _changed(former, column), former.name)
    if _former_key(old, new) != old.key:
        raise _unsupported(new, f"its key changed from {_listed(old.key)} to {_listed(new.key)}")
    if _whole_rows(new) and not _whole_rows(old):
        raise _unsupported(new, "its replica identity became FULL")


def _changed(former: Column, column: Column) -> str:
    """What became of a column's type, or of how the user wants it to be read."""
    if former.source_type != column.source_type:
        return f"column {former.name} changed from {former.source_type} to {column.source_type}"
    return f"column {former.name} is read as {column.type} now, not as {former.type}"


def _former_key(old: TableSchema, new: TableSchema) -> tuple[str, ...]:
    """The key of `new` by the names that its columns had in `old`."""
    formers = [old.counterpart(column) for name in new.key for column in _named(new, name)]
    return tuple(former.name if former is not None else "" for former in formers)


def _named(schema: TableSchema, name: str) -> list[Column]:
    return [column for column in schema.columns if column.name == name]


def _carried(
    values: Mapping[str, pa.Array], old: TableSchema, new: TableSchema
) -> dict[str, pa.Array]:
    """Those values that `new` has columns for, by the names and in the types of those."""
    formers = ((column, old.counterpart(column)) for column in new.columns)
    return {
        column.name: values[former.name].cast(column.type)
        for column, former in formers
        if former is not None and former.name in values
    }


def _widen(
    row: dict[str, pa.Array], exists: npt.NDArray[np.bool_], schema: TableSchema
) -> dict[str, pa.Array]:
    """All columns of `schema`; those not in `row` hold their constant where the row exists."""
    return {
        c.name: row[c.name] if c.name in row else _constant(c, exists, schema)
        for c in schema.columns
    }


def _constant(column: Column, exists: npt.NDArray[np.bool_], schema: TableSchema) -> pa.Array:
    value = schema.missing.get(column.name)
    if value is None:
        return pa.nulls(len(exists), column.type)
    return pa.repeat(value, 1).take(pa.array(np.zeros(len(exists), np.int8), mask=~exists))


def _widen_before(before: pa.StructArray, old: TableSchema, new: TableSchema) -> pa.StructArray:
    kind = before_type(new)
    exists = before.is_valid().to_numpy(zero_copy_only=False)
    known = {field.name: before.field(i) for i, field in enumerate(before.type)}
    row = _widen(_carried(known, old, new), exists, new)
    children = [row[field.name] for field in kind]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=pa.array(~exists))


def _positions(old: TableSchema, new: TableSchema) -> list[int | None]:
    """Where each column of `old` is in `new`."""
    places: list[int | None] = [None] * len(old.columns)
    for place, column in enumerate(new.columns):
        former = old.counterpart(column)
        if former is not None:
            places[old.columns.index(former)] = place
    return places


def _whole_rows(schema: TableSchema) -> bool:
    """Whether `_before` holds whole rows, not only their keys."""
    return schema.identity is ReplicaIdentity.FULL or not schema.key


def _listed(names: tuple[str, ...]) -> str:
    return f"({', '.join(names)})" if names else "none"


def _unsupported(
    schema: TableSchema, change: str, column: str | None = None
) -> UnsupportedSchemaChangeError:
    return UnsupportedSchemaChangeError(
        f"{schema.table} changed in a way that cannot be followed: {change}",
        hint=f"headrace resync {schema.table}",
        table=str(schema.table),
        column=column,
    )
