"""From Postgres to Postgres: from check to destroy, several pipelines, settings without a place."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest
import yaml
from deltalake import DeltaTable, QueryBuilder
from mirror import columns_of, difference, endpoint, rows_of

from headrace.errors import ConfigError, UnsuitableTableError
from headrace.model.finding import Severity
from headrace.testing.database import temporary_database

GOODS = """
create table goods (id int primary key, v text);
insert into goods select g, 'v' || g from generate_series(1, 100) g;
create table orders (id int primary key, good int);
insert into orders select g, g from generate_series(1, 100) g
"""


def change(mirror) -> None:
    for table in ("goods", "orders"):
        mirror.sql(f"update {table} set id = id + 1000 where id % 9 = 0")
        mirror.sql(f"delete from {table} where id = (select min(id) from {table})")
        mirror.sql(f"insert into {table} select max(id) + 1 from {table}")


def blockers(mirror) -> list[str]:
    found = mirror.project.check()
    return [f.name for f in found if f.severity is Severity.BLOCKER]


# -- one pipeline, from beginning to end -----------------------------------------------------------


@pytest.mark.slow
def test_4_a_pipeline_lives_from_check_to_destroy(mirror):
    """Invariant 4: by the command line, whose exit codes tell how each step went."""
    mirror.sql(GOODS)
    mirror.carry("public.*")
    assert "1 blocker" in command(mirror, "check", code=3)
    command(mirror, "check", "--fix", "--yes")
    told = command(mirror, "plan")
    assert "create" in told
    assert "public.goods" in told
    command(mirror, "run", "--once")
    mirror.assert_equal("goods", "orders")
    change(mirror)
    command(mirror, "run", "--once")
    mirror.assert_equal("goods", "orders")
    assert "streaming" in command(mirror, "status")
    command(mirror, "preview", "public.goods")
    assert "100" in command(mirror, "query", "select count(*) from goods")
    mirror.at_target("delete from goods where id > 50")
    command(mirror, "resync", "public.goods")
    mirror.assert_equal("goods", "orders")
    assert "goods" in command(mirror, "destroy", "--yes")
    mirror.assert_equal("goods", "orders")  # the tables stay
    slots = "select count(*) from pg_replication_slots where database = current_database()"
    assert mirror.sql(slots) == [(0,)]
    assert mirror.at_target("select count(*) from headrace.checkpoints") == [(0,)]
    kept = "select count(*) from pg_class where relnamespace = to_regnamespace('headrace_previous')"
    assert mirror.at_target(kept) == [(0,)]


def command(mirror, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "headrace", *arguments],
        cwd=mirror.root,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_plan_tells_what_is_made_and_what_is_added_before_it_is(mirror):
    mirror.sql(GOODS)
    mirror.carry("public.goods")
    steps = [(s.action, s.kind, s.name) for s in mirror.project.plan().steps]
    assert ("create", "table", "public.goods") in steps
    assert ("copy", "table", "public.goods") in steps
    assert mirror.at_target("select to_regclass('goods')") == [(None,)]
    mirror.catch_up()
    assert mirror.project.plan().changes == ()
    mirror.sql("alter table goods add price numeric(9,2) default 1.5")
    (step,) = mirror.project.plan().changes
    assert (step.action, step.name) == ("alter", "public.goods")
    assert "adds column price numeric(9,2)" in step.detail
    mirror.sql("alter table goods drop column v")
    (step,) = mirror.project.plan().changes
    assert (step.action, step.name) == ("stop", "public.goods")
    assert "column v was dropped" in step.detail


def test_status_tells_phases_and_lag_and_what_is_in_quarantine(mirror):
    mirror.sql(GOODS)
    mirror.at_target("create table goods (id int primary key, v text check (v <> 'bad'))")
    mirror.carry("public.*")
    mirror.catch_up()
    mirror.sql("update goods set v = 'bad' where id < 4")
    assert mirror.status("public.goods").lag_bytes
    mirror.catch_up()
    status = mirror.status("public.goods")
    assert (status.phase.value, status.quarantined, status.error) == ("streaming", 3, None)
    assert status.lag_seconds == 0
    assert mirror.status("public.orders").quarantined == 0


def test_11_a_resync_keeps_indexes_views_and_grants_of_the_table(mirror):
    """Invariant 11."""
    mirror.sql(GOODS)
    mirror.carry("public.goods")
    mirror.catch_up()
    mirror.at_target("""
        create index by_v on goods (v);
        create view dear as select * from goods where v > 'v5';
        alter table goods alter v set default 'none'
    """)
    mirror.at_target("delete from goods where id > 50")
    assert not mirror.project.resync(["public.goods"])
    mirror.assert_equal("goods")
    assert mirror.at_target("select count(*) from dear") == mirror.sql(
        "select count(*) from goods where v > 'v5'"
    )
    assert mirror.at_target("select to_regclass('by_v') is not null") == [(True,)]
    change(mirror)
    mirror.catch_up()
    mirror.assert_equal("goods")
    kept = "select count(*) from pg_class where relnamespace = to_regnamespace('headrace_previous')"
    assert mirror.at_target(kept) == [(0,)]  # the next run lets the former generation go


def test_11_a_load_can_be_undone_and_its_table_is_held_until_a_resync(mirror):
    """Invariant 11: by its name at either end; the other table goes on, the log may go."""
    mirror.sql(GOODS)
    mirror.carry({"source": "public.goods", "name": "far.goods"}, "public.orders")
    mirror.catch_up()
    mirror.sql("update goods set v = 'wrong'")
    assert not mirror.project.resync(["public.goods"])
    told = mirror.project.undo("far.goods")
    assert "headrace resync public.goods" in told
    before = mirror.at_target("select * from far.goods order by id")
    assert {row[1] for row in before} == {f"v{n}" for n in range(1, 101)}
    for _ in range(2):
        change(mirror)
        mirror.catch_up()
        assert mirror.at_target("select * from far.goods order by id") == before
        mirror.assert_equal("orders")
        status = mirror.status("public.goods")
        assert (status.phase.value, "resync public.goods" in status.error) == ("held", True)
        assert status.lag_seconds == 0
    assert not mirror.project.resync(["public.goods"])
    change(mirror)
    mirror.catch_up()
    mirror.assert_equal("goods", target="far.goods")
    with pytest.raises(ConfigError, match=r"no pipeline carries public\.nothing to Postgres"):
        mirror.project.undo("public.nothing")


def test_a_destroyed_pipeline_begins_anew_where_its_tables_may_be_taken(mirror):
    mirror.sql(GOODS)
    mirror.carry("public.goods")
    mirror.catch_up()
    mirror.project.destroy()
    change(mirror)
    mirror.carry({"source": "public.goods", "take_over": True})
    mirror.catch_up()
    mirror.assert_equal("goods")


# -- what check finds ------------------------------------------------------------------------------


def test_check_finds_at_the_destination_what_would_fail(mirror):
    mirror.sql(GOODS)
    mirror.at_target("create table goods (id int, v varchar(3)); create view orders as select 1")
    mirror.carry("public.*")
    mirror.project.fix()
    found = {f.name: f for f in mirror.project.check() if f.severity is Severity.BLOCKER}
    assert found.keys() == {"target-key", "target-kind"}
    assert found["target-key"].sql == ('ALTER TABLE "public"."goods" ADD PRIMARY KEY ("id")',)
    warned = [f for f in mirror.project.check() if f.severity is Severity.WARNING]
    assert any("longer than 3" in finding.message for finding in warned)


def test_check_tells_each_table_the_types_that_it_lacks_with_the_sql_in_an_order_that_works(mirror):
    mirror.sql("""
        create schema "Sales Data";
        create type "Sales Data".mood as enum ('sad', 'glad');
        create type mood as enum ('a', 'b');
        create domain price as numeric(12, 2) default 0 not null check (value >= 0);
        create type item as (name text, "the price" price, moods mood[]);
        create type period as range (subtype = date);
        create domain items as item[];
        create table basket (id int primary key, what items, "When" period, m "Sales Data".mood);
        create table plain (id int primary key);
        insert into basket values (1, array[row('x', 1.5, '{a,b}')::item]::items,
            '[2020-01-01,2021-01-01)', 'glad')
    """)
    mirror.carry("public.*")
    mirror.project.fix()
    (finding,) = [f for f in mirror.project.check() if f.severity is Severity.BLOCKER]
    assert (finding.name, finding.objects) == ("target-types", ("public.basket",))
    (failure,) = mirror.run()
    assert str(failure.table) == "public.basket"
    assert isinstance(failure.error, UnsuitableTableError)
    mirror.assert_equal("plain")
    mirror.at_target('create schema "Sales Data"')
    for statement in finding.sql:
        mirror.at_target(statement)
    assert blockers(mirror) == []
    mirror.catch_up()
    mirror.assert_equal("basket", "plain")
    mirror.sql("update basket set what[1].moods = '{b}', m = 'sad'")
    mirror.catch_up()
    mirror.assert_equal("basket")


def test_check_tells_labels_that_an_enum_lacks_whose_rows_would_be_quarantined(mirror):
    mirror.sql("create type mood as enum ('sad', 'so so', 'glad')")
    mirror.at_target("create type mood as enum ('sad', 'glad')")
    mirror.sql("create table people (id int primary key, mood mood)")
    mirror.sql("insert into people values (1, 'sad'), (2, 'so so')")
    mirror.carry("public.people")
    (finding,) = [f for f in mirror.project.check() if f.name == "target-enum"]
    assert finding.severity is Severity.WARNING
    mirror.catch_up()
    assert [row.key for row in mirror.project.quarantine()] == [("2",)]
    for statement in finding.sql:
        mirror.at_target(statement)
    assert mirror.project.retry().applied == 1
    mirror.assert_equal("people")


# -- several pipelines -----------------------------------------------------------------------------


def test_4_two_pipelines_to_delta_and_to_postgres_share_one_capture(mirror):
    """Invariant 4: one slot, one change log, two destinations, one stopped for a while."""
    mirror.sql(GOODS)
    lake = {"lake": {"type": "delta", "location": str(mirror.root / "lake")}}
    tables = ["public.*"]
    mirror.declare({"mirrored": tables, "laked": tables}, connections=lake, to={"laked": "lake"})
    mirror.catch_up()
    for _ in range(2):
        change(mirror)
        mirror.catch_up("laked")
    mirror.catch_up()
    mirror.assert_equal("goods", "orders")
    (found,) = mirror.sql("select count(*), sum(id) from goods")
    lake_rows = QueryBuilder().register("t", DeltaTable(mirror.root / "lake/public/goods"))
    held = lake_rows.execute("select count(*) n, sum(id) s from t")
    assert pa.table(held).to_pylist() == [dict(zip("ns", found, strict=True))]
    slots = "select slot_name from pg_replication_slots where database = current_database()"
    assert mirror.sql(slots) == [("headrace_shop",)]


def test_4_two_pipelines_to_two_databases_share_one_capture(mirror, server_dsn):
    """Invariant 4: the one may be added later, under names of its own."""
    with temporary_database(server_dsn) as other:
        mirror.sql(GOODS)
        mirror.declare({"first": ["public.*"]})
        mirror.catch_up()
        change(mirror)
        mirror.declare(
            {"first": ["public.*"], "second": [{"source": "public.goods", "name": "a.b"}]},
            connections={"archive": endpoint(other.dsn)},
            to={"second": "archive"},
        )
        mirror.catch_up()
        change(mirror)
        mirror.catch_up()
        mirror.assert_equal("goods", "orders")
        columns = columns_of(mirror.source, "goods")
        wrong = difference(rows_of(mirror.source, "goods", columns), rows_of(other, "a.b", columns))
        assert not wrong


def test_7_a_table_added_to_the_selection_later_is_copied_beside_the_stream(mirror):
    """Invariant 7: while the others go on."""
    mirror.sql(GOODS)
    mirror.carry("public.goods")
    mirror.catch_up()
    mirror.carry("public.*")
    change(mirror)
    mirror.catch_up()
    change(mirror)
    mirror.catch_up()
    mirror.assert_equal("goods", "orders")


# -- settings that this route has no use for -------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"mode": "append"}, "the mode append is not yet supported from Postgres to Postgres"),
        ({"mode": "scd2"}, "the mode scd2 is not yet supported from Postgres to Postgres"),
        ({"where": "id > 1"}, "where is not yet supported from Postgres to Postgres"),
        ({"mask": {"v": "sha256"}}, "mask is not yet supported from Postgres to Postgres"),
        ({"expect": {"r": "id > 1"}}, "expect is not yet supported from Postgres to Postgres"),
        ({"newest_by": "v"}, "is for a Delta source"),
    ],
)
def test_what_is_not_possible_for_a_table_is_refused_by_name_and_line(mirror, entry, said):
    mirror.carry({"source": "public.goods", **entry})
    refused(mirror, said, next(iter(entry)))


def test_a_setting_inside_another_is_refused_by_its_own_name_and_line(mirror):
    mirror.carry({"source": "public.goods", "columns": {"exclude": ["v"]}})
    refused(mirror, "columns.exclude: exclude is not yet supported", "exclude")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schedule", "5m", "the schedule 5m is not yet supported from Postgres to Postgres"),
        ("poll", "1s", "is for a Delta source"),
        ("schema", "freeze", "schema is not yet supported from Postgres to Postgres"),
        ("drop_columns", True, "drop_columns is not yet supported from Postgres to Postgres"),
        ("rebuild_above", 0.5, "rebuild_above is not yet supported from Postgres to Postgres"),
        ("throttle", {"max_rows_per_second": 5}, "throttle is not yet supported"),
    ],
)
def test_what_is_not_possible_for_a_pipeline_is_refused_by_name_and_line(mirror, key, value, said):
    mirror.carry("public.goods", **{key: value})
    refused(mirror, said, key)


def refused(mirror, said: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mirror.project  # noqa: B018
    lines = mirror.file.read_text().splitlines()
    line = next(n for n, text in enumerate(lines, 1) if text.strip().startswith(f"{key}:"))
    assert said in caught.value.message
    assert f":{line}" in str(caught.value) or f"line {line}" in str(caught.value)
    assert yaml.safe_load(mirror.file.read_text())
