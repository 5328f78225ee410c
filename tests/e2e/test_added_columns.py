"""Schema changes at the source: those that can be followed, and those that stop one table."""

from __future__ import annotations

import re

import pytest

from headrace.engine.materialize import Materialization
from headrace.errors import HeadraceError

KEYLESS = "to a table without a key"
ADDED = {
    "nullable": ["alter table {t} add n int", "insert into {t} values (50, 'x', 1)"],
    "with a constant": [
        "alter table {t} add n numeric(9,2) default 1.50 not null, add t text default 'é''\"{{,}}'",
        "insert into {t} (id) values (50)",
        "update {t} set t = null where id = 2",
    ],
    "with constants of many types": [
        "alter table {t} add a int[] default '{{1,NULL}}', add b bytea default '\\x00ff',"
        " add c timestamptz default '2020-01-01 00:00:00.000001+00', add d bool default false,"
        " add e date default '1999-12-31', add f float8 default 'NaN', add g jsonb default '{{}}',"
        " add h text[] default array['a,b', null, '\"'], add i char(4) default 'x'",
        "update {t} set d = true where id = 3",
    ],
    "with a default that changes afterwards": [
        "alter table {t} add n int default 1",
        "alter table {t} alter n set default 2",
        "insert into {t} (id) values (50)",
        "alter table {t} alter n drop default",
        "update {t} set v = 'w' where id = 1",
    ],
    "several times": [
        "alter table {t} add n int default 1",
        "insert into {t} (id) values (50)",
        "alter table {t} add m text",
        "update {t} set m = 'm' where id < 5",
        "delete from {t} where id = 6",
        "alter table {t} add o bool default true",
        "update {t} set id = -id where id = 7",
    ],
    KEYLESS: [
        "alter table {t} add n int default 3",
        "delete from {t} where ctid = any(array(select ctid from {t} limit 3))",
        "insert into {t} values (1, 'v1', 3), (1, 'v1', null)",
        "update {t} set v = 'w' where ctid = (select min(ctid) from {t})",
    ],
    "and nothing more": ["alter table {t} add n int default 5"],
    "after a truncate": [
        "insert into {t} values (60, 'gone')",
        "truncate {t}",
        "alter table {t} add n int default 5",
        "insert into {t} (id) values (1)",
    ],
}


def names(cases: dict[str, list[str]]) -> dict[str, str]:
    """Each case's table."""
    return {case: re.sub(r"\W", "_", case) for case in cases}


def with_tables(shop, cases: dict[str, list[str]]):
    """One table for each case, twenty rows of it in the lake, and one that nothing happens to."""
    for case, table in names(cases).items():
        key = "" if case == KEYLESS else "primary key"
        shop.sql(f"create table {table} (id int {key}, v text)")
        shop.sql(f"insert into {table} select g, 'v' || g % 9 from generate_series(1, 20) g")
        shop.sql(f"alter table {table} replica identity {'default' if key else 'full'}")
    shop.sql("create table calm (id int primary key)")
    shop.carry("public.*")
    shop.catch_up()
    return shop


@pytest.mark.parametrize("way", ["each alone", "in one transaction", "one by one"])
def test_8_an_added_column_is_followed_with_what_older_rows_have(shop, way):
    """Invariant 8: rows before and after it in one transaction, in one run, across restarts."""
    with_tables(shop, ADDED)
    for step in range(1 if way == "in one transaction" else max(map(len, ADDED.values()))):
        for case, table in names(ADDED).items():
            with shop.database.connect(autocommit=False) as connection:
                connection.execute(f"update {table} set v = 'step {step}' where id = 10")
                for statement in ADDED[case][step : None if "transaction" in way else step + 1]:
                    connection.execute(statement.format(t=table).encode())
        if way == "one by one":
            shop.catch_up()
    shop.catch_up()
    for table in names(ADDED).values():  # the stream tells a schema only with a row
        shop.sql(f"insert into {table} (id) values (1000); update {table} set v = 'all'")
    shop.catch_up()
    for table in names(ADDED).values():
        shop.assert_equal(f"public.{table}")


