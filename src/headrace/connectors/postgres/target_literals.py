"""Structs, maps and lists as the literals that Postgres' composites, hstore and arrays read.

The inverse of `composites` and `arrays`: grammars in the Postgres documentation, "Composite Type
Input and Output Syntax", "Array Input and Output Syntax" and "hstore".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.types as pt

from headrace.model.arrow import is_binary, is_list
from headrace.model.times import moment

Texts = Sequence[str | None]
_Unit = Literal["D", "us"]


def literal_texts(values: pa.Array) -> pa.Array:
    """Each value as its type's input function reads it; null stays null."""
    return pa.array(_texts(values), pa.string())


def _texts(values: pa.Array) -> Texts:
    kind = values.type
    if pt.is_struct(kind):
        return _composites(values)
    if pt.is_map(kind):
        return _hstores(values)
    if is_list(kind):
        elements = [_element(text) for text in _texts(values.values)]
        return _joined(values, elements, lambda found: f"{{{','.join(found)}}}")
    if is_binary(kind):
        return [None if v is None else rf"\x{v.hex()}" for v in values.to_pylist()]
    if pt.is_date(kind):
        return _moments(values.cast(pa.date32()).cast(pa.int32()), "D", "")
    if pt.is_timestamp(kind):
        micro = values.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
        return _moments(micro, "us", "+00" if kind.tz else "")
    texts: Texts = values.cast(pa.string()).to_pylist()
    return texts


def _composites(values: pa.StructArray) -> Texts:
    fields = [[_field(text) for text in _texts(column)] for column in values.flatten()]
    rows = zip(values.is_valid().to_pylist(), *fields, strict=True)
    return [f"({','.join(row)})" if valid else None for valid, *row in rows]


def _field(text: str | None) -> str:
    return "" if text is None else _quoted(text)


def _element(text: str | None) -> str:
    return "NULL" if text is None else _quoted(text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _hstores(values: pa.MapArray) -> Texts:
    keys, items = (map(_element, _texts(column)) for column in (values.keys, values.items))
    pairs = [f"{key}=>{item}" for key, item in zip(keys, items, strict=True)]
    return _joined(values, pairs, ", ".join)


def _joined(
    values: pa.Array, elements: Sequence[str], join: Callable[[Sequence[str]], str]
) -> Texts:
    """The elements of each row as one text. Offsets count from the start of the whole array."""
    offsets = values.offsets.to_pylist()
    bounds = zip(values.is_valid().to_pylist(), offsets, offsets[1:], strict=False)
    return [join(elements[start:end]) if valid else None for valid, start, end in bounds]


def _moments(counts: pa.Array, unit: _Unit, zone: str) -> Texts:
    return [None if n is None else moment(n, unit, zone) for n in counts.to_pylist()]
