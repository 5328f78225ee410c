"""The one table from Postgres types to Arrow, for stream and snapshot alike (DESIGN §7, §12).

A row has one and the same value whichever way it came. Types that `pgcopy` decodes are copied in
binary; every other column is selected as the text of its type's own output function, the very
function that the replication stream prints with, and goes through the stream's cast. (`::text`
would not do: it strips the padding of `char(n)`, writes `true` for `t` and a mask after `inet`.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.postgres import arrays, casts, composites
from headrace.errors import ConfigError, UnrepresentableValueError
from headrace.pgcopy import CopiedColumn, Kind, Wanted

MAX_DECIMAL_DIGITS: Final = 38  # what decimal128 holds
ARRAY_OUT: Final = "pg_catalog.array_out"

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
    relation: int = 0  # of a composite: the pg_class row that has its fields
    extension: str = ""  # that brought it


@dataclass(frozen=True)
class PgField:
    """A field of a composite type, as pg_attribute has it; `number` is given to no other one."""

    name: str
    number: int
    type_oid: int
    typmod: int
    dimensions: int


@dataclass(frozen=True)
class Composite:
    """A composite type, by its pg_class row, with the fields that its values were read by."""

    relation: int
    fields: tuple[PgField, ...]


class Types(Protocol):
    """Where types are looked up by oid: `catalog.TypeCatalog`, or a stand-in."""

    def get(self, oid: int) -> PgType: ...

    def fields(self, composite: PgType) -> Sequence[PgField]: ...


@dataclass(frozen=True)
class TypeMapping:
    """How a column's values become Arrow, by either way.

    `native` is how a snapshot's binary COPY sends the column, None where it is selected as text.
    `domain_over` is the SQL name of a domain's base type: not every output function takes the
    domain itself (enum_out does not). `composites` are those that the values hold as structs.
    """

    arrow: pa.DataType
    output: str
    cast: Cast
    native: Kind | None = None
    domain_over: str = ""
    composites: tuple[Composite, ...] = ()

    def from_text(self, text: pa.Array) -> pa.Array:
        """Cast a column of output texts (strings, or their bytes) to `arrow`.

        Raises:
            UnrepresentableValueError: `arrow` cannot hold a value.
        """
        return self.cast(casts.utf8(text))

    def select(self, column: str) -> str:
        """How a snapshot's SELECT asks for `column`, an SQL expression (a quoted name)."""
        if self.native is not None:
            return column
        value = f"({column})::{self.domain_over}" if self.domain_over else column
        return f"pg_catalog.textin({self.output}({value}))"

    @property
    def wanted(self) -> Wanted:
        """What the column of a COPY that asked with `select` is to be decoded to."""
        return Wanted(Kind.TEXT, _TEXT) if self.native is None else Wanted(self.native, self.arrow)

    def from_copy(self, column: CopiedColumn) -> pa.Array:
        """The values that a COPY gave for `select`, as the stream would have given them.

        Raises:
            UnrepresentableValueError: `arrow` cannot hold a value.
        """
        if self.native is None:
            return self.from_text(column.values)
        values = casts.utf8(column.values) if self.native in _TEXTUAL else column.values
        return values if column.odd is None else pc.coalesce(self.from_text(column.odd), values)


_TEXT: Final = pa.string()
_TEXTUAL: Final = (Kind.TEXT, Kind.JSONB)  # what a SQL_ASCII database may hold anything in

# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scalar:
    """What a single-valued type becomes; see `TypeMapping`."""

    arrow: pa.DataType
    cast: Cast
    native: Kind | None = None
    note: str = ""


_TIMESTAMP: Final = pa.timestamp("us")
_TIMESTAMPTZ: Final = pa.timestamp("us", "UTC")


def _number(arrow: pa.DataType, native: Kind) -> Scalar:
    return Scalar(arrow, partial(casts.kernel_cast, arrow=arrow), native)


def _text(note: str = "", native: Kind | None = None) -> Scalar:
    return Scalar(_TEXT, casts.to_text, native, note)


def _timestamp(arrow: pa.DataType) -> Scalar:
    cast = partial(casts.to_timestamp, arrow=arrow)
    note = "BC included; infinity and times past 294247-01-10 04:00:54.775807 are refused"
    return Scalar(arrow, cast, Kind.TIMESTAMP, note)


