"""Rules mean what they mean to Postgres, wherever both speak the same SQL: Postgres judges.

Left out is where they do not: upper and lower (here of all Unicode, there by the collation),
integer division, and the backslash in LIKE.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.transform import Transform
from headrace.model import (
    Column,
    Expectation,
    NetChanges,
    OnBreach,
    RowRules,
    TableId,
    TableSchema,
)
from headrace.testing.database import temporary_database

UTC = dt.UTC


@dataclass(frozen=True)
class Kind:
    """A column's type on both sides, its values, and how a value stands in SQL."""

    postgres: str
    arrow: pa.DataType
    values: tuple[Any, ...]
    literal: Callable[[Any], str]


def quoted(prefix: str) -> Callable[[Any], str]:
    return lambda value: f"{prefix} '{value}'"


KINDS = {
    "n": Kind("bigint", pa.int64(), (-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1), str),
    "d": Kind(
        "numeric(20,4)",
        pa.decimal128(20, 4),
        tuple(map(Decimal, ("-1.5000", "0.0000", "0.0001", "9999999999999999.9999"))),
        str,
    ),
    "f": Kind(
        "float8",
        pa.float64(),
        (float("-inf"), -0.0, 0.1, 1e300, float("inf"), float("nan")),
        lambda value: f"CAST('{value}' AS double precision)",
    ),
    "s": Kind(
        'text collate "C"',
        pa.string(),
        ("", "a", "A", "ab", "b", "ä", "z", "\U0001f980", "%", "a_b", " "),
        quoted(""),
    ),
    "b": Kind("boolean", pa.bool_(), (True, False), str),
    "day": Kind("date", pa.date32(), (dt.date(1970, 1, 1), dt.date(2024, 2, 29)), quoted("DATE")),
    "moment": Kind(
        "timestamptz",
        pa.timestamp("us", "UTC"),
        (
            dt.datetime(2024, 3, 31, 0, 59, 59, 999999, UTC),
            dt.datetime(2024, 3, 31, 1, tzinfo=UTC),
            dt.datetime(1899, 12, 31, 23, 30, tzinfo=UTC),
        ),
        quoted("TIMESTAMP WITH TIME ZONE"),
    ),
    "local": Kind(
        "timestamp",
        pa.timestamp("us"),
        (dt.datetime(2024, 3, 31, 2, 30), dt.datetime(1, 1, 1)),  # noqa: DTZ001
        quoted("TIMESTAMP"),
    ),
}
SCHEMA = TableSchema(
    TableId("public", "t"),
    1,
    (
        Column("id", pa.int64(), "bigint"),
        *(Column(name, kind.arrow, kind.postgres) for name, kind in KINDS.items()),
    ),
    ("id",),
)
# Row i takes value i of each column, in turns of unequal length, with nulls among them.
ROWS = [
    {
        "id": i,
        **{name: (None, *kind.values)[i % (1 + len(kind.values))] for name, kind in KINDS.items()},
    }
    for i in range(60)
]


def comparisons(name: str) -> st.SearchStrategy[str]:
    kind = KINDS[name]
    literals = st.sampled_from(kind.values).map(kind.literal)
    operators = st.sampled_from(
        ["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"]
    )
    return st.one_of(
        st.builds(lambda operator, value: f"{name} {operator} {value}", operators, literals),
        st.sampled_from([f"{name} IS NULL", f"{name} IS NOT NULL"]),
        st.builds(lambda a, b: f"{name} BETWEEN {a} AND {b}", literals, literals),
        st.lists(literals | st.just("NULL"), min_size=1, max_size=3).map(
            lambda values: f"{name} NOT IN ({', '.join(values)})"
        ),
        literals.map(lambda value: f"COALESCE({name}, {value}) = {value}"),
        literals.map(lambda value: f"NULLIF({name}, {value}) IS NULL"),
    )


PATTERNS = st.text("aAbzä%_", max_size=3)
SIMPLE = st.one_of(
    *(comparisons(name) for name in KINDS),
    PATTERNS.map(lambda pattern: f"s LIKE '{pattern}'"),
    st.just("b"),
    st.sampled_from(["length(s) > 1", "s || 'b' = 'ab'", "d + 1 > 0"]),
)
CONDITIONS = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.builds(lambda a, b: f"({a} AND {b})", inner, inner),
        st.builds(lambda a, b: f"({a} OR {b})", inner, inner),
        inner.map(lambda a: f"NOT ({a})"),
        inner.map(lambda a: f"({a}) IS NOT TRUE"),
        st.builds(lambda a, b, c: f"CASE WHEN {a} THEN {b} ELSE {c} END", inner, inner, inner),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def oracle(server_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A session whose table t holds ROWS."""
    columns = ", ".join(f"{name} {kind.postgres}" for name, kind in KINDS.items())
    names = ", ".join(f"%({name})s" for name in ("id", *KINDS))
    with temporary_database(server_dsn) as database, database.connect() as session:
        session.execute("set timezone = 'UTC'")
        session.execute(f"create table t (id bigint, {columns})".encode())
        session.cursor().executemany(f"insert into t values ({names})".encode(), ROWS)
        yield session


def ids(session: psycopg.Connection[Any], condition: str) -> list[int]:
    query = f"select id from t where {condition} order by id"
    return [row[0] for row in session.execute(query.encode())]


@settings(max_examples=60, deadline=None)
@given(where=CONDITIONS, rule=CONDITIONS)
def test_postgres_agrees_which_rows_pass_and_which_break_a_rule(
    oracle: psycopg.Connection[Any], where: str, rule: str
) -> None:
    rules = RowRules(where=where, expectations=(Expectation("rule", rule, OnBreach.QUARANTINE),))
    rows = pa.Table.from_pylist(ROWS, SCHEMA.arrow())
    transform = Transform(rules, SCHEMA)
    changes = transform.changes(NetChanges(SCHEMA, rows, rows.select(["id"]).slice(0, 0)))
    parked = [key for found in changes.rejected for key in found.rows["id"].to_pylist()]
    assert changes.deletes["id"].to_pylist() == ids(oracle, f"({where}) is not true")
    assert parked == ids(oracle, f"({where}) and not ({rule})")
    assert changes.upserts["id"].to_pylist() == ids(oracle, f"({where}) and ({rule}) is not false")
