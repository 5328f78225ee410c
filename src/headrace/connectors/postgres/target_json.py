"""Structs, maps and nested lists as JSON texts that say exactly what the values are.

JSON numbers have any number of digits, and jsonb keeps them as numeric: decimals and 64-bit
integers lose nothing. Binary is base64, times are ISO 8601, what JSON has no number for (NaN and
the infinities) is its name as a string, as Postgres itself writes it. A map is an object; keys that
are no strings are their texts.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from headrace.model.arrow import is_binary, is_list

Writer = Callable[[Any], str]


def json_texts(values: pa.Array) -> pa.Array:
    """Each value's JSON text; null stays null."""
    write = _writer(values.type)
    plain = _exact(values)
    return pa.array([None if v is None else write(v) for v in plain.to_pylist()], pa.string())


def _exact(values: pa.Array) -> pa.Array:
    """Python knows no nanoseconds: such times are cast, which fails where that would round."""
    target = _in_microseconds(values.type)
    return values if target == values.type else values.cast(target)


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    if pt.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pt.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if pt.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if pt.is_map(kind):
        return pa.map_(_in_microseconds(kind.key_type), _in_microseconds(kind.item_type))
    if pt.is_struct(kind):
        return pa.struct([f.with_type(_in_microseconds(f.type)) for f in kind])
    if is_list(kind):
        return pa.large_list(_in_microseconds(kind.value_type))
    return kind


def _writer(kind: pa.DataType) -> Writer:
    if pt.is_struct(kind):
        return _object([(_string(f.name), _writer(f.type)) for f in kind])
    if pt.is_map(kind):
        return _map(_writer(kind.key_type), _writer(kind.item_type))
    if is_list(kind):
        return _array(_writer(kind.value_type))
    if pt.is_dictionary(kind):
        return _writer(kind.value_type)
    return _nullable(_scalar(kind))


def _scalar(kind: pa.DataType) -> Writer:
    if pt.is_boolean(kind):
        return lambda value: "true" if value else "false"
    if pt.is_integer(kind):
        return str
    if pt.is_decimal(kind):
        return lambda value: format(value, "f")
    if pt.is_float32(kind) or pt.is_float16(kind):
        return _single
    if pt.is_floating(kind):
        return _double
    if pt.is_timestamp(kind):
        return _instant if kind.tz else lambda value: _string(value.isoformat())
    if pt.is_date(kind) or pt.is_time(kind):
        return lambda value: _string(value.isoformat())
    if is_binary(kind):
        return _base64
    return lambda value: _string(str(value))


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _double(value: float) -> str:
    return repr(value) if math.isfinite(value) else _string(_INFINITE.get(value, "NaN"))


_INFINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


def _single(value: float) -> str:
    """The shortest digits that are this number in single precision."""
    if not math.isfinite(value):
        return _double(value)
    return str(pa.scalar(value, pa.float32()).cast(pa.string()))


def _instant(value: datetime) -> str:
    return _string(value.isoformat())


def _base64(value: bytes) -> str:
    return f'"{base64.b64encode(value).decode()}"'


def _nullable(write: Writer) -> Writer:
    return lambda value: "null" if value is None else write(value)


def _object(fields: list[tuple[str, Writer]]) -> Writer:
    def write(value: Any) -> str:
        if value is None:
            return "null"
        members = zip(fields, value.values(), strict=True)
        return "{" + ",".join(f"{name}:{write(item)}" for (name, write), item in members) + "}"

    return write


def _map(write_key: Writer, write_item: Writer) -> Writer:
    def key(value: Any) -> str:
        text = write_key(value)
        return text if text.startswith('"') else _string(text)

    def write(value: Any) -> str:
        if value is None:
            return "null"
        return "{" + ",".join(f"{key(k)}:{write_item(v)}" for k, v in value) + "}"

    return write


def _array(write_item: Writer) -> Writer:
    return lambda value: (
        "null" if value is None else "[" + ",".join(write_item(v) for v in value) + "]"
    )
