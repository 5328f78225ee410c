"""Exact casts of single-valued Postgres types to Arrow, a whole column at a time.

A value reaches us as the text of its type's output function: by the replication stream, and by a
snapshot where its COPY in binary holds something that `pgcopy` does not take. Arrow's kernels do
the work; values they cannot take (BC, years past 9999) go through plain Python, those alone; a
value that the Arrow type cannot hold raises `UnrepresentableValueError`, and never becomes NULL, a
sentinel or a clamped value (DESIGN §12).

The texts are those of a session with DateStyle=ISO, TimeZone=UTC, IntervalStyle=iso_8601,
extra_float_digits=3, bytea_output=hex and client_encoding=UTF8.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import UnrepresentableValueError

SHOWN_CHARACTERS: Final = 200  # of a value in an error: enough to find it, not a page of it

LAST_MICROSECOND: Final = (1 << 63) - 1

_ORDINARY_DATE: Final = r"^\d{4}-\d\d-\d\d$"
_ORDINARY_TIMESTAMP: Final = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?(\+00)?$"
_ANY_DATE: Final = re.compile(r"(\d{4,7})-(\d\d)-(\d\d)( BC)?", re.ASCII)
_ANY_TIMESTAMP: Final = re.compile(
    r"(\d{4,6})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:\+00)?( BC)?", re.ASCII
)

_HEX_PREFIX: Final = np.frombuffer(rb"\x", np.uint16)[0]
_NOT_HEX: Final = 256


def _hex_pairs() -> npt.NDArray[np.uint16]:
    """The byte that two hex digits stand for, by those digits read as one 16-bit number."""
    pairs = np.full(1 << 16, _NOT_HEX, np.uint16)
    digits = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)
    pairs[digits] = np.arange(256)
    return pairs


_HEX_PAIRS: Final = _hex_pairs()


# -- errors ----------------------------------------------------------------------------------------


def unrepresentable(
    value: str, row: int, count: int, arrow: pa.DataType
) -> UnrepresentableValueError:
    """The error for `count` values that `arrow` cannot hold; `value` is the first, at `row`."""
    shown = value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…"
    return UnrepresentableValueError(
        f"{arrow} cannot hold the value {shown!r} (row {row} of its batch; {count} such values)",
        hint="change the value at the source, then: headrace resync the table",
        value=shown,
        row=row,
        count=count,
        arrow=str(arrow),
    )


def rejected(
    text: pa.Array, rows: npt.NDArray[np.intp], arrow: pa.DataType
) -> UnrepresentableValueError:
    """The error for the values of `text` at `rows`, of which there is at least one."""
    value = text[int(rows[0])].as_py()
    shown = value if isinstance(value, str) else value.decode(errors="backslashreplace")
    return unrepresentable(shown, int(rows[0]), len(rows), arrow)


def kernel_cast(text: pa.Array, arrow: pa.DataType) -> pa.Array:
    """Arrow's own cast, which refuses what it cannot take exactly; the refused values are named."""
    try:
        return text.cast(arrow)
    except pa.ArrowInvalid:
        refused = [row for row, value in enumerate(text) if not _castable(value, arrow)]
        raise rejected(text, np.array(refused), arrow) from None


def _castable(value: pa.Scalar, arrow: pa.DataType) -> bool:
    try:
        value.cast(arrow)
    except pa.ArrowInvalid:
        return False
    return True


# -- buffers ---------------------------------------------------------------------------------------


def utf8(array: pa.Array) -> pa.StringArray:
    """Text as a StringArray, checked to be UTF-8: a SQL_ASCII database may hold anything."""
    return kernel_cast(array.view(pa.binary()), pa.string())


