"""What a decoder is asked for and what it hands over: columns in Arrow's own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import pyarrow as pa


class Kind(IntEnum):
    """How the server sends a type in binary (its send function), and what becomes of it."""

    BOOL = 1  # one byte; bool
    INT2 = 2  # int16
    INT4 = 3  # int32
    INT8 = 4  # int64
    FLOAT4 = 5  # float32, with one NaN for all: the text of the stream has only one
    FLOAT8 = 6  # float64, likewise
    DATE = 7  # days since 2000-01-01; date32
    TIMESTAMP = 8  # microseconds since 2000-01-01, UTC or of no zone; timestamp[us]
    TEXT = 9  # the very text; string, not yet known to be UTF-8
    BYTES = 10  # binary
    JSONB = 11  # a version, then text; string
    UUID = 12  # sixteen bytes; string
    NUMERIC = 13  # digits to the base of 10,000; decimal128 or, exact, string


@dataclass(frozen=True)
class Wanted:
    """A column of the COPY: what comes, and the Arrow type that it becomes (see `Kind`)."""

    kind: Kind
    arrow: pa.DataType


@dataclass(frozen=True, eq=False, slots=True)
class CopiedColumn:
    """The values of some rows.

    `odd` is None or has, at the rows whose value the Arrow type cannot hold, the text that Postgres
    prints for it, and null at all others; `values` is null at those rows.
    """

    values: pa.Array
    odd: pa.StringArray | None = None

    def slice(self, offset: int, length: int) -> CopiedColumn:
        odd = None if self.odd is None else self.odd.slice(offset, length)
        return CopiedColumn(self.values.slice(offset, length), odd)


@dataclass(frozen=True, eq=False, slots=True)
class CopiedRows:
    """`rows` rows, in the order they came."""

    rows: int
    columns: Sequence[CopiedColumn]

    def slice(self, offset: int, length: int) -> CopiedRows:
        return CopiedRows(length, [column.slice(offset, length) for column in self.columns])
