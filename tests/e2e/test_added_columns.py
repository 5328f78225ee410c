"""Schema changes at the source: those that can be followed, and those that stop one table."""

from __future__ import annotations

import pytest

from altered_tables import ADDED, KEYLESS, MOVED, STOPPING, names
from headrace.engine.materialize import Materialization
from headrace.errors import HeadraceError


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


@pytest.mark.parametrize("way", ["while running", "in one transaction", "between runs"])
def test_8_columns_that_go_or_get_other_names_types_and_rights_are_followed(shop, way):
    """Invariant 8: rows of before, of between and of after, and those that nothing changed."""
    with_tables(shop, MOVED)

    def change() -> None:
        for case, table in names(MOVED).items():
            with shop.database.connect(autocommit="transaction" not in way) as connection:
                connection.execute(f"update {table} set v = 'before' where id = 3")
                for statement in MOVED[case]:
                    connection.execute(statement.format(t=table))
                connection.execute(f"insert into {table} (id) values (99)")
                connection.execute(f"delete from {table} where id = 4")

    if way == "while running":
        with shop.running() as running:
            running.catch_up()
            change()
            running.catch_up()
    else:
        change()
    shop.catch_up()
    for table in names(MOVED).values():
        shop.assert_equal(f"public.{table}")


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


def test_8_a_column_added_to_a_partitioned_table_is_followed_with_what_older_rows_have(shop):
    """Invariant 8: partitions have the constant, but for those that came later; the root has not.
    A default that was computed row by row stops the table."""
    for table in ("constant", "volatile"):
        shop.sql(f"create table {table} (id int primary key) partition by range (id)")
        shop.sql(f"create table {table}_0 partition of {table} for values from (0) to (10)")
        shop.sql(f"insert into {table} values (1), (2)")
    shop.carry("public.constant", "public.volatile")
    shop.catch_up()
    shop.sql("alter table constant add n int default 7")
    shop.sql("alter table volatile add n float8 default random()")
    for table in ("constant", "volatile"):
        shop.sql(f"create table {table}_1 partition of {table} for values from (10) to (20)")
        shop.sql(f"insert into {table} values (11, 5)")
    (failure,) = shop.run()
    assert str(failure.table) == "public.volatile"
    shop.assert_equal("public.constant")