# Types of pg_catalog by pg_type.typname.
SCALARS: Final = {
    "bool": Scalar(pa.bool_(), casts.to_bool, Kind.BOOL),
    "int2": _number(pa.int16(), Kind.INT2),
    "int4": _number(pa.int32(), Kind.INT4),
    "int8": _number(pa.int64(), Kind.INT8),
    "float4": _number(pa.float32(), Kind.FLOAT4),
    "float8": _number(pa.float64(), Kind.FLOAT8),
    "text": _text(native=Kind.TEXT),
    "varchar": _text(native=Kind.TEXT),
    "bpchar": _text("with its padding", Kind.TEXT),
    "json": _text("exact text", Kind.TEXT),
    "jsonb": _text("as Postgres prints it", Kind.JSONB),
    "bytea": Scalar(pa.binary(), casts.to_binary, Kind.BYTES),
    "date": Scalar(pa.date32(), casts.to_date, Kind.DATE, "BC included; infinity is refused"),
    "timestamp": _timestamp(_TIMESTAMP),
    "timestamptz": _timestamp(_TIMESTAMPTZ),
    "time": _text("Arrow's time cannot hold 24:00:00"),
    "timetz": _text("Arrow's time has no offset"),
    "interval": _text("ISO 8601, such as P1Y2M3DT4H"),
    "uuid": _text(native=Kind.UUID),
    "money": _text("as the server's lc_monetary prints it"),
}

# The types of pg_catalog whose text is all that Arrow can hold of them, by what they are about. A
# server newer than this table may have more: they are their text as well.
TEXTS: Final = {
    "network": "inet cidr macaddr macaddr8",
    "range": "int4range int8range numrange tsrange tstzrange daterange",
    "multirange": "int4multirange int8multirange nummultirange tsmultirange tstzmultirange"
    " datemultirange",
    "bit string": "bit varbit",
    "text search": "tsvector tsquery gtsvector",
    "geometric": "point lseg path box polygon line circle",
    "XML and JSON path": "xml jsonpath",
    "name": "name char",
    "object identifier": "oid regproc regprocedure regoper regoperator regclass regcollation"
    " regtype regrole regnamespace regconfig regdictionary int2vector oidvector",
    "transaction and log position": "xid xid8 cid tid pg_lsn pg_snapshot txid_snapshot",
    "server's own": "refcursor aclitem pg_node_tree pg_ndistinct pg_dependencies pg_mcv_list"
    " pg_brin_bloom_summary pg_brin_minmax_multi_summary oid8",
}

# Types that extensions bring, by the extension's name and pg_type.typname. Others are their text.
_VECTOR: Final = Scalar(composites.VECTOR, composites.to_floats)
_GEOMETRY: Final = Scalar(pa.binary(), composites.to_ewkb, note="EWKB")
EXTENSIONS: Final = {
    ("hstore", "hstore"): Scalar(composites.HSTORE, composites.to_map),
    ("vector", "vector"): _VECTOR,
    ("vector", "halfvec"): _VECTOR,
    ("postgis", "geometry"): _GEOMETRY,
    ("postgis", "geography"): _GEOMETRY,
}

FREE_NUMERIC: Final = _text(
    "NaN and Infinity included; `as: decimal(p,s)` makes it a decimal", Kind.NUMERIC
)


def mapping(
    type_oid: int,
    typmod: int,
    catalog: Types,
    *,
    dimensions: int = 1,
    inner: bool = False,
    read_as: str = "",
) -> TypeMapping:
    """How a column of this type maps.

    `dimensions` is the column's declared number (pg_attribute.attndims): above 1, an array becomes
    JSON, or its own text if it is `inner`, that is a part of another value. `read_as` is the user's
    wish (`as:`): text for any type, which is JSON of an array, and decimal(p,s) for `numeric`.

    Raises:
        ConfigError: the type cannot be read as `read_as`.
    """
    found = catalog.get(type_oid)
    if read_as:
        return _wished(found, typmod, catalog, read_as)
    if found.base:
        return _domain(found, catalog, dimensions, inner)
    if found.element and inner and dimensions > 1:
        return TypeMapping(_TEXT, found.output, casts.to_text)
    if found.element:
        return _array(found, typmod, catalog, dimensions)
    if found.relation and (fields := catalog.fields(found)):
        return _composite(found, fields, catalog)
    scalar = _scalar(found, typmod)
    return TypeMapping(scalar.arrow, found.output, scalar.cast, scalar.native)


