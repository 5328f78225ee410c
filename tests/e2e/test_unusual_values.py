"""Types made of others, times of any age and values that no type holds: in Delta, for each reader.

What a value must be is written down here, by hand, beside the SQL that makes it.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder

from headrace.errors import ConfigError
from headrace.testing.duckdb_delta import duckdb_with_delta

TYPES = """
create extension hstore;
create type pair as (a int, b text);
create type nest as (one pair, "Many" pair[], tags hstore, grid int[][]);
"""

# Columns of each kind: a value in SQL, and what readers must find.
NESTED: dict[str, list[tuple[str, Any]]] = {
    "pair": [
        ("(1, 'a \"b\", {}')", {"a": 1, "b": 'a "b", {}'}),
        ("(null, '')", {"a": None, "b": ""}),
    ],
    "pair[]": [("array[(1, null)::pair, null]", [{"a": 1, "b": None}, None]), ("'{}'", [])],
    "hstore": [('\'b=>NULL, "a =>"=>"NULL"\'', {"b": None, "a =>": "NULL"}), ("''", {})],
    "nest": [
        (
            "row(row(1, 'x'), '{}', 'k=>v', '{{1,2},{3,4}}')",
            {"one": {"a": 1, "b": "x"}, "Many": [], "tags": {"k": "v"}, "grid": "{{1,2},{3,4}}"},
        ),
        ("row(null, null, null, null)", dict.fromkeys(("one", "Many", "tags", "grid"))),
    ],
    "int[][]": [("'[0:1]={1,2}'", '{"[0:1]":[1,2]}'), ("'{{1},{NULL}}'", "[[1],[null]]")],
}


def _plain(value: Any) -> Any:
    """Maps come as pairs, or as structs of key and value, by reader."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return dict(value)
    if isinstance(value, list) and value and _is_pair(value[0]):
        return {pair["key"]: pair["value"] for pair in value}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _is_pair(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"key", "value"}


def _read(location: str, query: str) -> dict[str, pa.Table]:
    """What a query gives by each reader."""
    by_rust = QueryBuilder().register("t", DeltaTable(location)).execute(query)
    with duckdb_with_delta() as connection:
        connection.execute(f"create view t as select * from delta_scan('{location}')")
        by_duckdb = connection.execute(query).to_arrow_table()
    by_polars = pl.SQLContext(t=pl.scan_delta(location)).execute(query, eager=True)
    return {
        "deltalake": pa.table(by_rust),
        "duckdb": by_duckdb,
        "polars": by_polars.to_arrow(),
    }


def test_4_and_7_nested_values_are_the_same_by_snapshot_by_stream_and_for_each_reader(shop):
    """Invariants 4 and 7."""
    names = [f"c{number}" for number in range(len(NESTED))]
    kinds = ", ".join(f"{name} {kind}" for name, kind in zip(names, NESTED, strict=True))
    shop.sql(f"{TYPES}; create table made (id int primary key, {kinds})")
    shop.carry("public.made")
    expected = []
    for identity, way in ((0, "snapshot"), (10, "stream")):
        for number in range(2):
            values = [pairs[number] for pairs in NESTED.values()]
            made = ", ".join(literal for literal, _ in values)
            shop.sql(f"insert into made values ({identity + number}, {made})")
            row = dict(zip(names, (found for _, found in values), strict=True))
            expected.append({"id": identity + number, **row})
        shop.sql(f"insert into made (id) values ({identity + 5})")
        expected.append({"id": identity + 5, **dict.fromkeys(names)})
        shop.catch_up()
        assert shop.project.verify()[0].equal, way
    for reader, found in _read(shop.location("public.made"), "select * from t order by id").items():
        rows = found.to_pylist()
        hollow = [{k: {} if v == [] and k == "c2" else v for k, v in row.items()} for row in rows]
        assert [_plain(row) for row in hollow] == expected, reader


