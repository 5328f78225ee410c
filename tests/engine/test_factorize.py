"""Equal rows get equal numbers and different rows different ones, whatever their types."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from change_samples import canonical
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.factorize import factorize

FLOATS = st.sampled_from([0.5, 1.0, float("nan"), 1e300])
INTS = st.integers(-1, 1)
TEXTS = st.sampled_from(["", "a", "b", "ab", "é"])
TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int64": (pa.int64(), INTS),
    "bool": (pa.bool_(), st.booleans()),
    "string": (pa.string(), TEXTS),
    "binary": (pa.binary(), st.binary(max_size=1)),
    "double": (pa.float64(), FLOATS),
    "float": (pa.float32(), st.sampled_from([0.5, float("nan")])),
    "decimal": (pa.decimal128(20, 2), st.decimals(-1, 1, places=2)),
    "timestamp": (pa.timestamp("us", "UTC"), INTS),
    "date": (pa.date32(), INTS),
    "time": (pa.time64("us"), st.integers(0, 1)),
    "list": (pa.list_(pa.string()), st.lists(st.none() | TEXTS, max_size=2)),
    "lists": (pa.list_(pa.list_(pa.int64())), st.lists(st.none() | st.lists(INTS, max_size=2))),
    "vector": (pa.list_(pa.float64(), 2), st.lists(FLOATS, min_size=2, max_size=2)),
    "map": (
        pa.map_(pa.string(), pa.int64()),
        st.lists(st.tuples(TEXTS, st.none() | INTS), max_size=2),
    ),
    "struct": (
        pa.struct([("x", pa.int64()), ("y", pa.list_(pa.float64()))]),
        st.fixed_dictionaries(
            {"x": st.none() | INTS, "y": st.none() | st.lists(FLOATS, max_size=1)}
        ),
    ),
}


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_numbers_are_equal_exactly_where_rows_are(name: str, data: st.DataObject) -> None:
    kind, values = TYPES[name]
    rows = data.draw(st.lists(st.tuples(st.none() | values, st.none() | INTS), max_size=12))
    cut = data.draw(st.integers(0, len(rows)))
    whole = pa.array([v for v, _ in rows], kind)
    numbers = pa.array([n for _, n in rows], pa.int64())
    table = pa.table(
        {
            "v": pa.chunked_array([whole[:cut], whole[cut:]]),
            "n": pa.chunked_array([numbers[:cut], numbers[cut:]]),
        }
    )
    codes = factorize(table, zeros_equal=False)
    shown = [canonical(list(row.values())) for row in table.to_pylist()]
    pairs = set(zip(shown, codes.values.tolist(), strict=True))
    assert len(pairs) == len(set(shown)) == codes.distinct
    assert {code for _, code in pairs} == set(range(codes.distinct))


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_zeros_are_one_key_and_two_values(kind: pa.DataType) -> None:
    table = pa.table({"f": pa.array([0.0, -0.0, None], kind)})
    assert factorize(table, zeros_equal=True).distinct == 2
    assert factorize(table, zeros_equal=False).distinct == 3


def test_rows_without_columns_are_all_the_same() -> None:
    rows = pa.table({"n": [1, 2]}).select([])
    assert factorize(rows, zeros_equal=True).distinct == 1
