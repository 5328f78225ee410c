"""How Arrow values become Postgres values: the type that a column gets, and how it travels.

One table says what each Arrow type becomes (DESIGN.md §12). A column travels in a staging column of
a type that binary COPY fills exactly, and is assigned to its own column from there, where Postgres
raises what does not fit: assignment, unlike a cast, never cuts a text (PostgreSQL documentation,
"Value Storage").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.types as pt

from headrace.connectors.postgres.compatibility import JSON, TEXTS
from headrace.connectors.postgres.target_json import json_texts
from headrace.connectors.postgres.target_literals import literal_texts
from headrace.connectors.postgres.target_table import TargetColumn
from headrace.errors import DestinationError
from headrace.model import Column
from headrace.model.arrow import is_binary, is_list, is_text

Encode = Callable[[pa.Array], pa.Array]


def _same(values: pa.Array) -> pa.Array:
    return values


@dataclass(frozen=True)
class Arrival:
    """How values of an Arrow type arrive.

    `staging` is the Postgres type of the staging column, `type` the one that a column gets where
    nobody asked for another, and `encode` makes of the values an array that COPY's encoder takes.
    """

    staging: str
    type: str
    encode: Encode = _same


@dataclass(frozen=True)
class TypeRule:
    """One line of the table: Arrow types that `matches`, and how they arrive."""

    arrow: str  # as the reference page names it
    matches: Callable[[pa.DataType], bool]
    arrival: Callable[[pa.DataType], Arrival]
    note: str = ""


def _cast(arrow: pa.DataType) -> Encode:
    return lambda values: values.cast(arrow)


def _fixed(staging: str, encode: Encode = _same) -> Callable[[pa.DataType], Arrival]:
    return lambda _: Arrival(staging, staging, encode)


def _decimal(kind: pa.DataType) -> Arrival:
    digits = kind.precision - min(kind.scale, 0)  # numeric has no scale below 0 before 15
    target = f"numeric({digits},{max(kind.scale, 0)})"
    if pt.is_decimal256(kind):
        return Arrival("text", target, _cast(pa.string()))
    return Arrival("numeric", target)


def _timestamp(kind: pa.DataType) -> Arrival:
    staging = "timestamp with time zone" if kind.tz else "timestamp without time zone"
    micro = pa.timestamp("us", kind.tz)
    return Arrival(staging, staging, _same if kind == micro else _cast(micro))


def _json(_: pa.DataType) -> Arrival:
    return Arrival("text", "jsonb", json_texts)


_SMALL: Final = (pa.int8(), pa.int16(), pa.uint8())
_MIDDLE: Final = (pa.int32(), pa.uint16())
_LARGE: Final = (pa.int64(), pa.uint32())

# What binary COPY takes as it stands has no `encode`; what it does not know is cast exactly.
RULES: Final = (
    TypeRule("bool", pt.is_boolean, _fixed("boolean")),
    TypeRule("int8, int16, uint8", lambda t: t in _SMALL, _fixed("smallint")),
    TypeRule("int32, uint16", lambda t: t in _MIDDLE, _fixed("integer")),
    TypeRule("int64, uint32", lambda t: t in _LARGE, _fixed("bigint")),
    TypeRule("uint64", pt.is_uint64, lambda _: Arrival("numeric", "numeric(20,0)")),
    TypeRule("float16", pt.is_float16, _fixed("real", _cast(pa.float32()))),
    TypeRule("float32", pt.is_float32, _fixed("real"), "NaN and the infinities included"),
    TypeRule(
        "float64", pt.is_float64, _fixed("double precision"), "NaN and the infinities included"
    ),
    TypeRule("decimal(p, s)", pt.is_decimal, _decimal),
    TypeRule("string_view", pt.is_string_view, _fixed("text", _cast(pa.large_string()))),
    TypeRule("string", is_text, _fixed("text"), "a text with a null byte is quarantined"),
    TypeRule("binary_view", pt.is_binary_view, _fixed("bytea", _cast(pa.large_binary()))),
    TypeRule("binary", is_binary, _fixed("bytea")),
    TypeRule("date", pt.is_date32, _fixed("date")),
    TypeRule("date64", pt.is_date64, _fixed("date", _cast(pa.date32()))),
    TypeRule("timestamp, with and without zone", pt.is_timestamp, _timestamp, "microseconds"),
    TypeRule("time", pt.is_time, _fixed("time without time zone", _cast(pa.time64("us")))),
    TypeRule("duration", pt.is_duration, _fixed("interval", _cast(pa.duration("us")))),
    TypeRule("null", pt.is_null, _fixed("text", _cast(pa.string()))),
    TypeRule(
        "list of any of these",
        lambda t: _holds_scalars(t),
        lambda t: _list(t),
        "NULL elements kept",
    ),
    TypeRule("struct", pt.is_struct, _json, "JSON, exact"),
    TypeRule("map", pt.is_map, _json, "a JSON object; a key that is no string is its text"),
    TypeRule("list of structs, maps or lists", is_list, _json, "a JSON array"),
)


def _holds_scalars(kind: pa.DataType) -> bool:
    element = kind.value_type if is_list(kind) else None
    return element is not None and not (is_list(element) or pt.is_nested(element))


def _list(kind: pa.DataType) -> Arrival:
    element = arrival(kind.value_type)
    # COPY's encoder writes all timestamps' arrays as those without zone. Sessions are in UTC, where
    # the assignment to an array with zone changes nothing.
    staging = element.staging.replace("with time zone", "without time zone")
    encode = _list_encoder(kind, element.encode)
    return Arrival(f"{staging}[]", f"{element.type}[]", encode)


def _list_encoder(kind: pa.DataType, encode: Encode) -> Encode:
    if encode is _same and (pt.is_list(kind) or pt.is_large_list(kind)):
        return _same
    element = encode(pa.array([], kind.value_type)).type
    return _cast(pa.large_list(element))


def arrival(kind: pa.DataType) -> Arrival:
    """How values of an Arrow type arrive.

    Raises:
        DestinationError: Postgres has no type for it.
    """
    if isinstance(kind, pa.BaseExtensionType):
        plain = arrival(kind.storage_type)
        return Arrival(plain.staging, plain.type, lambda values: plain.encode(values.storage))
    if pt.is_dictionary(kind):
        plain = arrival(kind.value_type)
        return Arrival(plain.staging, plain.type, lambda v: plain.encode(v.dictionary_decode()))
    for rule in RULES:
        if rule.matches(kind):
            return rule.arrival(kind)
    raise DestinationError(
        f"Postgres has no type for {kind}",
        hint="exclude the column, or cast it at the source",
        arrow=str(kind),
    )


# Delta's type for values of any type; they are read as JSON texts.
VARIANT: Final = "variant"


def default_type(column: Column) -> str:
    """The type that a source's column gets where nobody asked for another.

    Raises:
        DestinationError: Postgres has no type for it.
    """
    return "jsonb" if column.source_type == VARIANT else arrival(column.type).type


def arrival_at(kind: pa.DataType, target: TargetColumn) -> Arrival:
    """How values arrive that a column takes.

    Structs, maps and lists that are to be json, jsonb or text arrive as JSON texts, and so do lists
    that are to be pgvector's vectors; else they arrive as the literals of composites, hstore and
    arrays. JSON texts of arrays with several dimensions, as Postgres columns give them, arrive as
    array literals.
    """
    nested = is_list(kind) or pt.is_nested(kind)
    if nested and not target.is_array:
        own = not is_list(kind) and target.family not in TEXTS | JSON
        return Arrival("text", target.cast, literal_texts if own else json_texts)
    if nested and not _holds_scalars(kind):
        return Arrival("text", target.cast, literal_texts)
    if is_text(kind) and target.is_array:
        return Arrival("text", target.cast, array_literals)
    return arrival(kind)


def array_literals(texts: pa.Array) -> pa.Array:
    """JSON arrays, of any number of dimensions, as the literals that Postgres' arrays read.

    What is one already, as a column gives that is read as text, stays as it is.
    """
    return pa.array([None if t is None else _literal(t) for t in texts.to_pylist()], pa.string())


# As `arrays.nested_json` writes them. A literal of an array ends in a brace, and if it begins with
# a quoted element, no colon follows that.
_JSON_ARRAY: Final = re.compile(r'\{"(\[[^"]*\])":(\[.*\])\}|(\[.*\])', re.DOTALL)
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\],]|[^\[\],"\s]+')
_BRACKETS: Final = {"[": "{", "]": "}", "null": "NULL"}


def _literal(text: str) -> str:
    """Numbers keep their digits: nothing is parsed but the strings."""
    found = _JSON_ARRAY.fullmatch(text)
    if found is None:
        return text
    bounds, shifted, plain = found.groups()
    elements = _TOKEN.sub(lambda token: _literal_token(token[0]), shifted or plain)
    return f"{bounds}={elements}" if bounds else elements


def _literal_token(token: str) -> str:
    if not token.startswith('"'):
        return _BRACKETS.get(token, token)
    value: str = json.loads(token)
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
