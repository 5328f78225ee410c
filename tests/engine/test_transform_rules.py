"""SQL over rows: what a rule may be, that it can touch nothing but the row, and that types hold."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from headrace.engine import sandbox
from headrace.engine.sandbox import Sandbox
from headrace.engine.transform import Transform
from headrace.errors import ConfigError
from headrace.model import Column, Expectation, NetChanges, RowRules, TableId, TableSchema

COLUMNS: dict[str, pa.DataType] = {
    "id": pa.int64(),
    "email": pa.string(),
    "amount": pa.decimal128(38, 10),
    "today": pa.date32(),
    "Order": pa.int32(),
    "address": pa.struct([("city", pa.string()), ("zip", pa.string())]),
    "tags": pa.list_(pa.string()),
}


def schema_of(columns: dict[str, pa.DataType]) -> TableSchema:
    found = tuple(Column(name, kind, "", n) for n, (name, kind) in enumerate(columns.items()))
    return TableSchema(TableId("crm", "orders"), 1, found)


ORDERS = schema_of(COLUMNS)


def passing(where: str, values: pa.Array) -> list[Any]:
    """The values `v` for which a rule is true."""
    schema = schema_of({"v": values.type})
    rows = pa.table({"v": values})
    changes = NetChanges(schema, rows, rows.slice(0, 0))
    return Transform(RowRules(where=where), schema).changes(changes).upserts["v"].to_pylist()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("email =", "syntax error"),
        ("", "SELECT clause without selection list"),
        ("email = 'a') OR (1 = 1", "syntax error"),
        ("email = 'a'; DROP TABLE orders", "Only SELECT"),
        ("id = 1; SELECT 2", "more than one expression"),
        ("id = 1, id = 2", "more than one expression"),
        ("id = 1 FROM other", "more than one expression"),
        ("id = 1 ORDER BY id", "more than one expression"),
        ("id = 1 LIMIT 0", "more than one expression"),
        ("id = 1 AS yes", "syntax error"),
        ("DISTINCT id = 1", "more than one expression"),
        ("id = 1 UNION SELECT true", "more than one expression"),
        ("emial = 'a'", 'column "emial" not found'),
        ("id = 'a'", "Conversion Error"),
        ("nosuch(id)", "nosuch does not exist"),
        ("NULL", "not true or false"),
        ("id", "it is BIGINT, not true or false"),
        ("email", "it is VARCHAR, not true or false"),
        ("sum(id) > 1", "aggregates"),
        ("row_number() OVER () = 1", "window functions"),
        ("unnest(tags) = 'a'", "UNNEST"),
        ("EXISTS (SELECT 1)", "a subquery"),
        ("id IN (SELECT id FROM _headrace_rows)", "a subquery"),
        ("email = (SELECT content FROM read_text('/etc/passwd'))", "a subquery"),
        ("COLUMNS(*) IS NULL", "a *"),
        ("#1 = 1", "a column by its position"),
        ("id = ?", "a parameter"),
        ("id = $id", "a parameter"),
        ("random() > 0.5", "random() gives another answer each time"),
        ("email = gen_random_uuid()::text", "another answer each time"),
        ("nextval('s') > 1", "another answer each time"),
        ("today > now()", "now changes with time"),
        ("today > current_date", "current_date changes with time"),
        ("CAST(today AS TIMESTAMPTZ) > CURRENT_TIMESTAMP", "current_timestamp changes with time"),
    ],
)
def test_what_is_not_sql_about_one_row_is_refused_before_any_row(where: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Transform(RowRules(where=where), ORDERS)
    assert caught.value.message.startswith("where of crm.orders: ")
    assert said in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "where",
    [
        "true",
        "CASE WHEN id > 0 THEN true ELSE error('negative') END",
        "id = 1 -- only the first",
        "id = 1 /* only the first */",
        "today > DATE '2024-01-01'",  # a column may be called as a clock is
        '"Order" = 1',
        "EMAIL LIKE '%@%'",
        "address.city = 'Berlin' AND address.zip ^@ '1'",
        "list_contains(tags, 'vip')",
        "len(list_filter(tags, lambda t: t <> 'x')) > 1",
        "CASE WHEN id > 1 THEN email IS NULL ELSE false END",
        "email SIMILAR TO '[a-z]+@.*'",
        "id IN (1, 2, 3) AND id BETWEEN 1 AND 3",
        "TRY_CAST(email AS INTEGER) IS NULL",
    ],
)
def test_any_boolean_expression_over_one_row_may_be_a_rule(where: str) -> None:
    assert not Transform(RowRules(where=where), ORDERS).is_identity


def test_a_wrong_column_names_the_nearest_of_the_whole_table() -> None:
    with pytest.raises(ConfigError) as caught:
        Transform(RowRules(where="id = 1 AND emial = 'a'"), ORDERS)
    assert caught.value.hint == "did you mean email?"


def test_an_expectation_may_ask_for_the_time_and_names_its_rule() -> None:
    fresh = Expectation("not from the future", "today <= current_date")
    Transform(RowRules(expectations=(fresh,)), ORDERS)
    with pytest.raises(ConfigError, match=r"^expect rule dice of crm.orders: random\(\)"):
        Transform(RowRules(expectations=(Expectation("dice", "random() > 0.5"),)), ORDERS)


def test_a_column_may_be_called_as_a_clock_is() -> None:
    schema = schema_of({"current_date": pa.date32()})
    rows = pa.table({"current_date": [dt.date(2020, 1, 1), dt.date(2030, 1, 1)]})
    transform = Transform(RowRules(where="current_date < DATE '2025-01-01'"), schema)
    changes = transform.changes(NetChanges(schema, rows, rows.slice(0, 0)))
    assert changes.upserts["current_date"].to_pylist() == [dt.date(2020, 1, 1)]


def test_columns_that_differ_by_case_only_are_refused_in_rules_and_nowhere_else() -> None:
    schema = schema_of({"Email": pa.string(), "email": pa.string(), "id": pa.int64()})
    with pytest.raises(ConfigError, match="Email and email"):
        Transform(RowRules(where="email IS NULL"), schema)
    assert Transform(RowRules(where="id = 1"), schema).schema == schema


def test_other_columns_may_have_types_that_duckdb_does_not_know() -> None:
    schema = schema_of({"id": pa.int64(), "huge": pa.decimal256(60, 2)})
    rows = pa.table({"id": [1, 2], "huge": pa.nulls(2, pa.decimal256(60, 2))})
    transform = Transform(RowRules(where="id = 2"), schema)
    changes = transform.changes(NetChanges(schema, rows, rows.slice(0, 0)))
    assert changes.upserts["id"].to_pylist() == [2]
    with pytest.raises(ConfigError, match="Decimal"):
        Transform(RowRules(where="huge > 1"), schema)


@pytest.mark.parametrize("table", ["read_text('{path}')", "'{path}'", "glob('{path}')", "secret"])
def test_the_sandbox_reaches_no_file_and_no_variable_of_this_process(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second wall: even a query that got past the syntax check would find nothing."""
    rows = pa.table({"x": [1]})
    monkeypatch.setattr(sandbox, "secret", rows, raising=False)  # DuckDB looks there for names
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(duckdb.Error, match=r"disabled|does not exist"):
        Sandbox().select([f"(SELECT count(*) FROM {table.format(path=path)})"], rows)


