"""Two readings of a table, compared as multisets: exact counts, whatever is in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.compare import Comparison, Fingerprint, ReadRows
from headrace.model import Column, TableId, TableSchema

SCHEMA = TableSchema(
    TableId("public", "t"),
    1,
    (Column("n", pa.int64(), "bigint"), Column("f", pa.float64(), "double precision")),
)
Row = tuple[int | None, float | None]
VALUES = st.tuples(st.none() | st.integers(0, 3), st.sampled_from([None, 0.0, -0.0, 1.5]))


def reading(rows: list[Row], piece: int = 7) -> ReadRows:
    numbers, floats = ([row[i] for row in rows] for i in range(2))
    table = pa.table([pa.array(numbers, pa.int64()), pa.array(floats, pa.float64())], SCHEMA.names)
    return lambda: (table.slice(at, piece) for at in range(0, len(rows), piece))


def compared(wanted: list[Row], found: list[Row], at_once: int = 1000) -> Comparison:
    fingerprint = Fingerprint.of(SCHEMA, SCHEMA.names)
    return Comparison(reading(wanted), reading(found, 5), fingerprint, at_once)


def texts(parts: Iterable[pa.Table]) -> Counter[str]:
    """-0.0 and 0.0 have different texts, but are equal."""
    return Counter(str(row) for part in parts for row in part.to_pylist())


def expected(rows: list[Row]) -> Counter[str]:
    return Counter(str({"n": n, "f": f}) for n, f in rows)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=30), st.lists(VALUES, max_size=30), st.integers(1, 40))
def test_differences_are_those_of_multisets_however_few_rows_are_held(
    wanted: list[Row], found: list[Row], at_once: int
) -> None:
    comparison = compared(wanted, found, at_once)
    missing, extra = expected(wanted) - expected(found), expected(found) - expected(wanted)
    assert (comparison.missing, comparison.extra) == (missing.total(), extra.total())
    assert texts(comparison.missing_rows()) == missing
    assert texts(comparison.extra_rows()) == extra
    assert texts(comparison.extra_rows()) == extra  # and again


@pytest.mark.parametrize("at_once", [50, 1_000_000])
def test_large_tables_of_which_little_or_all_differs(at_once: int) -> None:
    rows: list[Row] = [(n, 0.5) for n in range(3000)]
    little = [*rows[:1500], (1500, 0.25), *rows[1502:], (1, 0.5)]
    comparison = compared(rows, little, at_once)
    assert (comparison.missing, comparison.extra) == (2, 2)
    assert texts(comparison.missing_rows()) == expected([(1500, 0.5), (1501, 0.5)])
    assert texts(comparison.extra_rows()) == expected([(1500, 0.25), (1, 0.5)])
    every = compared(rows, [(n, 0.25) for n, _ in rows], at_once * 10)
    assert (every.missing, every.extra) == (3000, 3000)


def test_only_rows_of_what_differs_are_read_again() -> None:
    readings = 0
    rows = reading([(n, None) for n in range(100)])

    def counted() -> Iterable[pa.Table]:
        nonlocal readings
        readings += 1
        return rows()

    fingerprint = Fingerprint.of(SCHEMA, SCHEMA.names)
    assert Comparison(counted, rows, fingerprint).missing == 0
    assert readings == 1
    comparison = Comparison(counted, reading([]), fingerprint)
    assert texts(comparison.missing_rows()).total() == 100
    assert readings == 1 + 3  # for the sums, for the difference, for its rows
