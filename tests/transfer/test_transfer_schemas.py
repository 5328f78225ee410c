"""From Postgres to Postgres: schema changes, followed or told, each table for itself."""

from __future__ import annotations

import pytest

from altered_tables import ADDED, KEYLESS, MOVED, names
from altered_tables import STOPPING as NEVER_FOLLOWED
from headrace.errors import HeadraceError, UnsuitableTableError

STOPPING = NEVER_FOLLOWED | {k: v for k, v in MOVED.items() if k != "no longer required"}


def with_tables(mirror, cases: dict[str, list[str]]):
    """One table for each case, twenty rows of it at the target, and one that stays as it is."""
    for case, table in names(cases).items():
        key = "" if case == KEYLESS else "primary key"
        mirror.sql(f"create table {table} (id int {key}, v text)")
        mirror.sql(f"insert into {table} select g, 'v' || g % 9 from generate_series(1, 20) g")
        mirror.sql(f"alter table {table} replica identity {'default' if key else 'full'}")
    mirror.sql("create table calm (id int primary key)")
    mirror.carry("public.*")
    mirror.catch_up()
    return mirror


@pytest.mark.slow
@pytest.mark.parametrize("way", ["each alone", "in one transaction", "one by one"])
def test_8_an_added_column_is_followed_with_what_older_rows_have(mirror, way):
    """Invariant 8: rows before and after it in one transaction, in one run, across restarts."""
    with_tables(mirror, ADDED)
    for step in range(1 if way == "in one transaction" else max(map(len, ADDED.values()))):
        for case, table in names(ADDED).items():
            with mirror.source.connect(autocommit=False) as connection:
                connection.execute(f"update {table} set v = 'step {step}' where id = 10")
                for statement in ADDED[case][step : None if "transaction" in way else step + 1]:
                    connection.execute(statement.format(t=table).encode())
        if way == "one by one":
            mirror.catch_up()
    mirror.catch_up()
    for table in names(ADDED).values():  # the stream tells a schema only with a row
        mirror.sql(f"insert into {table} (id) values (1000); update {table} set v = 'all'")
    mirror.catch_up()
    mirror.assert_equal(*names(ADDED).values())


@pytest.mark.parametrize("way", ["between runs", "while running"])
def test_8_a_change_that_cannot_be_followed_stops_that_table_alone(mirror, way):
    """Invariant 8: it says what to do, in this run and the next; resync brings the new columns."""
    with_tables(mirror, STOPPING)
    if way == "while running":
        with mirror.running() as running:
            running.catch_up()
            change(mirror)
            running.catch_up()
    else:
        change(mirror)
    assert_stopped(mirror)
    for table in names(STOPPING).values():
        mirror.sql(f"update {table} set id = 98 where id = 99")
    mirror.sql("insert into calm values (2)")
    assert_stopped(mirror)
    assert not mirror.project.resync([f"public.{table}" for table in names(STOPPING).values()])
    for table in names(STOPPING).values():
        mirror.sql(f"delete from {table} where id = 98; insert into {table} (id) values (97)")
    mirror.catch_up()
    mirror.assert_equal(*names(STOPPING).values())


def change(mirror) -> None:
    for case, table in names(STOPPING).items():
        for statement in STOPPING[case]:
            mirror.sql(statement.format(t=table))
        mirror.sql(f"insert into {table} (id) values (99)")
    mirror.sql("insert into calm values (1)")


def assert_stopped(mirror) -> None:
    errors = {str(failure.table): failure.error for failure in mirror.run()}
    assert set(errors) == {f"public.{table}" for table in names(STOPPING).values()}
    for table, error in errors.items():
        assert isinstance(error, HeadraceError)
        assert table in error.message
        assert f"resync {table}" in error.hint
    phases = {t.table: (t.phase.value, t.error) for t in mirror.project.status().tables}
    assert phases.pop("public.calm")[1] is None
    assert all(phase == "failed" and "resync" in text for phase, text in phases.values())
    mirror.assert_equal("calm")


def test_8_a_longer_text_is_followed_and_rewrites_nothing(mirror):
    """Invariant 8."""
    mirror.sql("create table goods (id int primary key, v varchar(5), w varchar(9))")
    mirror.sql("insert into goods values (1, 'short', 'w')")
    mirror.carry("public.goods")
    mirror.catch_up()
    mirror.sql("alter table goods alter v type varchar(20), alter w type text")
    mirror.sql("insert into goods values (2, 'longer than before', repeat('w', 100))")
    mirror.catch_up()
    mirror.assert_equal("goods")


def test_8_an_added_column_whose_type_is_missing_stops_that_table_alone_with_the_sql(mirror):
    """Invariant 8: the type made, the next run goes on from where it stood."""
    mirror.sql("create table goods (id int primary key); create table calm (id int primary key)")
    mirror.carry("public.*")
    mirror.catch_up()
    mirror.sql("create type mood as enum ('sad', 'glad')")
    mirror.sql("alter table goods add mood mood default 'sad'; insert into goods values (1)")
    mirror.sql("insert into calm values (1)")
    for _ in range(2):
        (failure,) = mirror.run()
        assert isinstance(failure.error, UnsuitableTableError)
        assert "mood" in failure.error.message
        assert failure.error.hint == "CREATE TYPE mood AS ENUM ('sad', 'glad')"
    mirror.assert_equal("calm")
    mirror.at_target(failure.error.hint)
    mirror.catch_up()
    mirror.assert_equal("goods")


def test_8_a_running_pipeline_stops_a_table_alone_whose_new_type_is_missing(mirror):
    """Invariant 8: nobody looked beforehand; the error names the type and who tells its SQL."""
    mirror.sql("create table goods (id int primary key); create table calm (id int primary key)")
    mirror.carry("public.*")
    with mirror.running() as running:
        running.catch_up()
        mirror.sql("create type mood as enum ('sad'); alter table goods add mood mood")
        mirror.sql("insert into goods values (1, 'sad'); insert into calm values (1)")
        running.wait_for_table("public.goods", lambda state: state.error is not None)
        running.catch_up()
        mirror.assert_equal("calm")
    error = mirror.status("public.goods").error
    assert "mood" in error
    assert "headrace check tells the SQL" in error


def test_4_columns_of_the_users_own_stay_as_they_are(mirror):
    """Invariant 4, of the source's columns; resync changes the table in place then."""
    mirror.sql("create table goods (id int primary key, v text)")
    mirror.sql("insert into goods select g, 'v' || g from generate_series(1, 9) g")
    mirror.carry("public.goods")
    mirror.catch_up()
    mirror.at_target("alter table goods add note text; update goods set note = 'mine' || id")
    mirror.sql("update goods set v = 'new'; delete from goods where id = 9")
    mirror.catch_up()
    mirror.at_target("update goods set v = 'forged' where id = 2")
    assert not mirror.project.resync(["public.goods"])
    assert mirror.sql("select id, v, 'mine' || id from goods order by 1") == mirror.at_target(
        "select id, v, note from goods order by 1"
    )