@pytest.mark.parametrize("setting", ["threads = 4", "enable_external_access = true"])
def test_the_sandboxs_settings_are_locked(setting: str) -> None:
    raises = pytest.raises(duckdb.Error, match=r"locked|Cannot")
    with Sandbox()._connection() as connection, raises:
        connection.execute(f"SET {setting}")


UTC = dt.UTC
NOON = dt.datetime(2024, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("where", "values", "expected"),
    [
        pytest.param(
            "v > 1234567890123456789012345678.0000000001",
            pa.array([Decimal("1234567890123456789012345678.0000000002"), Decimal(1)]).cast(
                pa.decimal128(38, 10)
            ),
            [Decimal("1234567890123456789012345678.0000000002")],
            id="decimals to the last digit",
        ),
        pytest.param(
            "v = 9007199254740993",
            pa.array([9007199254740993, 9007199254740992]),
            [9007199254740993],
            id="integers beyond doubles",
        ),
        pytest.param(
            "v > 18446744073709551614",
            pa.array([2**64 - 1, 0], pa.uint64()),
            [2**64 - 1],
            id="unsigned",
        ),
        pytest.param(
            "v = TIMESTAMPTZ '2024-07-01 14:00:00+02'",
            pa.array([NOON, NOON + dt.timedelta(hours=2)], pa.timestamp("us", "UTC")),
            [NOON],
            id="instants",
        ),
        pytest.param(
            "v = '2024-07-01 12:00:00' AND extract(hour FROM v) = 12",
            pa.array([NOON], pa.timestamp("us", "UTC")),
            [NOON],
            id="instants read in UTC",
        ),
        pytest.param(
            "v > TIMESTAMP '2024-07-01 11:59:59.999999'",
            pa.array([dt.datetime(2024, 7, 1, 12), dt.datetime(2024, 7, 1, 11)]),  # noqa: DTZ001
            [dt.datetime(2024, 7, 1, 12)],  # noqa: DTZ001
            id="local times",
        ),
        pytest.param(
            "v >= TIME '12:00'",
            pa.array([dt.time(12), dt.time(1)], pa.time64("us")),
            [dt.time(12)],
            id="times",
        ),
        pytest.param(
            "octet_length(v) = 2 AND v = '\\x00\\xFF'::BLOB",
            pa.array([b"\0\xff", b"x"]),
            [b"\0\xff"],
            id="binary",
        ),
        pytest.param(
            "v.a > 1 AND v.b[1] = 'x'",
            pa.array([{"a": 2, "b": ["x"]}, {"a": 2, "b": []}, None]),
            [{"a": 2, "b": ["x"]}],
            id="nested",
        ),
        pytest.param(
            "v['k'] = 1",
            pa.array([[("k", 1)], [("l", 1)], None], pa.map_(pa.string(), pa.int64())),
            [[("k", 1)]],
            id="maps",
        ),
        pytest.param(
            "v <> 'a'",
            pa.array(["a", "b", None]).dictionary_encode(),
            ["b"],
            id="dictionaries",
        ),
        pytest.param("v IS NULL", pa.array(["a", None]), [None], id="nulls"),
        pytest.param("length(v) = 1", pa.array(["ä", "ab", "\U0001f980"]), ["ä", "\U0001f980"]),
    ],
)
def test_values_are_judged_exactly(where: str, values: pa.Array, expected: list[Any]) -> None:
    assert passing(where, values) == expected


def test_the_order_of_rows_is_kept_whatever_their_number() -> None:
    values = pa.array(range(300_000))
    assert passing("v % 2 = 0", values) == list(range(0, 300_000, 2))
