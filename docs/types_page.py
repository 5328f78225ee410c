"""The reference page of types, made from the tables that the connectors go by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from headrace.connectors.delta.columns import Layout
from headrace.connectors.postgres.compatibility import EXACT, fit
from headrace.connectors.postgres.target_table import TargetColumn
from headrace.connectors.postgres.target_types import RULES, default_type
from headrace.connectors.postgres.type_reference import types_page as source_types
from headrace.model import Column

# As a Delta schema spells them, and how the page names them.
_DELTA_TYPES: Final[Mapping[str, Any]] = {
    **{
        name: name
        for name in (
            *("boolean", "byte", "short", "integer", "long", "float", "double"),
            *("string", "binary", "date", "timestamp", "timestamp_ntz", "variant"),
        )
    },
    "decimal(p, s)": "decimal(10,2)",
    "array of any of these": {"type": "array", "elementType": "integer", "containsNull": True},
    "struct": {"type": "struct", "fields": []},
    "map": {
        "type": "map",
        "keyType": "string",
        "valueType": "long",
        "valueContainsNull": True,
    },
    "array of structs, maps or arrays": {
        "type": "array",
        "elementType": {"type": "struct", "fields": []},
        "containsNull": True,
    },
}
# Columns that a user may have made: type, and the catalog's name of it.
_COLUMN_TYPES: Final[Mapping[str, str]] = {
    "smallint": "int2",
    "integer": "int4",
    "bigint": "int8",
    "numeric": "numeric",
    "real": "float4",
    "double precision": "float8",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
    "json": "json",
    "jsonb": "jsonb",
}
_TARGET_TYPES: Final = """\
## From Delta to Postgres

The type of a column that Headrace makes. Another one that you want goes into `columns: types:`, or
into the table that you make yourself; text, varchar and citext hold every value as its text.

| Delta | Arrow | Postgres | also held exactly by | remarks |
|---|---|---|---|---|
%s

A table that stands is judged before anything is written. Where a value might be changed silently
(a numeric with fewer decimal places, a timestamp without microseconds, a float for a decimal),
`headrace check` refuses the column, with the SQL that widens it. Where a value might be refused (a
`varchar(n)` that is too short, a numeric with fewer digits, an enum, a `uuid` or any other type
that reads texts), it warns: such rows go to [quarantine](../how-to/quarantine.md).

**In JSON** numbers keep all their digits, binary is base64, times are ISO 8601, and NaN and the
infinities are strings, as Postgres writes them itself. An array column holds NULL elements.

**Read back**, as `headrace verify` and a comparison of all rows do, every value of a column that
Headrace made is what was written, but for the order of a map's entries and the sign of a zero in
JSON, which jsonb does not keep. In a column of another type a value may come back in that type's
spelling (an upper-case `uuid` in lower case, a numeric with another scale): there the server says
whether it is what a merge would have written. A difference is never hidden.

**A null byte** in a text, alone or inside JSON, has no place in Postgres: the row goes to
quarantine.
"""


def types_page() -> str:
    """Both directions."""
    return f"# Types\n\n{source_types()}\n{target_types()}"


def target_types() -> str:
    """What a Delta table's columns become in Postgres."""
    rows = [_target_row(name, spelled) for name, spelled in _DELTA_TYPES.items()]
    return _TARGET_TYPES % "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _target_row(name: str, spelled: Any) -> Sequence[str]:
    field = {"name": "v", "type": spelled, "nullable": True, "metadata": {}}
    schema = json.dumps({"type": "struct", "fields": [field]})
    column = Layout.of({"schemaString": schema}).columns[0].declared()
    made = default_type(column)
    others = [kind for kind in _COLUMN_TYPES if kind != made and _holds(kind, column)]
    note = next(rule.note for rule in RULES if rule.matches(column.type))
    if name == "variant":
        note = "read as JSON text"
    if name == "array of any of these":
        made = "an array of its elements' type"
    arrow = str(column.type).partition("<")[0]  # of nested ones just the kind
    return name, _generic(arrow), _generic(made), ", ".join(others), note


def _generic(text: str) -> str:
    return text.replace("(10, 2)", "(p, s)").replace("(10,2)", "(p,s)")


def _holds(kind: str, column: Column) -> bool:
    there = TargetColumn("v", 1, kind, kind, kind, _COLUMN_TYPES[kind])
    return fit(column.type, there) == EXACT
