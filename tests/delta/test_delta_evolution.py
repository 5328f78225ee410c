"""Columns that come, and those that cannot be followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pytest
from delta_samples import LOG_ID, Lake, Model, Row, assert_holds, at, changes, row_of, schema_of
from deltalake import DeltaTable

from headrace.errors import UnsupportedSchemaChangeError
from headrace.model import Column, TableSchema

NEW = Column("color", pa.string(), "text", 90)


def rows(kind: str, keys: range, value: int = 1) -> list[Row]:
    return [row_of(kind, key, value) for key in keys]


def with_column(
    schema: TableSchema,
    column: Column,
    missing: Mapping[str, pa.Scalar] | None = None,
    place: int = -1,
) -> TableSchema:
    columns = list(schema.columns)
    columns.insert(len(columns) if place < 0 else place, column)
    return replace(schema, columns=tuple(columns), missing=missing or {}, version=2)


@pytest.mark.parametrize("kind", ["int64", "text", "none"])
@pytest.mark.parametrize("constant", [None, "blue"])
@pytest.mark.parametrize("place", [-1, 1])
def test_an_added_column_reaches_old_and_new_rows(
    lake: Lake, kind: str, constant: str | None, place: int
) -> None:
    """Invariant 8: old rows get the source's constant, no value lands in another column."""
    schema = schema_of(kind)
    missing = {} if constant is None else {"color": pa.scalar(constant)}
    wider = with_column(schema, NEW, missing, place)
    cut = len(schema.columns) if place < 0 else place

    def widened(held: list[Row], value: str | None) -> list[Row]:
        return [(*row[:cut], value, *row[cut:]) for row in held]

    first, second = rows(kind, range(6)), rows(kind, range(6, 9))
    table = lake.open()
    table.load(schema, lake.snapshot(schema, first, second), at(1))
    table.apply(changes(schema, rows(kind, range(9, 10)), first[:1]), at(2))
    before = DeltaTable(lake.path).version()
    table.evolve(wider)
    table.evolve(wider)
    assert DeltaTable(lake.path).version() == before + 1
    assert table.checkpoint(LOG_ID) == at(2)
    old = widened(first[1:] + second + rows(kind, range(9, 10)), constant)
    model = Model(wider)
    model.apply(old, [])
    assert_holds(lake.path, model)
    upserts, deletes = widened(rows(kind, range(20, 22), 3), "red"), old[2:4]
    table.apply(changes(wider, upserts, deletes), at(3))
    model.apply(upserts, deletes)
    assert_holds(lake.path, model)


def test_a_column_of_local_times_brings_its_feature(lake: Lake) -> None:
    schema = replace(schema_of("int64"), columns=schema_of("int64").columns[:2])
    table = lake.open()
    table.load(schema, lake.snapshot(schema, [(1, 2)]), at(1))
    assert "timestampNtz" not in (DeltaTable(lake.path).protocol().reader_features or [])
    table.evolve(with_column(schema, Column("local", pa.timestamp("us"), "timestamp", 9)))
    assert "timestampNtz" in (DeltaTable(lake.path).protocol().reader_features or [])


def _dropped(schema: TableSchema) -> TableSchema:
    return replace(schema, columns=schema.columns[:-1])


def _renamed(schema: TableSchema) -> TableSchema:
    last = replace(schema.columns[-1], name="labels")
    return replace(schema, columns=(*schema.columns[:-1], last))


def _retyped(schema: TableSchema) -> TableSchema:
    last = replace(schema.columns[-1], type=pa.string())
    return replace(schema, columns=(*schema.columns[:-1], last))


def _added_anew(schema: TableSchema) -> TableSchema:
    last = replace(schema.columns[-1], attnum=77)
    return replace(schema, columns=(*schema.columns[:-1], last))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_dropped, "tags was dropped"),
        (_renamed, "tags was renamed to labels"),
        (_retyped, "tags changed its type from array to string"),
        (_added_anew, "tags was dropped and added anew"),
    ],
)
def test_a_change_that_cannot_be_followed_is_told_and_changes_nothing(
    lake: Lake, change: object, told: str
) -> None:
    """Invariant 8."""
    schema = schema_of("int64")
    table = lake.open()
    table.load(schema, lake.snapshot(schema, rows("int64", range(3))), at(1))
    assert callable(change)
    with pytest.raises(UnsupportedSchemaChangeError, match=told) as caught:
        table.evolve(change(schema))
    assert caught.value.hint == "headrace resync shop.orders"
    assert DeltaTable(lake.path).version() == 0