@pytest.mark.parametrize("mode", ["scd2", "append"])
def test_4_and_6_types_made_of_others_keep_versions_and_stand_as_keys(shop, mode):
    """Invariants 4 and 6: a value in TOAST that an update did not send, beside nested ones."""
    shop.sql(f"{TYPES}; create table made (k pair primary key, h hstore, n nest, big text)")
    shop.sql("alter table made alter big set storage external")
    shop.carry({"source": "public.made", "mode": mode})
    shop.sql("insert into made values ((1, 'x'), 'a=>1', row((1, null), '{}', 'b=>2', null))")
    shop.sql("update made set big = repeat('x', 3000)")
    shop.catch_up()
    shop.sql("insert into made values ((2, 'y'))")
    shop.sql("update made set h = 'a=>NULL' where k = (1, 'x')::pair")
    shop.catch_up()
    assert shop.project.verify()[0].equal
    newest = """
        select k.b as b, h['a'] as a, n.one.a as one, n.tags['b'] as tag, length(big) as big from t
         where k.b = 'x' and h is not null and map_values(h)[1] is null
    """
    location = shop.location("public.made")
    with duckdb_with_delta() as connection:
        connection.execute(f"create view t as select * from delta_scan('{location}')")
        big = 3000 if mode == "scd2" else None  # a log of changes has what was sent
        assert connection.execute(newest).fetchall() == [("x", None, 1, "2", big)]


@pytest.mark.parametrize(
    ("change", "third", "read"),
    [
        ("add attribute c int", "(3, 'z', 33)", [None, None, 33]),
        ("drop attribute b, add attribute c text", "(3, 'z')", [None, None, "z"]),
        ("drop attribute a, add attribute a int", "('z', 3)", [None, None, 3]),
    ],
    ids=["one more", "another", "one like it"],
)
def test_8_a_composite_whose_attributes_change_stops_its_table_until_a_resync(
    shop, change, third, read
):
    """Invariant 8: Postgres tells the stream nothing of it, and rewrites no row."""
    shop.sql("create type pair as (a int, b text); create table made (id int primary key, p pair)")
    shop.sql("insert into made values (1, (1, 'x'))")
    shop.carry("public.made")
    shop.catch_up()
    with shop.running() as run:
        shop.sql("insert into made values (2, (2, 'y'))")
        run.catch_up()
        shop.sql(f"alter type pair {change}")
        shop.sql(f"insert into made values (3, {third})")
        run.wait(lambda _: shop.status("public.made").phase.value == "failed")
        applied = _read(shop.location("public.made"), "select id from t order by id")["duckdb"]
        assert applied["id"].to_pylist() == [1, 2], "a row was read by attributes that it has not"
        assert not shop.project.resync(["public.made"])
        shop.sql(f"insert into made values (4, {third})")
        run.catch_up()
    assert shop.project.verify()[0].equal
    attribute = "a" if " a " in change.rpartition("add")[2] else "c"
    query = f"select p.{attribute} as v from t order by id"
    for reader, found in _read(shop.location("public.made"), query).items():
        assert found["v"].to_pylist() == [*read, read[-1]], reader


def test_8_a_composite_with_another_attribute_stops_its_table_at_the_next_start(shop):
    """Invariant 8: rows do not show it, but what is known of the type does."""
    shop.sql("create type pair as (a int, b text); create table made (id int primary key, p pair)")
    shop.carry("public.made")
    shop.sql("insert into made values (1, (1, 'x'))")
    shop.catch_up()
    shop.sql("alter type pair drop attribute b, add attribute c text")
    shop.sql("insert into made values (2, (2, 'y'))")
    (failure,) = shop.run()
    assert "composite type pair was altered" in failure.error.message
    assert not shop.project.resync(["public.made"])
    assert shop.project.verify()[0].equal


AGES = {
    "date": ["4714-11-24 BC", "0001-12-31 BC", "10000-01-01", "5874897-12-31"],
    "timestamptz": ["4714-11-24 00:00:00+00 BC", "294247-01-10 04:00:54.775807+00"],
    "timestamp": ["0044-03-15 12:00:00.000001 BC", "12024-02-29 00:00:00"],
}


