"""Whole tables as multisets of exact values: from the source, and by three readers of the lake.

What a value must be is psycopg's reading of Postgres, not what the product's casts make of it.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from psycopg import sql
from psycopg.types import TypeInfo
from psycopg.types.string import TextLoader

from headrace.testing.duckdb_delta import duckdb_with_delta

Row = tuple[Any, ...]
Options = Mapping[str, str] | None

# How a value that has no type in Arrow or Delta is printed; DESIGN §12.
_SESSION = "-c DateStyle=ISO -c TimeZone=UTC -c IntervalStyle=iso_8601 -c extra_float_digits=3"
_AS_TEXT = (
    *("time", "timetz", "interval", "uuid", "json", "jsonb", "inet", "cidr", "numeric"),
    *("int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"),
)
_ENUMS = "SELECT oid::regtype::text FROM pg_type WHERE typtype = 'e'"
_FLOAT4 = psycopg.adapters.types["float4"]
_NUMERIC = psycopg.adapters.types["numeric"]


# -- values ----------------------------------------------------------------------------------------


def exact(value: Any) -> Any:
    """A hashable form that is equal for equal values only: NaN is NaN, and -0.0 is not 0.0."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else struct.pack(">d", value)
    if isinstance(value, list | tuple):
        return tuple(exact(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((name, exact(inner)) for name, inner in value.items()))
    if isinstance(value, dt.datetime) and value.tzinfo:
        return ("UTC", value.astimezone(dt.UTC).replace(tzinfo=None))
    if isinstance(value, bool | Decimal):
        return (type(value).__name__, value)
    return value


def multiset(rows: Iterable[Sequence[Any]]) -> Counter[Row]:
    return Counter(tuple(exact(value) for value in row) for row in rows)


# -- the source ------------------------------------------------------------------------------------


def source_rows(dsn: str, table: str, columns: Sequence[str] = ()) -> Counter[Row]:
    """All rows of a table of Postgres; `table` is a name as SQL spells it."""
    wanted = sql.SQL(", ").join(map(sql.Identifier, columns)) if columns else sql.SQL("*")
    with psycopg.connect(dsn, options=_SESSION) as connection:
        for name in _AS_TEXT:
            connection.adapters.register_loader(name, TextLoader)
        for (name,) in connection.execute(_ENUMS).fetchall():
            info = TypeInfo.fetch(connection, name)
            assert info is not None
            info.register(connection)  # without it an array of an enum stays a text
        cursor = connection.execute(
            sql.SQL("SELECT {} FROM {}").format(wanted, sql.SQL(table))  # type: ignore[arg-type]
        )
        result, by_column = cursor.pgresult, list(zip(*cursor.fetchall(), strict=True))
    assert result is not None
    shaped = [_shaped(result.ftype(i), result.fmod(i), v) for i, v in enumerate(by_column)]
    return multiset(zip(*shaped, strict=True))


def source_columns(dsn: str, table: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(f"SELECT * FROM {table} LIMIT 0").description or ()
    return [column.name for column in found]


def _shaped(kind: int, modifier: int, values: Sequence[Any]) -> Sequence[Any]:
    """A column's values as Delta must hold them; `kind` is its type's oid."""
    if kind in (_NUMERIC.oid, _NUMERIC.array_oid):
        bounded = modifier >= 4 and (modifier - 4) >> 16 <= 38
        return _each(Decimal, values) if bounded else values
    if kind in (_FLOAT4.oid, _FLOAT4.array_oid):
        return _each(_float4, values)
    if any(isinstance(v, list) and any(isinstance(inner, list) for inner in v) for v in values):
        return [None if v is None else _json(v) for v in values]  # more than one dimension
    return values


def _each(convert: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_each(convert, v) for v in value]
    return None if value is None else convert(value)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _float4(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


# -- the lake --------------------------------------------------------------------------------------


def by_deltalake(location: str, columns: Sequence[str], options: Options = None) -> Counter[Row]:
    table = DeltaTable(location, storage_options=dict(options or {}) or None)
    found = QueryBuilder().register("t", table).execute("select * from t")
    return _rows(pa.table(found), columns)


def by_polars(location: str, columns: Sequence[str], options: Options = None) -> Counter[Row]:
    frame = pl.scan_delta(location, storage_options=dict(options or {}) or None)
    return multiset(frame.select(columns).collect().iter_rows())


def by_duckdb(location: str, columns: Sequence[str], options: Options = None) -> Counter[Row]:
    assert not options  # its httpfs is another extension
    with duckdb_with_delta() as connection:
        found = connection.execute("select * from delta_scan($1)", [location])
        return _rows(found.to_arrow_table(), columns)


READERS: Mapping[str, Callable[[str, Sequence[str], Options], Counter[Row]]] = {
    "deltalake": by_deltalake,
    "polars": by_polars,
    "duckdb": by_duckdb,
}


def _rows(table: pa.Table, columns: Sequence[str]) -> Counter[Row]:
    by_name = [table.column(name).to_pylist() for name in columns]
    return multiset(zip(*by_name, strict=True))


def difference(expected: Counter[Row], found: Counter[Row]) -> str:
    """What is missing and what is extra, shortened; empty if nothing is."""
    sides = (("missing", expected - found), ("extra", found - expected))
    return "; ".join(
        f"{side} {rows.total()}: {_short(list(rows)[:3])}" for side, rows in sides if rows
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 1500 else f"{text[:1000]} … {text[-400:]}"
