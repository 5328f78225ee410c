"""Variant values as JSON text: what a table without fixed types in a column tells of it.

Parquet's "Variant Binary Encoding", version 1, not shredded (PROTOCOL.md, "Variant Data Type").
JSON has fewer types: times are ISO 8601 text, binary is base64, a UUID is text, and so is a number
that JSON has no form for; decimals keep every digit.

Texts are spelled as Postgres' jsonb prints them, so that what was written there and is read back
is the same text: shorter names come first in an object, and a space stands behind , and : (but
jsonb has no exponents, and no -0.0).
"""

from __future__ import annotations

import base64
import json
import math
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class VariantError(ValueError):
    """Bytes that are no variant, or one with a type that is not known."""


def to_json(array: pa.Array) -> pa.Array:
    """The JSON text of each value of a column of (metadata, value) structs.

    Raises:
        VariantError: a value cannot be read.
    """
    metadata, values = array.field("metadata"), array.field("value")
    texts = (
        decode(m.as_py(), v.as_py()) if alive.as_py() else None
        for m, v, alive in zip(metadata, values, array.is_valid(), strict=True)
    )
    return pa.array(texts, pa.string())


def decode(metadata: bytes, value: bytes) -> str:
    """One value as JSON text.

    Raises:
        VariantError: it cannot be read.
    """
    try:
        return "".join(_text(_names(metadata), value, 0))
    except (IndexError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise VariantError(f"a variant is damaged: {error}") from error


def _bytes(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise IndexError("it ends too soon")
    return data[at : at + size]


def _unsigned(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(_bytes(data, at, size), "little")


def _offsets(data: bytes, at: int, size: int, count: int) -> list[int]:
    return [_unsigned(data, at + i * size, size) for i in range(count)]


def _names(metadata: bytes) -> Sequence[str]:
    if metadata[0] & 0xF != 1:
        raise VariantError(f"variants of version {metadata[0] & 0xF} are not known")
    size = (metadata[0] >> 6) + 1
    count = _unsigned(metadata, 1, size)
    offsets = _offsets(metadata, 1 + size, size, count + 1)
    start = 1 + size * (count + 2)
    return [_bytes(metadata, start + a, b - a).decode() for a, b in pairwise(offsets)]


def _text(names: Sequence[str], data: bytes, at: int) -> Iterator[str]:
    kind, header = data[at] & 3, data[at] >> 2
    if kind == 0:
        yield _primitive(header, data, at + 1)
    elif kind == 1:
        yield _quoted(_bytes(data, at + 1, header).decode())
    elif kind == 2:
        yield from _object(names, header, data, at + 1)
    else:
        yield from _array(names, header, data, at + 1)


def _object(names: Sequence[str], header: int, data: bytes, at: int) -> Iterator[str]:
    wide, id_size = (header & 3) + 1, (header >> 2 & 3) + 1
    count_size = 4 if header >> 4 & 1 else 1
    count = _unsigned(data, at, count_size)
    at += count_size
    ids = _offsets(data, at, id_size, count)
    offsets = _offsets(data, at + count * id_size, wide, count)
    values = at + count * id_size + (count + 1) * wide
    fields = [(names[i], values + offset) for i, offset in zip(ids, offsets, strict=True)]
    for number, (name, place) in enumerate(sorted(fields, key=_jsonb_order)):
        yield f"{', ' if number else '{'}{_quoted(name)}: "
        yield from _text(names, data, place)
    yield "}" if count else "{}"


def _jsonb_order(field: tuple[str, int]) -> tuple[int, bytes]:
    name = field[0].encode()
    return len(name), name


def _array(names: Sequence[str], header: int, data: bytes, at: int) -> Iterator[str]:
    wide, count_size = (header & 3) + 1, 4 if header >> 2 & 1 else 1
    count = _unsigned(data, at, count_size)
    at += count_size
    values = at + (count + 1) * wide
    for number, offset in enumerate(_offsets(data, at, wide, count)):
        yield ", " if number else "["
        yield from _text(names, data, values + offset)
    yield "]" if count else "[]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# -- primitive values ------------------------------------------------------------------------------


def _primitive(kind: int, data: bytes, at: int) -> str:
    if kind in _FIXED:
        return _FIXED[kind]
    if kind in (15, 16):
        size = _unsigned(data, at, 4)
        raw = _bytes(data, at + 4, size)
        return _quoted(raw.decode() if kind == 16 else base64.b64encode(raw).decode())
    if kind == 20:
        return _quoted(str(uuid.UUID(bytes=_bytes(data, at, 16))))
    if kind in _DECIMAL_BYTES:
        digits = _bytes(data, at + 1, _DECIMAL_BYTES[kind])
        unscaled = int.from_bytes(digits, "little", signed=True)
        return f"{Decimal(f'{unscaled}e-{data[at]}'):f}"
    if kind not in _PACKED:
        raise VariantError(f"variants of type {kind} are not known")
    form, show = _PACKED[kind]
    (value,) = struct.unpack_from(form, data, at)
    return show(value)


def _float(value: float) -> str:
    return repr(value) if math.isfinite(value) else _quoted(str(value))


def _single(value: float) -> str:
    """The shortest text that is the same single-precision number."""
    return str(np.float32(value)) if math.isfinite(value) else _float(value)


def _moment(zone: str, per_second: int) -> Callable[[int], str]:
    def show(value: int) -> str:
        seconds, fraction = divmod(value, per_second)
        whole = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
        digits = len(str(per_second)) - 1
        return _quoted(f"{whole.zfill(19)}.{fraction:0{digits}d}{zone}")

    return show


def _day(value: int) -> str:
    return _quoted(str((_EPOCH + timedelta(days=value)).date()))


def _time_of_day(value: int) -> str:
    return _quoted((_EPOCH + timedelta(microseconds=value)).time().isoformat("microseconds"))


_FIXED: Final = {0: "null", 1: "true", 2: "false"}
_DECIMAL_BYTES: Final = {8: 4, 9: 8, 10: 16}
_PACKED: Final[dict[int, tuple[str, Callable[[Any], str]]]] = {
    3: ("<b", str),
    4: ("<h", str),
    5: ("<i", str),
    6: ("<q", str),
    7: ("<d", _float),
    11: ("<i", _day),
    12: ("<q", _moment("Z", 10**6)),
    13: ("<q", _moment("", 10**6)),
    14: ("<f", _single),
    17: ("<q", _time_of_day),
    18: ("<q", _moment("Z", 10**9)),
    19: ("<q", _moment("", 10**9)),
}
