"""Partitioned and ordered tables, as their readers find them."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from delta_samples import NAME, Lake, Model, assert_holds, at, by_duckdb, changes
from deltalake import DeltaTable

from headrace.connectors.delta.state import load_state
from headrace.errors import DestinationError, UnsupportedSchemaChangeError
from headrace.log import open_storage
from headrace.model import Column, TableFormat, TableSchema

SCHEMA = TableSchema(
    NAME,
    1,
    (
        Column("id", pa.int64(), "bigint", 1),
        Column("place", pa.string(), "text", 2),
        Column("n", pa.int32(), "integer", 3),
    ),
    ("id",),
)
AWKWARD = (
    *("a/b", "../up", "50%", "%2F", "x=y", "a:b", "q?#&+", "{z}", "[w]^", "' \"", "back\\", "a b"),
    *("ü€𝄞", "tab\t", "dot.", "x" * 400, "null", "__HIVE_DEFAULT_PARTITION__", None),
)
Row = tuple[int, str | None, int]


def partitioned(lake: Lake, first: list[Row], **layout: Any) -> Any:
    table = lake.open(layout=TableFormat(**{"partition_by": ("place",), **layout}))
    table.load(SCHEMA, lake.snapshot(SCHEMA, first), at(1))
    return table


def held(*rows: Row) -> Model:
    model = Model(SCHEMA)
    model.apply(rows, [])
    return model


def test_a_partition_can_have_any_name(lake: Lake) -> None:
    loaded: list[Row] = [(i, place, i) for i, place in enumerate(AWKWARD)]
    table = partitioned(lake, loaded)
    applied: list[Row] = [(100 + i, place, i) for i, place in enumerate(AWKWARD)]
    table.apply(changes(SCHEMA, applied), at(2))
    assert_holds(lake.path, held(*loaded, *applied))
    table.apply(changes(SCHEMA, [(0, None, 9)], loaded[1:]), at(3))
    assert_holds(lake.path, held((0, None, 9), *applied))


def test_a_row_moves_to_the_partition_of_its_new_value(lake: Lake) -> None:
    table = partitioned(lake, [(1, "a", 1), (2, "a", 2), (3, None, 3)])
    table.apply(changes(SCHEMA, [(1, None, 1), (3, "b", 3)]), at(2))
    model = held((1, None, 1), (2, "a", 2), (3, "b", 3))
    assert_holds(lake.path, model)
    for place in ("a", "b"):
        expected = sum(row[1] == place for row in model.rows)
        assert by_duckdb(lake.path, SCHEMA.names, ("place", place)).total() == expected


def test_an_empty_text_names_no_partition(lake: Lake) -> None:
    table = partitioned(lake, [(1, "a", 1)])
    with pytest.raises(DestinationError, match="empty text") as caught:
        table.apply(changes(SCHEMA, [(2, "", 1)]), at(2))
    assert "place" in caught.value.hint
    assert_holds(lake.path, held((1, "a", 1)))


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        ({"partition_by": ("plaec",)}, "no column plaec"),
        ({"partition_by": ("id", "place", "n")}, "names all columns"),
        ({"partition_by": (), "cluster_by": ("m",)}, "no column m"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(
    lake: Lake, layout: dict[str, tuple[str, ...]], why: str
) -> None:
    with pytest.raises(DestinationError, match=why) as caught:
        partitioned(lake, [(1, "a", 1)], **layout)
    assert caught.value.hint


def test_a_file_of_another_writer_without_its_partition_column_is_refused(lake: Lake) -> None:
    """Its rows' values stand in the log alone: taken from the file they would be null."""
    table = partitioned(lake, [(1, "a", 1)])
    table.apply(changes(SCHEMA, [(2, "a", 2)]), at(2))
    before = DeltaTable(lake.path).version()
    DeltaTable(lake.path).optimize.compact()
    for again in (table, lake.open(layout=TableFormat(partition_by=("place",)))):
        with pytest.raises(DestinationError, match="lacks the partition column place") as caught:
            again.apply(changes(SCHEMA, [(3, "a", 3)]), at(3))
        assert "RESTORE" in caught.value.hint
    DeltaTable(lake.path).restore(before)
    table.apply(changes(SCHEMA, [(3, "a", 3)]), at(3))
    assert_holds(lake.path, held((1, "a", 1), (2, "a", 2), (3, "a", 3)))


def test_rows_are_loaded_in_order_and_bounds_tell_of_it(lake: Lake) -> None:
    rows: list[Row] = [(i, "b" if i % 2 else "a", -i) for i in range(50)]
    partitioned(lake, rows, cluster_by=("n",))
    for path in lake.path.glob("*.parquet"):
        rows_of = pq.read_table(path)
        assert len(rows_of.column("place").unique()) == 1
        assert rows_of.column("n").to_pylist() == sorted(rows_of.column("n").to_pylist())
    state = load_state(open_storage(lake.path))
    assert state is not None
    for add in state.files.values():
        stats = json.loads(add["stats"])
        assert stats["minValues"].keys() == stats["maxValues"].keys() == {"id", "n"}
        assert "tightBounds" not in stats
    assert_holds(lake.path, held(*rows))


@pytest.mark.parametrize(
    "columns",
    [
        (SCHEMA.columns[0], Column("town", pa.string(), "text", 2), SCHEMA.columns[2]),
        (SCHEMA.columns[0], Column("place", pa.int64(), "bigint", 2), SCHEMA.columns[2]),
    ],
    ids=["renamed", "retyped"],
)
def test_a_partition_column_that_changes_asks_for_a_resync(
    lake: Lake, columns: tuple[Column, ...]
) -> None:
    table = partitioned(lake, [(1, "a", 1)])
    with pytest.raises(UnsupportedSchemaChangeError) as caught:
        table.evolve(TableSchema(NAME, 2, columns, ("id",)))
    assert "resync" in caught.value.hint
    assert_holds(lake.path, held((1, "a", 1)))


def test_a_partitioned_table_takes_new_columns(lake: Lake) -> None:
    table = partitioned(lake, [(1, "a", 1), (2, None, 2)])
    added = Column("more", pa.int64(), "bigint", 4)
    wider = TableSchema(
        NAME, 2, (*SCHEMA.columns, added), ("id",), missing={"more": pa.scalar(7, pa.int64())}
    )
    table.evolve(wider)
    table.apply(changes(wider, [(3, "a", 3, 8)]), at(2))
    model = Model(wider)
    model.apply([(1, "a", 1, 7), (2, None, 2, 7), (3, "a", 3, 8)], [])
    assert_holds(lake.path, model)
