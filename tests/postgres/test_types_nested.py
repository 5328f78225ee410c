"""Random types made of others: composites, arrays, domains and hstore inside each other.

Postgres makes the values from constructors in SQL (`ROW(…)`, `ARRAY[…]`), so that what they must be
is known without any literal. They come by stream and snapshot, and go back as a destination gets
them. A failure prints its example; `--hypothesis-seed=N` runs the same examples again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from typed_columns import Reader, TypedColumn, identical

from headrace.connectors.postgres.staging import StagedColumn, at_once, copy_rows
from headrace.connectors.postgres.target_table import read_target
from headrace.connectors.postgres.target_types import arrival_at
from headrace.model import TableId

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
AWKWARD = st.text('\\"{}(),;=> NULLnull\n☃🏔', max_size=6)


@dataclass(frozen=True)
class Kind:
    """A type: its name in SQL, the statements that make it, and how its values are written."""

    name: str
    made_by: tuple[str, ...]
    values: st.SearchStrategy[Any]
    write: Callable[[Any], str]  # a value in SQL
    read: Callable[[Any], Any]  # the same as pyarrow gives it

    def sql(self, value: Any) -> str:
        return f"NULL::{self.name}" if value is None else self.write(value)

    def python(self, value: Any) -> Any:
        return None if value is None else self.read(value)


def _literal(value: Any) -> str:
    return sql.Literal(value).as_string(None)


def _same(value: Any) -> Any:
    return value


def scalar(name: str, values: st.SearchStrategy[Any]) -> Kind:
    return Kind(name, (), values, lambda v: f"{_literal(v)}::{name}", _same)


def _hstore(value: dict[str, str | None]) -> str:
    keys = ", ".join(_literal(key) for key in value)
    items = ", ".join("NULL" if item is None else _literal(item) for item in value.values())
    return f"hstore(ARRAY[{keys}]::text[], ARRAY[{items}]::text[])"


def _as_pairs(value: dict[str, str | None]) -> list[tuple[str, str | None]]:
    """In hstore's own order: by length in bytes, then by bytes."""
    return sorted(value.items(), key=lambda pair: (len(pair[0].encode()), pair[0].encode()))


WORDS = TEXT | AWKWARD
SCALARS = (
    scalar("int4", st.integers(-(1 << 31), (1 << 31) - 1)),
    scalar("bool", st.booleans()),
    scalar("text", WORDS),
    scalar("bytea", st.binary(max_size=6)),
    scalar("float8", st.floats(allow_nan=False, allow_infinity=True)),
    scalar("numeric(20,5)", st.decimals(-(10**14), 10**14, places=5).map(Decimal)),
    scalar("date", st.dates()),
    scalar("timestamp", st.datetimes()),
    Kind("hstore", (), st.dictionaries(WORDS, st.none() | WORDS, max_size=3), _hstore, _as_pairs),
)


# Only as a part of another value: as a column it is JSON.
GRID = scalar("int4[][]", st.sampled_from(["{{1,2},{3,NULL}}", "{}", "[0:0]={7}", "{1}"]))


def array_of(element: Kind) -> Kind:
    return Kind(
        f"{element.name}[]",
        element.made_by,
        st.lists(st.none() | element.values, max_size=3),
        lambda value: f"ARRAY[{', '.join(map(element.sql, value))}]::{element.name}[]",
        lambda value: [element.python(item) for item in value],
    )


def domain_over(base: Kind, name: str) -> Kind:
    made_by = (*base.made_by, f"create domain {name} as {base.name}")
    return Kind(name, made_by, base.values, lambda v: f"({base.sql(v)})::{name}", base.read)


def composite_of(fields: list[Kind], name: str) -> Kind:
    columns = ", ".join(f'"F {n}" {field.name}' for n, field in enumerate(fields))
    made_by = dict.fromkeys(statement for field in fields for statement in field.made_by)
    return Kind(
        name,
        (*made_by, f"create type {name} as ({columns})"),
        st.tuples(*(st.none() | field.values for field in fields)),
        lambda v: f"ROW({', '.join(f.sql(i) for f, i in zip(fields, v, strict=True))})::{name}",
        lambda v: {f"F {n}": f.python(i) for n, (f, i) in enumerate(zip(fields, v, strict=True))},
    )


@st.composite
def nested(draw: st.DrawFn) -> tuple[Kind, list[Any]]:
    """A random type, three levels deep at most, and values of it."""
    kinds = list(SCALARS)
    for level in range(draw(st.integers(1, 3))):
        fields = draw(st.lists(st.sampled_from([*kinds, GRID]), min_size=1, max_size=4))
        kind = composite_of(fields, f"nested.c{level}")
        kinds += [kind, array_of(kind), domain_over(kind, f"nested.d{level}")]
        kinds += [array_of(draw(st.sampled_from(SCALARS)))]
    kind = draw(st.sampled_from([k for k in kinds if k not in SCALARS]))
    return kind, draw(st.lists(st.none() | kind.values, min_size=1, max_size=6))


@settings(max_examples=40, deadline=None)
@given(drawn=nested())
def test_4_and_7_random_nested_values_come_as_they_were_made_and_go_back_as_they_came(
    columns: Reader, drawn: tuple[Kind, list[Any]]
) -> None:
    kind, values = drawn
    fresh = ("create extension if not exists hstore", "drop schema if exists nested cascade")
    for statement in (*fresh, "create schema nested", *kind.made_by):
        columns.session.execute(statement.encode())
    column = columns.column(kind.name, [])
    for value in values:
        insert = f"insert into {column.table} (x) values ({kind.sql(value)})"
        columns.session.execute(insert.encode())
    streamed = column.streamed()
    assert streamed.to_pylist() == [kind.python(value) for value in values]
    assert identical(streamed, column.copied())
    assert _written(columns, column) == column.query("x::text")


def _written(columns: Reader, column: TypedColumn) -> list[str | None]:
    """The values as a column of the same type holds them that a destination has written."""
    cursor = columns.session.cursor()
    target = read_target(cursor, TableId("public", column.table))
    assert target is not None
    arrival = arrival_at(column.mapping.arrow, target.columns[1])
    staged = sql.Identifier(f"{column.table}_staged")
    create = sql.SQL("create temp table {} (n serial, x {})").format(
        staged,
        sql.SQL(arrival.staging),  # type: ignore[arg-type]
    )
    cursor.execute(create)
    rows = pa.table({"x": column.streamed()})
    copy_rows(cursor, staged, [StagedColumn("x", arrival)], rows, at_once)
    cast = sql.SQL(target.columns[1].cast)  # type: ignore[arg-type]
    read = sql.SQL("select (x::{})::text from {} order by n").format(cast, staged)
    return [text for (text,) in cursor.execute(read)]
