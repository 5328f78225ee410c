"""Numbers rows so that equal rows, and only those, share a number: vectorised, for any type.

Equality is that of keys in Postgres, where NaN equals NaN; and null equals null. Text equals text
byte by byte, which is how the log names a row whatever the column's collation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


class Codes(NamedTuple):
    """A number per row, from 0 to `distinct` - 1, each of which some row has."""

    values: npt.NDArray[np.int64]
    distinct: int


def factorize(table: pa.Table, *, zeros_equal: bool) -> Codes:
    """Number the distinct rows of `table`; without columns all rows are one.

    `zeros_equal` says whether -0.0 is 0.0, as it is in a key, or tells it apart.
    """
    return _combine([_chunked(column, zeros_equal) for column in table.columns], table.num_rows)


def _chunked(column: pa.ChunkedArray, zeros_equal: bool) -> Codes:
    if pa.types.is_nested(column.type) or pa.types.is_floating(column.type):
        return _array(column.combine_chunks(), zeros_equal)
    encoded = column.dictionary_encode(null_encoding="encode")
    if encoded.num_chunks == 0:
        return Codes(np.zeros(0, np.int64), 0)
    parts = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    return Codes(np.concatenate(parts, dtype=np.int64), len(encoded.chunk(0).dictionary))


def _array(values: pa.Array, zeros_equal: bool) -> Codes:
    kind = values.type
    if pa.types.is_map(kind):
        entry = pa.struct([kind.key_field, kind.item_field])
        return _array(values.cast(pa.list_(entry)), zeros_equal)
    if pa.types.is_struct(kind):
        fields = [_array(field, zeros_equal) for field in values.flatten()]
        return _combine([_encode(values.is_valid()), *fields], len(values))
    if pa.types.is_nested(kind):
        return _lists(values, zeros_equal)
    if pa.types.is_floating(kind):
        return _encode(_float_bits(values, zeros_equal))
    return _encode(values)


def _lists(values: pa.Array, zeros_equal: bool) -> Codes:
    """A list is the bytes of its elements' codes, so that lists are compared as binary values."""
    elements = _array(values.flatten(), zeros_equal).values
    lengths = pc.list_value_length(values).fill_null(0).to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]) * elements.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(elements)]
    joined = pa.Array.from_buffers(pa.large_binary(), len(values), buffers)
    return _combine([_encode(values.is_valid()), _encode(joined)], len(values))


def _float_bits(values: pa.Array, zeros_equal: bool) -> pa.Array:
    """The values as integers: one NaN, whatever its payload, and, if asked, one zero."""
    if zeros_equal:
        values = pc.add(values, pa.scalar(0, values.type))  # IEEE 754: -0.0 + 0.0 is 0.0
    values = pc.if_else(pc.is_nan(values), pa.scalar(float("nan"), values.type), values)
    return values.view(pa.int64() if values.type == pa.float64() else pa.int32())


def _encode(values: pa.Array) -> Codes:
    encoded = values.dictionary_encode(null_encoding="encode")
    return Codes(encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary))


def _combine(columns: list[Codes], rows: int) -> Codes:
    if not columns:
        return Codes(np.zeros(rows, np.int64), min(rows, 1))
    whole = columns[0]
    for column in columns[1:]:
        # Arrow numbers with int32: each `distinct` is below 2^31, and their product fits.
        whole = _encode(pa.array(whole.values * column.distinct + column.values))
    return whole
