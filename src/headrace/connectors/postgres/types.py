"""The one table from Postgres types to Arrow, for stream and snapshot alike (DESIGN §7, §12).

A row has one and the same value whichever way it came. Types that ADBC maps exactly are fetched in
binary; every other column is selected as the text of its type's own output function, the very
function that the replication stream prints with, and goes through the stream's cast. (`::text`
would not do: it strips the padding of `char(n)`, writes `true` for `t` and a mask after `inet`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import pyarrow as pa

from headrace.connectors.postgres import arrays, casts
from headrace.errors import ConfigError, UnrepresentableValueError

MAX_DECIMAL_DIGITS: Final = 38  # what decimal128 holds

Cast = Callable[[pa.Array], pa.Array]


@dataclass(frozen=True)
class PgType:
    """One row of pg_type. Oids are 0 where they do not apply; `sql` and `output` name the type and
    its output function, qualified and quoted."""

    oid: int
    schema: str
    name: str
    category: str = "U"  # pg_type.typcategory
    base: int = 0  # of a domain
    base_typmod: int = -1
    dimensions: int = 0  # of a domain over an array
    element: int = 0  # of a true array, one that prints as {…}
    delimiter: str = ","  # between elements, where this is an element
    sql: str = ""
    output: str = ""


class Types(Protocol):
    """Where types are looked up by oid: `catalog.TypeCatalog`, or a stand-in."""

    def get(self, oid: int) -> PgType: ...


@dataclass(frozen=True)
class TypeMapping:
    """How a column's values become Arrow, by either way.

    `native` is None where a snapshot selects the column as text. `domain_over` is the SQL name of a
    domain's base type: not every output function takes the domain itself (enum_out does not).
    """

    arrow: pa.DataType
    output: str
    cast: Cast
    native: Cast | None = None
    domain_over: str = ""

    def from_text(self, text: pa.Array) -> pa.Array:
        """Cast a column of output texts (strings, or their bytes) to `arrow`.

        Raises:
            UnrepresentableValueError: `arrow` cannot hold a value.
        """
        return self.cast(casts.utf8(text))

    def select(self, column: str) -> str:
        """How a snapshot's SELECT asks for `column`, an SQL expression (a quoted name)."""
        if self.native:
            return column
        value = f"({column})::{self.domain_over}" if self.domain_over else column
        return f"pg_catalog.textin({self.output}({value}))"

    def from_adbc(self, array: pa.Array) -> pa.Array:
        """The array that ADBC fetched for `select`, as the stream would have given it.

        Raises:
            UnrepresentableValueError: `arrow` cannot hold a value.
        """
        return self.native(array) if self.native else self.from_text(array)


# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scalar:
    arrow: pa.DataType
    cast: Cast
    native: Cast | None = None
    note: str = ""


_TEXT: Final = pa.string()
_TIMESTAMP: Final = pa.timestamp("us")
_TIMESTAMPTZ: Final = pa.timestamp("us", "UTC")


def _number(arrow: pa.DataType, native: Cast) -> _Scalar:
    return _Scalar(arrow, partial(casts.kernel_cast, arrow=arrow), native)


def _text(note: str = "", native: Cast | None = None) -> _Scalar:
    return _Scalar(_TEXT, casts.to_text, native, note)


def _timestamp(arrow: pa.DataType) -> _Scalar:
    cast = partial(casts.to_timestamp, arrow=arrow)
    note = "BC included; infinity and times past 294247-01-10 04:00:54.775807 are refused"
    return _Scalar(arrow, cast, casts.timestamp_of_adbc, note)


# Types of pg_catalog by pg_type.typname. What is not here is its text.
_SCALARS: Final = {
    "bool": _Scalar(pa.bool_(), casts.to_bool, casts.same),
    "int2": _number(pa.int16(), casts.same),
    "int4": _number(pa.int32(), casts.same),
    "int8": _number(pa.int64(), casts.same),
    "float4": _number(pa.float32(), casts.float_of_adbc),
    "float8": _number(pa.float64(), casts.float_of_adbc),
    "text": _text(native=casts.text_of_adbc),
    "varchar": _text(native=casts.text_of_adbc),
    "bpchar": _text("with its padding", casts.text_of_adbc),
    "json": _text("exact text", casts.text_of_adbc),
    "jsonb": _text("as Postgres prints it", casts.text_of_adbc),
    "bytea": _Scalar(pa.binary(), casts.to_binary, casts.same),
    "date": _Scalar(
        pa.date32(), casts.to_date, casts.date_of_adbc, "BC included; infinity is refused"
    ),
    "timestamp": _timestamp(_TIMESTAMP),
    "timestamptz": _timestamp(_TIMESTAMPTZ),
    "time": _text("Arrow's time cannot hold 24:00:00"),
    "timetz": _text("Arrow's time has no offset"),
    "interval": _text("ISO 8601, such as P1Y2M3DT4H"),
    "uuid": _text(),
    "money": _text("as the server's lc_monetary prints it"),
}

_FREE_NUMERIC: Final = _text("NaN and Infinity included; `as: decimal(p,s)` makes it a decimal")


def mapping(
    type_oid: int,
    typmod: int,
    catalog: Types,
    *,
    dimensions: int = 1,
    override: pa.DataType | None = None,
) -> TypeMapping:
    """How a column of this type maps.

    `dimensions` is the column's declared number (pg_attribute.attndims): above 1, an array becomes
    JSON. `override` is the user's wish (`as:`): string for any type, a decimal for `numeric`.

    Raises:
        ConfigError: the type cannot be read as `override`.
    """
    found = catalog.get(type_oid)
    if override is not None:
        return _overridden(found, typmod, catalog, override)
    if found.base:
        return _domain(found, catalog, dimensions)
    if found.element:
        return _array(found, typmod, catalog, dimensions)
    scalar = _scalar(found, typmod)
    return TypeMapping(scalar.arrow, found.output, scalar.cast, scalar.native)


