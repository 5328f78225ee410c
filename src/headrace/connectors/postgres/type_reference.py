"""The types that a Postgres source has, as a page of the reference: made from the table itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from headrace.connectors.postgres.types import (
    EXTENSIONS,
    FREE_NUMERIC,
    SCALARS,
    TEXTS,
    Scalar,
    decimal_of_numeric,
)


@dataclass(frozen=True)
class TypeRow:
    """A line of the reference page: names as SQL spells them."""

    postgres: str
    arrow: str
    snapshot: str  # binary or text
    note: str = ""


_SQL_NAMES: Final = {
    "bool": "boolean",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "varchar": "varchar(n)",
    "bpchar": "char(n)",
    "char": '"char"',
}

_FAMILIES: Final = (
    TypeRow("array", "list<element>", "text", "NULL elements kept; a value with more dimensions, "
            "or bounds that do not begin at 1, is refused: `as: text` takes it"),
    TypeRow("array, declared with more dimensions", "string", "text", "JSON; bounds that do not "
            "begin at 1 stand before them: `{\"[0:1]\":[1,2]}`; inside another value, as Postgres "
            "prints it"),
    TypeRow("composite", "struct", "text", "a field for each attribute, nested as they are"),
    TypeRow("domain", "that of its base type", "as its base type"),
    TypeRow("enum", "string", "text", "its label"),
    TypeRow("range types of your own", "string", "text"),
    TypeRow("any other, such as citext, ltree, sparsevec", "string", "text", "as Postgres "
            "prints it"),
)  # fmt: skip


_PAGE: Final = """\
## From Postgres to Arrow

A value is the same whether it came by the stream or by a snapshot. Values are exact; one that its
Arrow type cannot hold stops its table with an error that names it, and never becomes NULL, a
sentinel or a clamped value. The way out is `columns: as:`, which reads the whole column as text:
[Values that a type cannot hold](../how-to/unusual-values.md).

Texts are those of a session with `DateStyle=ISO`, `TimeZone=UTC`, `IntervalStyle=iso_8601`,
`extra_float_digits=3` and `bytea_output=hex`. The third column tells how a snapshot fetches the
column: in Postgres' binary format, or as the text that its type's output function prints.

| Postgres | Arrow | snapshot | remarks |
|---|---|---|---|
{rows}
"""


def types_table() -> list[TypeRow]:
    """Every type and what it becomes, in the order of the reference page."""
    decimal = decimal_of_numeric(pa.decimal128(38, 0))
    return [
        *(_row(_sql_name(name), scalar) for name, scalar in SCALARS.items()),
        TypeRow("numeric(p,s), 0 ≤ s ≤ p ≤ 38", "decimal128(p, s)", "binary", decimal.note),
        _row("numeric otherwise", FREE_NUMERIC),
        *(TypeRow(_sql_names(names), "string", "text", f"{k} types") for k, names in TEXTS.items()),
        *(_extension_row(*key, scalar) for key, scalar in EXTENSIONS.items()),
        *_FAMILIES,
    ]


def _sql_name(name: str) -> str:
    return _SQL_NAMES.get(name, name)


def _sql_names(names: str) -> str:
    return ", ".join(map(_sql_name, names.split()))


def _row(name: str, scalar: Scalar) -> TypeRow:
    sent = "text" if scalar.native is None else "binary"
    return TypeRow(name, str(scalar.arrow), sent, scalar.note)


def _extension_row(extension: str, name: str, scalar: Scalar) -> TypeRow:
    note = f"of the extension {extension}" if extension != name else "an extension's"
    remark = f"{note}; {scalar.note}" if scalar.note else note
    kind = str(scalar.arrow).replace("item: ", "")
    return TypeRow(name, kind, "text", remark)


def types_page() -> str:
    """This direction's part of the reference page, docs/reference/types.md."""
    lines = [f"| {r.postgres} | {r.arrow} | {r.snapshot} | {r.note} |" for r in types_table()]
    return _PAGE.format(rows="\n".join(lines))
