"""Takes rows out of tables whose text may exceed what 32-bit offsets can address.

Arrow's own `take` first concatenates a column's chunks, and fails where a `string` or `binary`
column holds 2 GiB or more. Chunks are gathered here through the large types and cut again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

PIECE_BYTES: Final = 1 << 30  # a value is below 1 GiB in Postgres, so a piece is below 2 GiB

_LARGE: Final = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def take(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """The rows at `rows`, in that order."""
    if len(rows) == table.num_rows and np.array_equal(rows, np.arange(len(rows))):
        return table
    columns = [take_column(column, rows) for column in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema)


def take_column(column: pa.ChunkedArray, rows: npt.NDArray[np.int64]) -> pa.ChunkedArray:
    """The values at `rows`, in that order."""
    indices = pa.array(rows)
    large = _LARGE.get(column.type)
    if large is None or column.num_chunks <= 1 or column.nbytes < PIECE_BYTES:
        return column.take(indices)
    values = column.cast(large).combine_chunks()
    pieces = [values.take(part).cast(column.type) for part in _pieces(values, indices)]
    return pa.chunked_array(pieces, column.type)


def _pieces(values: pa.Array, indices: pa.Array) -> list[pa.Array]:
    """`indices` in parts whose values 32 bits can address."""
    lengths = pc.binary_length(values).take(indices).fill_null(0)
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths.to_numpy()) // PIECE_BYTES)) + 1
    bounds = [0, *cuts.tolist(), len(indices)]
    return [indices.slice(a, b - a) for a, b in pairwise(bounds)]