@pytest.mark.parametrize("kind", AGES)
def test_4_times_of_any_age_are_the_days_and_microseconds_that_postgres_counts(shop, kind):
    """Invariant 4, for readers that give what the files hold; SQL engines print fewer years."""
    shop.sql(f"create table ages (id int primary key, v {kind}, l {kind}[])")
    shop.carry("public.ages")
    for first in (0, 10):
        for number, value in enumerate(AGES[kind]):
            insert = f"insert into ages values (%s, %s, array[%s, null]::{kind}[])"
            shop.sql(insert, (first + number, value, value))
        shop.catch_up()
        assert shop.project.verify()[0].equal
    counted = (
        "v - date '1970-01-01'"
        if kind == "date"
        else (
            "extract(epoch from date_trunc('second', v))::int8 * 1000000"
            " + extract(microseconds from v)::int8 % 1000000"
        )
    )
    expected = shop.sql(f"select {counted} from ages order by id")
    stored = pa.int32() if kind == "date" else pa.int64()
    for reader, found in _read(shop.location("public.ages"), "select * from t order by id").items():
        assert [(v,) for v in found["v"].cast(stored).to_pylist()] == expected, reader
        lists = found["l"].cast(pa.list_(stored)).to_pylist()
        assert [(v[0],) for v in lists] == expected, reader


@pytest.mark.parametrize(
    ("kind", "value", "read_as", "found"),
    [
        ("timestamptz", "infinity", "text", "infinity"),
        ("numeric(5,2)", "NaN", "text", "NaN"),
        ("int[]", "[0:1]={1,2}", "text", '{"[0:1]":[1,2]}'),
        ("numeric", "1.5", "decimal(10,2)", "1.50"),
    ],
)
def test_12_what_stopped_a_table_arrives_once_its_column_is_read_as_text(
    shop, kind, value, read_as, found
):
    """Invariant 12: the error says how, and the resync is all that it takes."""
    shop.sql(f"create table odd (id int primary key, v {kind})")
    shop.sql("insert into odd values (1, null)")
    shop.carry("public.odd")
    shop.catch_up()
    shop.sql("insert into odd values (2, %s)", (value,))
    failures = shop.run()
    if read_as == "text":
        (failure,) = failures
        assert "read as text, it can: columns: {as: {v: text}}" in failure.error.message
        assert failure.error.hint == "headrace resync public.odd"
    shop.carry({"source": "public.odd", "columns": {"as": {"v": read_as}}})
    assert not shop.project.resync(["public.odd"])
    shop.sql("insert into odd values (3, %s)", (value,))
    shop.catch_up()
    assert shop.project.verify()[0].equal
    rows = _read(shop.location("public.odd"), "select cast(v as varchar) v from t order by id")
    for reader, read in rows.items():
        assert read["v"].to_pylist() == [None, found, found], reader


def test_a_wish_that_cannot_be_fulfilled_is_told_before_anything_is_done(shop):
    shop.sql("create table odd (id int primary key, v date)")
    for wish, what in (({"w": "text"}, "no column w"), ({"v": "decimal(5,2)"}, "type date cannot")):
        shop.carry({"source": "public.odd", "columns": {"as": wish}})
        with pytest.raises(ConfigError, match=what):
            shop.run()
    shop.declare(
        {
            "one": ["public.odd"],
            "two": [{"source": "public.odd", "name": "x.odd", "columns": {"as": {"v": "text"}}}],
        }
    )
    with pytest.raises(ConfigError, match="columns: as: differs"):
        shop.run()


@pytest.mark.slow
def test_4_and_7_a_value_of_a_hundred_megabytes_arrives_by_snapshot_and_by_stream(shop):
    """Invariants 4 and 7. Random enough not to shrink to nothing: 3 MB of it, over and over."""
    shop.sql("create table big (id int primary key, v text)")
    shop.carry("public.big")
    block = "(select string_agg(md5(i::text), '') from generate_series(1, 100000) i)"
    for number in (1, 2):
        shop.sql(f"insert into big values ({number}, repeat({block}, 32))")
        shop.catch_up()
    (expected,) = shop.sql("select length(v), md5(v) from big where id = 1")
    assert expected[0] == 102_400_000
    with duckdb_with_delta() as connection:
        location = shop.location("public.big")
        query = f"select length(v), md5(v) from delta_scan('{location}')"
        assert connection.execute(query).fetchall() == [expected, expected]
