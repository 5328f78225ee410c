"""COPY's binary format, written by hand: what a server would send, and what it never would."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pyarrow as pa

from headrace.pgcopy import CopiedRows, Kind, Wanted

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

ARROW = {
    Kind.BOOL: pa.bool_(),
    Kind.INT2: pa.int16(),
    Kind.INT4: pa.int32(),
    Kind.INT8: pa.int64(),
    Kind.FLOAT4: pa.float32(),
    Kind.FLOAT8: pa.float64(),
    Kind.DATE: pa.date32(),
    Kind.TIMESTAMP: pa.timestamp("us", "UTC"),
    Kind.TEXT: pa.string(),
    Kind.BYTES: pa.binary(),
    Kind.JSONB: pa.string(),
    Kind.UUID: pa.string(),
    Kind.NUMERIC: pa.string(),
}


def wanted(kind: Kind, arrow: pa.DataType | None = None) -> Wanted:
    return Wanted(kind, arrow or ARROW[kind])


def row(*values: bytes | None) -> bytes:
    fields = (
        struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value
        for value in values
    )
    return struct.pack(">h", len(values)) + b"".join(fields)


def numeric(weight: int, sign: int, decimals: int, digits: Sequence[int]) -> bytes:
    return struct.pack(f">hhHh{len(digits)}h", len(digits), weight, sign, decimals, *digits)


def same_rows(one: CopiedRows, other: CopiedRows) -> bool:
    """Equal in types, values (to the bit) and odd texts."""
    assert one.rows == other.rows
    for left, right in zip(one.columns, other.columns, strict=True):
        left.values.validate(full=not pa.types.is_string(left.values.type))
        assert left.values.type == right.values.type
        assert left.values.null_count == right.values.null_count
        assert _plain(left.values) == _plain(right.values)
        assert (left.odd is None) == (right.odd is None)
        assert left.odd is None or left.odd.equals(right.odd)
    return True


def _plain(values: pa.Array) -> list[object]:
    """Values that compare by their bits and need not be UTF-8."""
    if pa.types.is_string(values.type):
        return list(values.view(pa.binary()).to_pylist())
    if pa.types.is_floating(values.type):
        return [None if v is None else struct.pack(">d", v) for v in values.to_pylist()]
    if pa.types.is_timestamp(values.type):
        return list(values.view(pa.int64()).to_pylist())
    if pa.types.is_date(values.type):
        return list(values.view(pa.int32()).to_pylist())
    return list(values.to_pylist())
