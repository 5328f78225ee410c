"""Dates and times of any age: Postgres and Arrow know years that Python's own types do not.

Python's begin in the year 1 and end in 9999. Beyond, a value is its text as Postgres prints it
(ISO dates, UTC): `0044-03-15 BC`, `12345-01-01 00:00:00+00`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.types as t

_CIVIL: Final = re.compile(r"\+?(-?\d+)(-\d\d-\d\d)(?:T(\d\d:\d\d:\d\d)(\.\d*[1-9])?(?:\.?0*))?")
_Spell = Callable[[Any], Any]


def moment(count: int, unit: Literal["D", "us"], zone: str = "") -> str:
    """The date or timestamp so many days or microseconds after 1970 began; `zone` such as +00."""
    found = _CIVIL.fullmatch(str(np.datetime64(count, unit)))
    assert found is not None  # that is how numpy prints them
    year, day, time, fraction = int(found[1]), found[2], found[3], found[4] or ""
    clock = f" {time}{fraction}" if time else ""
    civil = f"{year if year > 0 else 1 - year:04}{day}{clock}"
    return f"{civil}{zone}{'' if year > 0 else ' BC'}"


def counted(kind: pa.DataType) -> pa.DataType:
    """The type with days and microseconds as numbers, to which every value can be cast."""
    if t.is_struct(kind):
        return pa.struct([field.with_type(counted(field.type)) for field in kind])
    if t.is_map(kind):
        return pa.map_(counted(kind.key_type), counted(kind.item_type))
    if t.is_list(kind):
        return pa.list_(kind.value_field.with_type(counted(kind.value_type)))
    if t.is_date32(kind):
        return pa.int32()
    return pa.int64() if t.is_timestamp(kind) and kind.unit == "us" else kind


def python_values(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """A column as Python values; where one is beyond Python's years, all its times are texts."""
    try:
        found: list[Any] = values.to_pylist()
    except (OverflowError, ValueError):
        spell = _speller(values.type)
        found = [spell(value) for value in values.cast(counted(values.type)).to_pylist()]
    return found


def python_rows(rows: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows by their columns' names, as `python_values` gives each column."""
    columns = [python_values(column) for column in rows.columns]
    return [dict(zip(rows.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _speller(kind: pa.DataType) -> _Spell:
    if t.is_date32(kind):
        return _unless_null(lambda days: moment(days, "D"))
    if t.is_timestamp(kind) and kind.unit == "us":
        zone = "+00" if kind.tz else ""
        return _unless_null(lambda count: moment(count, "us", zone))
    if t.is_struct(kind):
        fields = {field.name: _speller(field.type) for field in kind}
        return _unless_null(lambda v: {name: spell(v[name]) for name, spell in fields.items()})
    if t.is_map(kind):
        key, item = _speller(kind.key_type), _speller(kind.item_type)
        return _unless_null(lambda pairs: [(key(k), item(v)) for k, v in pairs])
    if t.is_list(kind):
        spell = _speller(kind.value_type)
        return _unless_null(lambda values: [spell(value) for value in values])
    return lambda value: value


def _unless_null(spell: _Spell) -> _Spell:
    return lambda value: None if value is None else spell(value)
