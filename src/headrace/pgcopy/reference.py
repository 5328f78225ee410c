"""The decoder in plain Python: the one to read, the fallback, and what the kernel is held against.

A decoder takes the CopyData messages of one COPY in binary and sorts their values into columns.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pyarrow as pa

from headrace.pgcopy.binary_format import (
    INT16,
    INT32,
    NULL,
    TRAILER,
    beyond_the_end,
    cut_off,
    header_size,
    wrong_count,
    wrong_value,
)
from headrace.pgcopy.columns import CopiedColumn, CopiedRows, Kind, Wanted
from headrace.pgcopy.texts import (
    EPOCH_DAYS,
    EPOCH_MICROSECONDS,
    FIRST,
    LAST,
    LATEST_DATE,
    LATEST_TIMESTAMP,
    NEGATIVE,
    SPECIAL,
    numeric_parts,
    numeric_text,
    odd_text,
)

_NUMBERS: Final = {
    Kind.INT2: struct.Struct(">h"),
    Kind.INT4: struct.Struct(">i"),
    Kind.INT8: struct.Struct(">q"),
    Kind.FLOAT4: struct.Struct(">f"),
    Kind.FLOAT8: struct.Struct(">d"),
    Kind.DATE: struct.Struct(">i"),
    Kind.TIMESTAMP: struct.Struct(">q"),
}
_STORAGE: Final = {Kind.DATE: pa.int32(), Kind.TIMESTAMP: pa.int64()}
_JSONB_VERSION: Final = b"\x01"


class _OddError(Exception):
    """A value that the Arrow type cannot hold."""


class ReferenceDecoder:
    """Accumulates rows from CopyData messages; see `push` and `take`. Used by one thread at a time.

    After an error it takes nothing more.
    """

    def __init__(self, columns: Sequence[Wanted]) -> None:
        self._columns = tuple(columns)
        self._started = self._ended = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._rows = self._bytes = 0
        self._values: list[list[Any]] = [[] for _ in self._columns]
        self._odd: list[dict[int, str]] = [{} for _ in self._columns]

    @property
    def rows(self) -> int:
        """Rows since the last take."""
        return self._rows

    @property
    def size(self) -> int:
        """Bytes of the messages since the last take."""
        return self._bytes

    @property
    def ended(self) -> bool:
        """The trailer has come."""
        return self._ended

    def push(self, messages: Iterable[bytes | memoryview]) -> None:
        """Take in CopyData messages, each one whole.

        Raises:
            ProtocolError: bytes that COPY's binary format does not allow, or another column count.
        """
        for message in messages:
            data = bytes(message)
            at = 0
            if not self._started:
                at, self._started = header_size(data), True
            while at < len(data):
                at = self._tuple(data, at)
            self._bytes += len(data)

    def pull(self, get: int, release: int, connection: int, limit: int) -> int:
        """The kernel's alone: what calls libpq by addresses cannot be plain Python."""
        raise NotImplementedError

    def take(self) -> CopiedRows:
        """Hand over everything gathered and begin anew."""
        columns = [
            _column(wanted, values, odd)
            for wanted, values, odd in zip(self._columns, self._values, self._odd, strict=True)
        ]
        taken = CopiedRows(self._rows, columns)
        self._begin_anew()
        return taken

    def _tuple(self, data: bytes, at: int) -> int:
        if self._ended:
            raise beyond_the_end()
        (count,) = _number(INT16, data, at)
        at += 2
        if count == TRAILER:
            self._ended = True
            return at
        if count != len(self._columns):
            raise wrong_count(count, len(self._columns))
        for column in range(count):
            (size,) = _number(INT32, data, at)
            at += 4
            end = at + max(size, 0)
            if size < NULL or end > len(data):
                raise cut_off()
            self._add(column, None if size == NULL else data[at:end])
            at = end
        self._rows += 1
        return at

    def _add(self, column: int, raw: bytes | None) -> None:
        wanted = self._columns[column]
        try:
            value = None if raw is None else _value(wanted, raw)
        except _OddError:
            value = None
            self._odd[column][self._rows] = odd_text(wanted.kind, wanted.arrow, raw or b"")
        except (struct.error, ValueError) as error:
            raise wrong_value(column) from error
        self._values[column].append(value)


def _number(layout: struct.Struct, data: bytes, at: int) -> tuple[Any, ...]:
    if len(data) - at < layout.size:
        raise cut_off()
    return layout.unpack_from(data, at)


def _value(wanted: Wanted, raw: bytes) -> Any:
    """One value as pyarrow takes it.

    Raises:
        _OddError: the Arrow type cannot hold it.
        ValueError, struct.error: these are not bytes of the type.
    """
    kind = wanted.kind
    if kind in _NUMBERS:
        return _number_of(kind, _NUMBERS[kind].unpack(raw)[0])
    if kind is Kind.NUMERIC:
        return _decimal(wanted.arrow, raw) if _is_decimal(wanted.arrow) else _checked_text(raw)
    if kind is Kind.BOOL:
        if len(raw) != 1:
            raise ValueError("a bool of several bytes")
        return raw != b"\0"
    if kind is Kind.UUID:
        return str(UUID(bytes=raw)).encode()
    if kind is Kind.JSONB:
        if raw[:1] != _JSONB_VERSION:
            raise ValueError("another version of jsonb")
        return raw[1:]
    return raw


def _number_of(kind: Kind, value: Any) -> Any:
    if kind in (Kind.FLOAT4, Kind.FLOAT8):
        return math.nan if math.isnan(value) else value
    if kind in FIRST:
        if value in (FIRST[kind], LAST[kind]) or value > LATEST_TIMESTAMP:
            raise _OddError
        if kind is Kind.DATE and value > LATEST_DATE:
            raise ValueError("no such date")
        return value + (EPOCH_MICROSECONDS if kind is Kind.TIMESTAMP else EPOCH_DAYS)
    return value


def _is_decimal(arrow: pa.DataType) -> bool:
    return bool(pa.types.is_decimal128(arrow))


def _checked_text(raw: bytes) -> bytes:
    return numeric_text(raw).encode()


def _decimal(arrow: pa.Decimal128Type, raw: bytes) -> Decimal:
    weight, sign, _, digits = numeric_parts(raw)
    if sign in SPECIAL:
        raise _OddError
    number = int("".join(f"{digit:04}" for digit in digits) or "0")
    shift = 4 * (weight - len(digits) + 1) + arrow.scale
    unscaled, lost = (number * 10**shift, 0) if shift >= 0 else divmod(number, 10**-shift)
    if lost or unscaled >= 10**arrow.precision:
        raise _OddError
    figures = tuple(map(int, str(unscaled)))
    return Decimal((int(sign == NEGATIVE), figures, -arrow.scale))


def _column(wanted: Wanted, values: list[Any], odd: dict[int, str]) -> CopiedColumn:
    if pa.types.is_string(wanted.arrow):
        array = pa.array(values, pa.binary()).view(pa.string())
    elif wanted.kind in _STORAGE:
        array = pa.array(values, _STORAGE[wanted.kind]).view(wanted.arrow)
    else:
        array = pa.array(values, wanted.arrow)
    return CopiedColumn(array, _odd_texts(odd, len(values)))


def _odd_texts(odd: dict[int, str], rows: int) -> pa.StringArray | None:
    return pa.array([odd.get(row) for row in range(rows)], pa.string()) if odd else None
