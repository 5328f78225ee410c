"""Rows are taken in the order asked for, also where a column is too big for 32-bit offsets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headrace.engine import gather

WORDS = ["a", "", None, "bcd", "ef", "ghijkl", None, "m"]


@pytest.mark.parametrize("rows", [[], [3], [7, 0, 2, 2, 5], list(range(8)), list(range(7, -1, -1))])
@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_big_columns_give_the_same_rows_as_small_ones(
    rows: list[int], kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = pa.array(WORDS).cast(kind)
    table = pa.table({"t": pa.chunked_array([values[:3], values[3:]]), "n": list(range(8))})
    indices = np.array(rows, np.int64)
    small = gather.take(table, indices)
    assert small.to_pylist() == [table.to_pylist()[row] for row in rows]
    monkeypatch.setattr(gather, "PIECE_BYTES", 4)
    big = gather.take(table, indices)
    assert big.schema == table.schema
    assert big.to_pylist() == small.to_pylist()


def test_big_columns_come_back_in_pieces_that_32_bits_can_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gather, "PIECE_BYTES", 10)
    column = pa.chunked_array([["x" * 4] * 10, ["y" * 9] * 10])
    taken = gather.take_column(column, np.arange(19, -1, -1))
    assert taken.to_pylist() == column.to_pylist()[::-1]
    # A piece is at most the limit and the one value that crosses it.
    assert max(chunk.nbytes - 4 * (len(chunk) + 1) for chunk in taken.chunks) < 20
