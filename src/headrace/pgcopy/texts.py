"""The texts that Postgres prints for binary values, where Arrow has no type that holds them.

numeric: numeric_send and get_str_from_var of numeric.c: a count of digits to the base of 10,000,
the weight of the first, a sign, the decimals to print, the digits. Dates and timestamps: the
infinities are the ends of their integers (timestamp.h).
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.pgcopy.binary_format import INT32, INT64
from headrace.pgcopy.columns import Kind

EPOCH_DAYS: Final = 10_957  # from 1970-01-01 to 2000-01-01
EPOCH_MICROSECONDS: Final = EPOCH_DAYS * 86_400_000_000
FIRST: Final = {Kind.DATE: -(1 << 31), Kind.TIMESTAMP: -(1 << 63)}  # -infinity
LAST: Final = {Kind.DATE: (1 << 31) - 1, Kind.TIMESTAMP: (1 << 63) - 1}  # infinity
LATEST_DATE: Final = LAST[Kind.DATE] - EPOCH_DAYS  # Postgres' own end is 7,000 years before it
LATEST_TIMESTAMP: Final = LAST[Kind.TIMESTAMP] - EPOCH_MICROSECONDS

NUMERIC_HEADER: Final = struct.Struct(">hhHh")
NEGATIVE: Final = 0x4000
SPECIAL: Final = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}


def odd_text(kind: Kind, arrow: pa.DataType, raw: bytes) -> str:
    """What Postgres prints for a value that `arrow` cannot hold."""
    if kind is Kind.NUMERIC:
        return numeric_text(raw)
    (value,) = (INT32 if kind is Kind.DATE else INT64).unpack(raw)
    if value == FIRST[kind]:
        return "-infinity"
    return "infinity" if value == LAST[kind] else _timestamp_text(value, arrow.tz)


def _timestamp_text(since_2000: int, zone: str | None) -> str:
    """One of the last 30 years of Postgres, which 64 bits since 1970 cannot count."""
    seconds, fraction = divmod(since_2000 + EPOCH_MICROSECONDS, 1_000_000)
    whole = str(np.datetime64(seconds, "s")).lstrip("+").replace("T", " ")
    decimals = f".{fraction:06}".rstrip("0") if fraction else ""
    return whole + decimals + ("+00" if zone else "")


def numeric_parts(raw: bytes) -> tuple[int, int, int, list[int]]:
    """Weight of the first digit, sign, decimals, digits.

    Raises:
        ValueError: these are not the bytes of a numeric.
    """
    if len(raw) < NUMERIC_HEADER.size:
        raise ValueError("too short")
    count, weight, sign, decimals = NUMERIC_HEADER.unpack_from(raw)
    if count < 0 or decimals < 0 or len(raw) != NUMERIC_HEADER.size + 2 * count:
        raise ValueError("its length is not that of its digits")
    digits = list(struct.unpack_from(f">{count}h", raw, NUMERIC_HEADER.size))
    if sign not in (0, NEGATIVE, *SPECIAL) or any(not 0 <= digit < 10_000 for digit in digits):
        raise ValueError("no such sign or digit")
    return weight, sign, decimals, digits


def numeric_text(raw: bytes) -> str:
    """All of a numeric's digits, with the decimals that it was declared or computed with."""
    weight, sign, decimals, digits = numeric_parts(raw)
    if sign in SPECIAL:
        return SPECIAL[sign]

    def digit(position: int) -> int:
        index = weight - position
        return digits[index] if 0 <= index < len(digits) else 0

    whole = "".join(f"{digit(at):04}" for at in range(max(weight, 0), -1, -1)).lstrip("0") or "0"
    groups = -(-decimals // 4)
    fraction = "".join(f"{digit(-at):04}" for at in range(1, groups + 1))[:decimals]
    return ("-" if sign == NEGATIVE else "") + whole + ("." + fraction if decimals else "")