def test_8_a_column_added_between_log_and_lake_is_followed_after_the_restart(shop, monkeypatch):
    """Invariant 8: the log holds both schemas before the lake takes either."""
    with_tables(shop, {"goods": []})
    shop.sql("update goods set v = 'old schema'")
    with monkeypatch.context() as patched:
        patched.setattr(Materialization, "_advance", lambda self, state: None)
        with shop.running() as running:
            running.wait(lambda views: views[0].capture.progress.rows >= 20)
            shop.sql("alter table goods add n int default 4")
            shop.sql("update goods set v = 'new schema' where id > 10")
            running.wait(lambda views: views[0].capture.progress.rows >= 30)
    shop.sql("alter table goods add m int default 5")
    shop.sql("delete from goods where id = 11; insert into goods (id) values (77)")
    shop.catch_up()
    shop.assert_equal("public.goods")


STOPPING = {
    "a volatile default": ["alter table {t} add n float8 default random()"],
    "a default of its own for each row": ["alter table {t} add n bigserial"],
    "a dropped column": ["alter table {t} add n int", "alter table {t} drop column v"],
    "a renamed column": ["alter table {t} rename v to w"],
    "a changed type": ["alter table {t} alter v type bytea using v::bytea"],
    "a wider type": ["alter table {t} alter id type bigint"],
    "dropped and added anew": [
        "alter table {t} drop column v",
        "alter table {t} add column v text",
    ],
    # Nothing tells this from a volatile default: both have a default and no missing value.
    "a default set afterwards": [
        "alter table {t} add n int",
        "alter table {t} alter n set default 7",
    ],
    "names exchanged": [
        "alter table {t} add w text",
        "alter table {t} rename v to x",
        "alter table {t} rename w to v",
        "alter table {t} rename x to w",
    ],
}


def test_8_a_change_that_cannot_be_followed_stops_that_table_alone(shop):
    """Invariant 8: it says what to do, in this run and in the next one; the others go on."""
    with_tables(shop, STOPPING)
    for case, table in names(STOPPING).items():
        for statement in STOPPING[case]:
            shop.sql(statement.format(t=table))
        shop.sql(f"insert into {table} (id) values (99)")
    shop.sql("insert into calm values (1)")
    assert_stopped(shop)
    for table in names(STOPPING).values():
        shop.sql(f"update {table} set id = 98 where id = 99")
    shop.sql("insert into calm values (2)")
    assert_stopped(shop)
    assert not shop.project.resync([f"public.{table}" for table in names(STOPPING).values()])
    for table in names(STOPPING).values():
        shop.sql(f"delete from {table} where id = 98; insert into {table} (id) values (97)")
    shop.catch_up()
    for table in names(STOPPING).values():
        shop.assert_equal(f"public.{table}")


def assert_stopped(shop) -> None:
    errors = {str(failure.table): failure.error for failure in shop.run()}
    assert set(errors) == {f"public.{table}" for table in names(STOPPING).values()}
    for table, error in errors.items():
        assert isinstance(error, HeadraceError)
        assert table in error.message
        assert f"resync {table}" in error.hint
    phases = {t.table: (t.phase.value, t.error) for t in shop.project.status().tables}
    assert phases.pop("public.calm")[1] is None
    assert all(phase == "failed" and "resync" in text for phase, text in phases.values())
    shop.assert_equal("public.calm")


def test_8_another_primary_key_is_followed_or_stops_the_table(shop):
    """Invariant 8."""
    with_tables(shop, {"goods": []})
    shop.sql("alter table goods add n int not null default 1")
    shop.sql("alter table goods drop constraint goods_pkey, add primary key (id, n)")
    shop.sql("insert into goods values (1, 'other', 2); update goods set n = 3 where id = 2")
    if failures := shop.run():
        assert "resync public.goods" in failures[0].error.hint
        assert not shop.project.resync(["public.goods"])
    shop.sql("delete from goods where id = 1 and n = 1; update goods set v = 'last' where n = 3")
    shop.catch_up()
    shop.assert_equal("public.goods")
