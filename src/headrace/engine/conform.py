"""Brings change batches of older schema versions to the newest, so that they can be joined.

Only added columns can be followed: a row from before the addition has the constant that Postgres
keeps for such rows (pg_attribute.attmissingval), or NULL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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

_TEXT = re.compile(r"(text|character varying|varchar)(\(\d+\))?")


def conform(batch: ChangeBatch, schema: TableSchema) -> ChangeBatch:
    """The same changes as `change_schema(schema)` lays them out; the batch itself if it fits.

    Added columns hold their constant in rows and in whole old rows. A whole old row is cut down to
    the key where `schema` promises no more.

    Raises:
        UnsupportedSchemaChangeError: the schemas differ by more than added columns.
    """
    if batch.schema.same_shape(schema):
        return batch
    _require_additions_only(batch.schema, schema)
    old, data = batch.schema, batch.data
    exists = pc.is_in(data[OP], pa.array(["i", "u"])).to_numpy(zero_copy_only=False)
    row = {name: data[name] for name in old.names}
    replaced = {
        **_widen(row, exists, schema),
        UNCHANGED: move_bits(data[UNCHANGED], _positions(old, schema), len(schema.columns)),
        BEFORE: _widen_before(data[BEFORE], schema),
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


def _widen_before(before: pa.StructArray, schema: TableSchema) -> pa.StructArray:
    kind = before_type(schema)
    exists = before.is_valid().to_numpy(zero_copy_only=False)
    known = {field.name: before.field(i) for i, field in enumerate(before.type)}
    row = _widen(known, exists, schema)
    children = [row[field.name] for field in kind]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=pa.array(~exists))


def _positions(old: TableSchema, new: TableSchema) -> list[int]:
    return [new.names.index(name) for name in old.names]


def _require_additions_only(old: TableSchema, new: TableSchema) -> None:
    for column in old.columns:
        _require_same_column(column, new)
    if old.key != new.key:
        raise _unsupported(new, f"its key changed from {_listed(old.key)} to {_listed(new.key)}")
    if _whole_rows(new) and not _whole_rows(old):
        raise _unsupported(new, "its replica identity became FULL")


def _require_same_column(column: Column, new: TableSchema) -> None:
    by_name = {c.name: c for c in new.columns}
    by_number = {c.attnum: c for c in new.columns if c.attnum}
    renamed = by_number.get(column.attnum)
    if renamed is not None and renamed.name != column.name:
        raise _unsupported(new, f"column {column.name} was renamed to {renamed.name}", column.name)
    now = by_name.get(column.name)
    if now is None:
        raise _unsupported(new, f"column {column.name} was dropped", column.name)
    if column.attnum and now.attnum and column.attnum != now.attnum:
        raise _unsupported(new, f"column {column.name} was dropped and added anew", column.name)
    if not _same_type(column, now):
        change = f"column {column.name} changed from {column.source_type} to {now.source_type}"
        raise _unsupported(new, change, column.name)


def _same_type(old: Column, new: Column) -> bool:
    """Whether every stored value stands as it is; a longer varchar, for one, rewrites nothing."""
    if old.type != new.type:
        return False
    text = _TEXT.fullmatch(old.source_type) and _TEXT.fullmatch(new.source_type)
    return bool(text) or old.source_type == new.source_type


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