def _domain(found: PgType, catalog: Types, dimensions: int, inner: bool) -> TypeMapping:
    depth = max(found.dimensions, dimensions)
    base = mapping(found.base, found.base_typmod, catalog, dimensions=depth, inner=inner)
    return replace(base, domain_over=base.domain_over or catalog.get(found.base).sql)


def _scalar(found: PgType, typmod: int) -> Scalar:
    if found.schema != "pg_catalog":
        return EXTENSIONS.get((found.extension, found.name), _text())
    if found.name == "numeric":
        arrow = _decimal(typmod)
        return FREE_NUMERIC if arrow is None else decimal_of_numeric(arrow)
    return SCALARS.get(found.name, _text())


def decimal_of_numeric(arrow: pa.DataType) -> Scalar:
    """A decimal."""
    cast = partial(casts.kernel_cast, arrow=arrow)
    return Scalar(arrow, cast, Kind.NUMERIC, "NaN is refused")


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


# -- types made of others --------------------------------------------------------------------------


def _array(found: PgType, typmod: int, catalog: Types, dimensions: int) -> TypeMapping:
    element = catalog.get(found.element)
    if dimensions > 1:
        to_json = partial(
            arrays.nested_json, delimiter=element.delimiter, category=element.category
        )
        return TypeMapping(_TEXT, found.output, to_json)
    inner = mapping(found.element, typmod, catalog, inner=True)
    to_list = partial(_to_list, element=inner, delimiter=element.delimiter)
    arrow = pa.list_(inner.arrow)
    return TypeMapping(arrow, found.output, to_list, composites=inner.composites)


def _to_list(text: pa.StringArray, element: TypeMapping, delimiter: str) -> pa.ListArray:
    arrow = pa.list_(element.arrow)
    offsets, elements = arrays.split_literals(text, delimiter, arrow)
    try:
        values = element.cast(elements)
    except UnrepresentableValueError as error:
        row = int(offsets.searchsorted(error.context["row"], side="right")) - 1
        raise _inside(text, row, error, arrow) from error
    mask = text.is_null() if text.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=arrow, mask=mask)


def _inside(
    text: pa.StringArray, row: int, error: UnrepresentableValueError, arrow: pa.DataType
) -> UnrepresentableValueError:
    """The error for a value that holds another one that cannot be held."""
    return casts.unrepresentable(text[row].as_py(), row, error.context["count"], arrow)


def _composite(found: PgType, fields: Sequence[PgField], catalog: Types) -> TypeMapping:
    named = tuple(
        (f.name, mapping(f.type_oid, f.typmod, catalog, dimensions=f.dimensions, inner=True))
        for f in fields
    )
    arrow = pa.struct([pa.field(name, mapped.arrow) for name, mapped in named])
    casts_of_fields = tuple(mapped.cast for _, mapped in named)
    to_struct = partial(_to_struct, arrow=arrow, fields=casts_of_fields)
    held = (Composite(found.relation, tuple(fields)), *(c for _, m in named for c in m.composites))
    return TypeMapping(arrow, found.output, to_struct, composites=held)


def _to_struct(
    text: pa.StringArray, arrow: pa.StructType, fields: Sequence[Cast]
) -> pa.StructArray:
    values = []
    columns = composites.split_fields(text, len(fields), arrow)
    for column, cast in zip(columns, fields, strict=True):
        try:
            values.append(cast(column))
        except UnrepresentableValueError as error:
            raise _inside(text, error.context["row"], error, arrow) from error
    mask = text.is_null() if text.null_count else None
    return pa.StructArray.from_arrays(values, fields=list(arrow), mask=mask)


# -- the user's wishes -----------------------------------------------------------------------------

_DECIMAL: Final = re.compile(r"decimal\((\d+),\s*(\d+)\)", re.ASCII)


def _wished(found: PgType, typmod: int, catalog: Types, read_as: str) -> TypeMapping:
    own = mapping(found.oid, typmod, catalog)
    if read_as == "text" and own.output == ARRAY_OUT:
        return mapping(found.oid, typmod, catalog, dimensions=2)
    if read_as == "text":
        return replace(own, arrow=_TEXT, cast=casts.to_text, native=None, composites=())
    if own.output == "pg_catalog.numeric_out" and (digits := _DECIMAL.fullmatch(read_as)):
        arrow = pa.decimal128(int(digits[1]), int(digits[2]))
        return replace(own, arrow=arrow, cast=decimal_of_numeric(arrow).cast)
    raise ConfigError(
        f"type {found.name} cannot be read as {read_as}",
        hint="`as:` takes text for any type, and decimal(p,s) for numeric",
    )