def _domain(found: PgType, catalog: Types, dimensions: int) -> TypeMapping:
    depth = max(found.dimensions, dimensions)
    inner = mapping(found.base, found.base_typmod, catalog, dimensions=depth)
    return replace(inner, domain_over=inner.domain_over or catalog.get(found.base).sql)


def _scalar(found: PgType, typmod: int) -> _Scalar:
    if found.schema != "pg_catalog":
        return _text()
    if found.name == "numeric":
        arrow = _decimal(typmod)
        return _FREE_NUMERIC if arrow is None else _number_as_text(arrow)
    return _SCALARS.get(found.name, _text())


def _number_as_text(arrow: pa.DataType) -> _Scalar:
    return _Scalar(arrow, partial(casts.kernel_cast, arrow=arrow), note="NaN is refused")


def _decimal(typmod: int) -> pa.Decimal128Type | None:
    """The decimal for numeric(p, s), or None where it has no bounds or Arrow has no such type.

    The modifier is 4 more than p and an 11-bit signed s packed (make_numeric_typmod, numeric.c);
    unsigned, a negative s is larger than any p.
    """
    if typmod < 4:
        return None
    precision = (typmod - 4) >> 16
    scale = (typmod - 4) & 0x7FF
    if precision > MAX_DECIMAL_DIGITS or scale > precision:
        return None
    return pa.decimal128(precision, scale)


def _array(found: PgType, typmod: int, catalog: Types, dimensions: int) -> TypeMapping:
    element = catalog.get(found.element)
    if dimensions > 1:
        to_json = partial(
            arrays.nested_json, delimiter=element.delimiter, category=element.category
        )
        return TypeMapping(_TEXT, found.output, to_json)
    inner = mapping(found.element, typmod, catalog)
    to_list = partial(_to_list, element=inner, delimiter=element.delimiter)
    return TypeMapping(pa.list_(inner.arrow), found.output, to_list)


def _to_list(text: pa.StringArray, element: TypeMapping, delimiter: str) -> pa.ListArray:
    arrow = pa.list_(element.arrow)
    offsets, elements = arrays.split_literals(text, delimiter, arrow)
    try:
        values = element.cast(elements)
    except UnrepresentableValueError as error:
        row = int(offsets.searchsorted(error.context["row"], side="right")) - 1
        value = text[row].as_py()
        raise casts.unrepresentable(value, row, error.context["count"], arrow) from error
    mask = text.is_null() if text.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=arrow, mask=mask)


def _overridden(found: PgType, typmod: int, catalog: Types, override: pa.DataType) -> TypeMapping:
    own = mapping(found.oid, typmod, catalog)
    if pa.types.is_string(override):
        return replace(own, arrow=_TEXT, cast=casts.to_text, native=None)
    if pa.types.is_decimal128(override) and own.output == "pg_catalog.numeric_out":
        return replace(own, arrow=override, cast=_number_as_text(override).cast)
    raise ConfigError(
        f"type {found.name} cannot be read as {override}",
        hint="`as:` takes string for any type, and decimal(p,s) for numeric",
    )


# -- its documentation -----------------------------------------------------------------------------


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
}

_FAMILIES: Final = (
    TypeRow("array, one dimension", "list<element>", "text", "NULL elements kept; a value with "
            "more dimensions, or bounds not beginning at 1, is refused"),
    TypeRow("array, declared with more", "string", "text", "JSON; bounds not beginning at 1 are "
            "refused"),
    TypeRow("domain", "that of its base type", "as its base type"),
    TypeRow("enum", "string", "text", "its label"),
    TypeRow("inet, cidr, macaddr, macaddr8", "string", "text"),
    TypeRow("ranges, multiranges", "string", "text"),
    TypeRow("bit, varbit", "string", "text"),
    TypeRow("tsvector, tsquery", "string", "text"),
    TypeRow("xml, name, \"char\", oid, geometric types", "string", "text"),
    TypeRow("composite, and any other", "string", "text", "as Postgres prints it"),
)  # fmt: skip


_PAGE: Final = """\
## From Postgres to Arrow

A value is the same whether it came by the stream or by a snapshot. Values are exact; one that its
Arrow type cannot hold stops its table with an error that names it, and never becomes NULL, a
sentinel or a clamped value.

Texts are those of a session with `DateStyle=ISO`, `TimeZone=UTC`, `IntervalStyle=iso_8601`,
`extra_float_digits=3` and `bytea_output=hex`. The third column tells how a snapshot fetches the
column: in Postgres' binary format, or as the text that its type's output function prints.

| Postgres | Arrow | snapshot | remarks |
|---|---|---|---|
{rows}
"""


def types_table() -> list[TypeRow]:
    """Every type and what it becomes, in the order of the reference page."""
    decimal = _number_as_text(pa.decimal128(38, 0))
    return [
        *(_row(_SQL_NAMES.get(name, name), scalar) for name, scalar in _SCALARS.items()),
        TypeRow("numeric(p,s), 0 ≤ s ≤ p ≤ 38", "decimal128(p, s)", "text", decimal.note),
        _row("numeric otherwise", _FREE_NUMERIC),
        *_FAMILIES,
    ]


def _row(name: str, scalar: _Scalar) -> TypeRow:
    return TypeRow(name, str(scalar.arrow), "binary" if scalar.native else "text", scalar.note)


def types_page() -> str:
    """This direction's part of the reference page, docs/reference/types.md."""
    lines = [f"| {r.postgres} | {r.arrow} | {r.snapshot} | {r.note} |" for r in types_table()]
    return _PAGE.format(rows="\n".join(lines))
