"""Two tables compared by fingerprints: every difference is found, whatever the types."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from change_samples import canonical, content, table_schema
from feeds import applied, stamp
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.diff import Bounds, TooManyRowsError, row_changes, vanished_keys
from headrace.model import Column, NetChanges, TableSchema, TableVersion

SCHEMA = table_schema({"id": "bigint", "name": "text", "score": "double precision"}, ["id"])
AT = TableVersion("log", 7, stamp(7))
PLENTY = Bounds(1000, 1000)
NAN = float("nan")
Row = dict[str, Any]


def reading(
    schema: TableSchema, rows: list[Row], pieces: int = 1
) -> Callable[[], Iterable[pa.Table]]:
    table = pa.Table.from_pylist(rows, schema=schema.arrow())
    size = max(-(-len(rows) // pieces), 1)
    return lambda: (table.slice(at, size) for at in range(0, max(len(rows), 1), size))


def compared(
    source: list[Row], destination: list[Row], schema: TableSchema = SCHEMA, bounds: Bounds = PLENTY
) -> NetChanges:
    one, other = reading(schema, source), reading(schema, destination, 2)
    return row_changes(schema, one, other, AT, bounds)


def row(key: int, name: str | None = "a", score: float | None = 1.0) -> Row:
    return {"id": key, "name": name, "score": score}


def test_only_what_differs_is_told() -> None:
    source = [row(1), row(2, "new"), row(4)]
    changes = compared(source, [row(1), row(2, "old"), row(3)])
    assert changes.upserts.to_pylist() == [row(2, "new"), row(4)]
    assert changes.deletes.to_pylist() == [{"id": 3}]
    assert changes.commit_ts == stamp(7)


def test_equal_tables_differ_in_nothing_whatever_their_order() -> None:
    rows = [row(1, None, None), row(2, "", NAN), row(3, "x", -0.0)]
    assert compared(rows, rows[::-1]).is_empty


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (row(1, None), row(1, "")),
        (row(1, "ab"), row(1, "a")),
        (row(1, "a", 0.0), row(1, "a", -0.0)),
        (row(1, "a", None), row(1, "a", 0.0)),
        (row(1, "a", NAN), row(1, "a", None)),
        (row(1, "x" * 1000), row(1, "x" * 999 + "y")),
    ],
)
def test_the_smallest_difference_is_found(one: Row, other: Row) -> None:
    for source, destination in ((one, other), (other, one)):
        changes = compared([row(0), source], [row(0), destination])
        assert content(changes.upserts.to_pylist()) == content([source])


def test_an_empty_side_is_a_side() -> None:
    assert compared([row(1)], []).upserts.num_rows == 1
    assert compared([], [row(1)]).deletes.num_rows == 1
    assert compared([], []).is_empty


def test_rows_that_share_a_key_are_rejected_even_where_the_destination_has_one_of_them() -> None:
    changes = compared([row(1, "x"), row(1, "y"), row(2)], [row(1, "x"), row(2)])
    (rejected,) = changes.rejected
    assert (rejected.code, rejected.rows.num_rows) == ("duplicate_key", 2)
    assert not changes.upserts.num_rows
    assert not changes.deletes.num_rows


def test_more_rows_than_may_be_compared_are_not_held() -> None:
    rows = [row(key) for key in range(5)]
    assert compared(rows, rows, bounds=Bounds(10, 0)).is_empty
    with pytest.raises(TooManyRowsError):
        compared(rows, rows, bounds=Bounds(9, 0))


def test_more_differences_than_are_wanted_are_not_fetched() -> None:
    fetched = 0

    def source() -> Iterable[pa.Table]:
        nonlocal fetched
        fetched += 1
        return reading(SCHEMA, [row(1), row(2), row(3)])()

    empty = reading(SCHEMA, [])
    with pytest.raises(TooManyRowsError):
        row_changes(SCHEMA, source, empty, AT, Bounds(10, 2))
    assert fetched == 1


def test_keys_that_vanished_are_those_that_only_the_destination_has() -> None:
    schema = table_schema({"a": "text", "b": "bigint", "v": "text"}, ["a", "b"])
    source = [{"a": "x", "b": 1}, {"a": "x", "b": 2}]
    destination = [{"a": "x", "b": 2}, {"a": "x1", "b": 1}, {"a": "y", "b": 1}]
    gone = vanished_keys(schema, reading(schema, source), reading(schema, destination), 10)
    assert gone.to_pylist() == [{"a": "x1", "b": 1}, {"a": "y", "b": 1}]
    with pytest.raises(TooManyRowsError):
        vanished_keys(schema, reading(schema, source), reading(schema, destination), 1)


# Every type that a Delta table has, two values of each that are easily taken for one another.
VALUES: dict[str, tuple[pa.DataType, Any, Any]] = {
    "boolean": (pa.bool_(), False, None),
    "byte": (pa.int8(), 0, None),
    "long": (pa.int64(), 2**62, 2**62 + 1),
    "float": (pa.float32(), 0.0, -0.0),
    "decimal": (pa.decimal128(38, 2), 0, None),
    "date": (pa.date32(), 0, None),
    "timestamp": (pa.timestamp("us", "UTC"), 1, 2),
    "timestamp_ntz": (pa.timestamp("us"), 0, None),
    "binary": (pa.binary(), b"", b"\0"),
    "array": (pa.list_(pa.string()), ["a", "b"], ["ab"]),
    "array of floats": (pa.list_(pa.float64()), [0.0], [-0.0]),
    "empty array": (pa.list_(pa.string()), [], None),
    "map": (pa.map_(pa.string(), pa.int64()), [("a", 1)], [("a", None)]),
    "struct": (pa.struct([("x", pa.int64()), ("y", pa.int64())]), {"x": 1}, {"y": 1}),
    "struct of null": (pa.struct([("x", pa.int64())]), {"x": None}, None),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_every_type_are_told_apart(name: str) -> None:
    kind, one, other = VALUES[name]
    columns = (SCHEMA.columns[0], Column("v", kind, name))
    schema = replace(SCHEMA, columns=columns)
    changes = compared([{"id": 1, "v": one}, {"id": 2, "v": one}], [{"id": 1, "v": other}], schema)
    assert changes.upserts["id"].to_pylist() == [1, 2]
    assert compared([{"id": 1, "v": one}], [{"id": 1, "v": one}], schema).is_empty


ROWS = st.dictionaries(
    st.integers(0, 8),
    st.tuples(st.none() | st.sampled_from(["", "a", "b"]), st.sampled_from([0.0, 1.0, NAN, None])),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(source=ROWS, destination=ROWS)
def test_what_is_told_makes_the_destination_equal(
    source: dict[int, Any], destination: dict[int, Any]
) -> None:
    """DESIGN §13, invariant 4."""
    wanted = [row(key, *values) for key, values in source.items()]
    there = [row(key, *values) for key, values in destination.items()]
    changes = compared(wanted, there)
    after = applied({(r["id"],): r for r in there}, changes)
    assert content(list(after.values())) == content(wanted)
    unequal = {canonical(r) for r in wanted} - {canonical(r) for r in there}
    assert changes.upserts.num_rows == len(unequal)
