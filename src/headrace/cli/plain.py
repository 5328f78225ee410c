"""Values as JSON and as text for a terminal; pure.

JSON keeps what floats and JavaScript's numbers would not: decimals, bytes and what is not finite
become strings. Text for a terminal holds no control characters, because rows come from strangers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final

import pyarrow as pa
from rich import filesize

from headrace.errors import HeadraceError
from headrace.model import Lsn, TableId

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_PROSE: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # all but line feeds
MINUTE: Final = 60
HOUR: Final = 3600


def plain(value: Any) -> Any:
    """`value` as what `json.dumps` takes; our own dataclasses become objects of their fields."""
    match value:
        case Lsn() | TableId() | Decimal():
            return str(value)
        case Enum():
            return plain(value.value)
        case HeadraceError():
            return {"error": value.message, "hint": value.hint}
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return f"\\x{value.hex()}"  # as Postgres prints bytea
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Mapping():
            return {str(plain(key)): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return str(value)


def json_line(record: Any) -> str:
    """One record as one line."""
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False)


def cell(value: Any) -> str:
    """A row's value on one line, without anything that a terminal would obey."""
    made = plain(value)
    text = made if isinstance(made, str) else json.dumps(made, ensure_ascii=False)
    return _CONTROL.sub(_escaped, text)


def prose(text: str) -> str:
    """A message, with its line feeds, without anything else that a terminal would obey."""
    return _CONTROL_IN_PROSE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


def count(number: float) -> str:
    """1234567.8 as `1,234,568`."""
    return f"{number:,.0f}"


def about(name: str, text: str) -> str:
    """A text with what it is about before it, unless it begins with that itself."""
    return text if text.startswith((f"{name}:", f"{name} ")) else f"{name}: {text}"


def counted(number: int, thing: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count(number)} {thing}{'' if number == 1 else 's'}"


def size(number: int) -> str:
    """1234567 bytes as `1.2 MB`."""
    return filesize.decimal(number)


def duration(seconds: float) -> str:
    """`0.3 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"


def with_short_floats(rows: pa.Table) -> pa.Table:
    """Single-precision columns as doubles that print alike: 0.1, not 0.10000000149011612."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_float32(field.type):
            doubles = rows.column(index).cast(pa.string()).cast(pa.float64())
            rows = rows.set_column(index, field.name, doubles)
    return rows