def string_buffers(text: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Offsets (one more than rows, the first 0) and bytes of all values, without copying them."""
    if len(text) == 0:
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    _, offset_buffer, data_buffer = text.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[text.offset : text.offset + len(text) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], data


def from_buffers(
    arrow: pa.DataType,
    offsets: npt.NDArray[np.int32],
    data: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_] | None = None,
) -> pa.Array:
    """A string or binary array over these offsets, bytes and validity (None: all valid)."""
    validity = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(arrow, len(offsets) - 1, buffers)


def flags(array: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    """Booleans as numpy, null counting as False."""
    filled: npt.NDArray[np.bool_] = array.fill_null(False).to_numpy(zero_copy_only=False)
    return filled


# -- from the text of the stream -------------------------------------------------------------------


def to_text(text: pa.StringArray) -> pa.StringArray:
    return text


def to_bool(text: pa.StringArray) -> pa.BooleanArray:
    true = pc.equal(text, "t")
    unknown = flags(pc.invert(pc.or_(true, pc.equal(text, "f"))))
    if unknown.any():
        raise rejected(text, np.flatnonzero(unknown), pa.bool_())
    return true


def to_binary(text: pa.StringArray) -> pa.BinaryArray:
    r"""bytea in hex (`\x6869`): one lookup for two digits, over the data of all values at once."""
    valid = flags(text.is_valid()) if text.null_count else None
    offsets, data = string_buffers(text if valid is None else text.fill_null(r"\x"))
    if (offsets & 1).any():
        raise _not_hex(text)
    prefixes = offsets[:-1] >> 1  # where each value's own two characters stand, among all pairs
    is_digits = np.ones(len(data) // 2, dtype=bool)
    is_digits[prefixes] = False
    pairs = data.view(np.uint16)
    decoded = _HEX_PAIRS.take(pairs[is_digits])
    if (pairs[prefixes] != _HEX_PREFIX).any() or (decoded == _NOT_HEX).any():
        raise _not_hex(text)
    starts = ((offsets >> 1) - np.arange(len(offsets))).astype(np.int32)
    return from_buffers(pa.binary(), starts, decoded.astype(np.uint8), valid)


def _not_hex(text: pa.StringArray) -> UnrepresentableValueError:
    wrong = pc.invert(pc.match_substring_regex(text, r"^\\x([0-9a-f]{2})*$"))
    return rejected(text, np.flatnonzero(flags(wrong)), pa.binary())


def to_date(text: pa.StringArray) -> pa.Date32Array:
    """`2024-01-31`, `0044-03-15 BC`, `12024-01-01`; not `infinity`."""
    return _cast_but(text, pa.date32(), _ORDINARY_DATE, _parse_date, pa.int32())


def to_timestamp(text: pa.StringArray, arrow: pa.TimestampType) -> pa.TimestampArray:
    """`2024-01-31 12:00:00.5` with or without `+00` and ` BC`; not `infinity`, not past 294247."""
    return _cast_but(text, arrow, _ORDINARY_TIMESTAMP, _parse_timestamp, pa.int64())


def _cast_but(
    text: pa.StringArray,
    arrow: pa.DataType,
    ordinary: str,
    parse: Callable[[str], int | None],
    storage: pa.DataType,
) -> pa.Array:
    """Arrow's cast, but for values that do not match `ordinary`: those go through `parse`."""
    try:
        return text.cast(arrow)
    except pa.ArrowInvalid:
        odd = pc.invert(pc.match_substring_regex(text, ordinary)).fill_null(False)
    rows = np.flatnonzero(flags(odd))
    parsed = [parse(text[int(row)].as_py()) for row in rows]
    refused = rows[[value is None for value in parsed]]
    if len(refused):
        raise rejected(text, refused, arrow)
    rest = kernel_cast(pc.if_else(odd, pa.scalar(None, pa.string()), text), arrow)
    return pc.replace_with_mask(rest, odd, pa.array(parsed, storage).cast(arrow))


def _parse_date(text: str) -> int | None:
    """Days since 1970-01-01, or None for an infinity."""
    match = _ANY_DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day, bc = match.groups()
    return _days(1 - int(year) if bc else int(year), int(month), int(day))


def _parse_timestamp(text: str) -> int | None:
    """Microseconds since 1970-01-01, or None for an infinity and what 64 bits cannot count."""
    match = _ANY_TIMESTAMP.fullmatch(text)
    if match is None:
        return None
    *civil, fraction, bc = match.groups()
    year, month, day, hour, minute, second = map(int, civil)
    days = _days(1 - year if bc else year, month, day)
    seconds = days * 86_400 + hour * 3600 + minute * 60 + second
    microseconds = seconds * 1_000_000 + int((fraction or "").ljust(6, "0"))
    return microseconds if microseconds <= LAST_MICROSECOND else None


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 in the proleptic Gregorian calendar, year 0 being 1 BC.

    The year begins in March, so that the leap day is its last; 400 years have 146,097 days.
    """
    year -= month <= 2
    cycle, year_of_cycle = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    leap_days = year_of_cycle // 4 - year_of_cycle // 100
    return cycle * 146_097 + year_of_cycle * 365 + leap_days + day_of_year - 719_468
