"""JSON texts back to the structs, maps and nested lists that they were made of (`target_json`).

Exact, but for what jsonb does not keep: the order of a map's entries, an entry given twice, and the
sign of a zero.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as pt

from headrace.model.arrow import is_binary, is_list

Read = Callable[[Any], Any]

_DURATION: Final = re.compile(r"(?:(-?\d+) days?, )?(\d+):(\d\d):(\d\d)(?:\.(\d{6}))?")


def from_json(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Each text as a value of `kind`; null stays null.

    Raises:
        ValueError, TypeError, KeyError, ArithmeticError, AttributeError, pa.ArrowException: a text
            is not JSON, or not that of such a value.
    """
    read = _reader(kind)
    parsed = (
        None if text is None else json.loads(text, parse_float=Decimal)
        for text in texts.to_pylist()
    )
    return pa.array([read(value) for value in parsed], kind)


def _reader(kind: pa.DataType) -> Read:
    if pt.is_struct(kind):
        return _nullable(_struct({f.name: _reader(f.type) for f in kind}))
    if pt.is_map(kind):
        return _nullable(_map(_key_reader(kind.key_type), _reader(kind.item_type)))
    if is_list(kind):
        read_item = _reader(kind.value_type)
        return _nullable(lambda value: [read_item(item) for item in value])
    if pt.is_dictionary(kind):
        return _reader(kind.value_type)
    return _nullable(_scalar(kind))


def _nullable(read: Read) -> Read:
    return lambda value: None if value is None else read(value)


def _struct(fields: dict[str, Read]) -> Read:
    def read(value: Any) -> dict[str, Any]:
        if value.keys() - fields.keys():
            raise ValueError(f"fields that the struct has not: {value.keys() - fields.keys()}")
        return {name: read_field(value[name]) for name, read_field in fields.items()}

    return read


def _map(read_key: Read, read_item: Read) -> Read:
    return lambda value: [(read_key(key), read_item(item)) for key, item in value.items()]


def _key_reader(kind: pa.DataType) -> Read:
    """A key that is no JSON string is written as the text of its JSON."""
    read = _reader(kind)
    if pt.is_boolean(kind) or pt.is_integer(kind) or pt.is_decimal(kind):
        return lambda text: read(json.loads(text, parse_float=Decimal))
    return read  # strings, and floats, whose names and digits `float` reads


def _scalar(kind: pa.DataType) -> Read:
    if pt.is_boolean(kind) or pt.is_integer(kind):
        return _same
    if pt.is_decimal(kind):
        return Decimal
    if pt.is_floating(kind):
        return float
    if pt.is_timestamp(kind):
        return datetime.fromisoformat
    if pt.is_date(kind):
        return date.fromisoformat
    if pt.is_time(kind):
        return time.fromisoformat
    if pt.is_duration(kind):
        return _duration
    return base64.b64decode if is_binary(kind) else _same


def _same(value: Any) -> Any:
    return value


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"no duration: {text!r}")
    days, hours, minutes, seconds, fraction = (int(part or 0) for part in found.groups())
    return timedelta(days, seconds, fraction, 0, minutes, hours)
