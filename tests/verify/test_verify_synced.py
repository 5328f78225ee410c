"""verify finds every row in which a Postgres table differs from its Delta table, and no other."""

from __future__ import annotations

import datetime as dt
import shutil
from typing import Any

import pyarrow as pa
import pytest

from headrace.connectors.postgres.destination import PostgresDestination
from headrace.verify import TableVerification
from lakeside import PIPELINE, Lakeside, people

TABLE = "crm.people"


def verify(shop: Lakeside, table: str = TABLE) -> TableVerification:
    (found,) = [v for v in shop.project.verify() if str(v.table) == table]
    return found


def counts(found: TableVerification) -> tuple[int, int, int]:
    return found.rows, found.missing, found.extra


@pytest.fixture
def loaded(shop: Lakeside) -> Lakeside:
    shop.source(TABLE).write(people(*range(1, 101)))
    shop.carry(TABLE)
    shop.catch_up()
    return shop


def test_4_an_equal_table_is_said_to_be_equal_as_of_its_version(loaded: Lakeside) -> None:
    """Invariant 4. The verification catches up by itself."""
    loaded.source(TABLE).delete("id > 90")
    loaded.source(TABLE).update("id = 5", name="'new'")
    found = verify(loaded)
    assert found.equal
    assert counts(found) == (90, 0, 0)
    assert (found.version, found.lsn, found.quarantined, found.problem) == (2, None, 0, None)
    loaded.assert_equal(TABLE)


# What somebody does by hand; then rows missing, rows too many, and the key that is told.
FORGERIES = {
    "a changed value": ("update crm.people set name = 'x' where id = 17", 1, 1, 17),
    "a value that became null": ("update crm.people set name = null where id = 17", 1, 1, 17),
    "a value of another row": ("update crm.people set name = 'n18' where id = 17", 1, 1, 17),
    "a space more": ("update crm.people set name = name || ' ' where id = 17", 1, 1, 17),
    "a deleted row": ("delete from crm.people where id = 17", 1, 0, 17),
    "an inserted row": ("insert into crm.people values (999, 'n999')", 0, 1, 999),
    "a key that was changed": ("update crm.people set id = 999 where id = 17", 1, 1, 999),
    "every row": ("update crm.people set name = name || 'x'", 100, 100, None),
    "no row left": ("truncate crm.people", 100, 0, None),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_4_every_row_that_somebody_forged_is_found(loaded: Lakeside, forgery: str) -> None:
    """Invariant 4."""
    statement, missing, extra, key = FORGERIES[forgery]
    loaded.sql(statement)
    found = verify(loaded)
    assert (found.equal, found.missing, found.extra) == (False, missing, extra)
    assert found.samples
    assert key is None or f"id={key}" in found.samples
    assert len(found.samples) <= 10


def test_nothing_is_left_at_the_destination(loaded: Lakeside) -> None:
    loaded.catch_up()
    loaded.sql("update crm.people set name = 'x' where id < 50")
    tables = "select oid::regclass::text from pg_class where relkind = 'r' order by 1"
    before = loaded.sql(tables)
    assert not verify(loaded).equal
    assert loaded.sql(tables) == before
    assert loaded.sql("select count(*) from crm.people where name = 'x'") == [(49,)]


def test_tables_are_compared_as_they_are_masked_filtered_and_renamed(shop: Lakeside) -> None:
    rows = people(*range(1, 51)).append_column("mail", pa.array([f"m{i}" for i in range(50)]))
    shop.source(TABLE).write(rows.append_column("secret", pa.array(["s"] * 50)))
    shop.carry(
        {
            "source": TABLE,
            "name": "app.customers",
            "key": ["id"],
            "columns": {"exclude": ["secret"], "rename": {"name": "full_name"}},
            "where": "id <= 40",
            "mask": {"mail": "sha256", "id": "sha256"},
        }
    )
    assert counts(verify(shop)) == (40, 0, 0)
    shop.source(TABLE).update("id = 7", name="'x'")
    shop.source(TABLE).update("id = 8", id="1008")  # leaves what `where` lets through
    found = verify(shop)
    assert (found.equal, counts(found)) == (True, (39, 0, 0))
    shop.sql("update app.customers set mail = 'plain' where full_name = 'n9'")
    found = verify(shop)
    assert counts(found) == (39, 1, 1)
    assert len(found.samples[0]) == len("id=") + 64  # the key as it is masked, not as it was


@pytest.mark.parametrize("on_delete", ["mark", "ignore"])
def test_rows_that_the_source_lost_are_no_difference_where_they_stay(
    shop: Lakeside, on_delete: str
) -> None:
    shop.source(TABLE).write(people(*range(1, 11)))
    shop.carry({"source": TABLE, "key": ["id"], "on_delete": on_delete})
    shop.catch_up()
    shop.source(TABLE).delete("id > 5")
    shop.source(TABLE).update("id = 1", name="'new'")
    found = verify(shop)
    assert (found.equal, found.missing, found.extra) == (True, 0, 0)
    assert shop.sql("select count(*) from crm.people") == [(10,)]
    shop.sql("update crm.people set name = 'forged' where id = 2")
    assert (verify(shop).missing, verify(shop).extra) == (1, 1)
    shop.sql("delete from crm.people where id = 3")
    found = verify(shop)
    assert (found.missing, found.extra) == (2, 1)
    assert {"id=2", "id=3"} == set(found.samples)


def test_a_row_that_is_marked_though_the_source_has_it_is_missing(shop: Lakeside) -> None:
    shop.source(TABLE).write(people(1, 2, 3))
    shop.carry({"source": TABLE, "key": ["id"], "on_delete": "mark"})
    shop.catch_up()
    shop.sql("update crm.people set _deleted_at = now() where id = 2")
    found = verify(shop)
    assert (found.missing, found.extra, found.samples) == (1, 0, ("id=2",))


def test_wide_keys_and_columns_of_the_users_own(shop: Lakeside) -> None:
    rows = pa.table(
        {
            "a": pa.array([1, 1, 2] * 10, pa.int32()),
            "b": [f"b{i}" for i in range(30)],
            "c": pa.array([dt.date(2026, 1, 1 + i) for i in range(30)]),
            "v": pa.array([i / 7 for i in range(30)]),
        }
    )
    shop.source(TABLE).write(rows)
    shop.carry({"source": TABLE, "key": ["a", "b", "c"]})
    shop.catch_up()
    shop.sql("alter table crm.people add note text; update crm.people set note = 'mine'")
    assert verify(shop).equal
    shop.sql("update crm.people set v = 0 where b = 'b4'")
    found = verify(shop)
    assert (found.missing, found.extra) == (1, 1)
    assert found.samples == ("a=1, b=b4, c=2026-01-05",)


def test_several_batches_and_several_pieces(shop: Lakeside, monkeypatch: Any) -> None:
    """Of 60,000 rows, 3,000 at a time, every one that was changed is found."""
    monkeypatch.setattr("headrace.verify.held.AT_ONCE", 3_000)
    shop.source(TABLE).write(people(*range(60_000)))
    shop.carry(TABLE)
    assert counts(verify(shop)) == (60_000, 0, 0)
    shop.sql("update crm.people set name = 'x' where id % 40 = 0")
    shop.sql("delete from crm.people where id % 40 = 1")
    shop.sql("insert into crm.people select 100000 + i, '' from generate_series(1, 700) i")
    found = verify(shop)
    assert (found.missing, found.extra) == (3_000, 1_500 + 700)


# -- tables of which nothing can be said -----------------------------------------------------------


def problem(found: TableVerification) -> str:
    assert not found.equal
    assert found.problem is not None
    assert found.problem.hint
    return found.problem.message


@pytest.fixture
def two(shop: Lakeside) -> Lakeside:
    for table in (TABLE, "crm.other"):
        shop.source(table).write(people(1, 2, 3))
    shop.carry(TABLE, "crm.other")
    shop.catch_up()
    return shop


def test_a_table_that_is_held_is_told_and_the_others_are_compared(two: Lakeside) -> None:
    two.source(TABLE).write(people(7), mode="overwrite")
    two.project.resync([TABLE])
    two.project.undo(TABLE)
    assert "undone" in problem(verify(two))
    assert verify(two, "crm.other").equal


def test_a_table_that_stopped_is_told_and_compared_where_it_stands(shop: Lakeside) -> None:
    for table in (TABLE, "crm.other"):
        shop.source(table).write(people(1, 2, 3))
    rule = {"sql": "name <> 'x'", "on_breach": "fail"}
    shop.carry({"source": TABLE, "key": ["id"], "expect": {"named": rule}}, "crm.other")
    shop.catch_up()
    shop.source(TABLE).update("id = 1", name="'x'")
    found = verify(shop)
    assert "has stopped at version 0" in problem(found)
    assert "named" in problem(found)
    assert counts(found) == (3, 0, 0)
    shop.sql("delete from crm.people where id = 2")
    assert counts(verify(shop)) == (2, 1, 0)
    assert verify(shop, "crm.other").equal


def test_a_table_that_somebody_dropped_is_told(two: Lakeside) -> None:
    two.sql("drop table crm.people")
    assert "crm.people is not there" in problem(verify(two))
    assert verify(two, "crm.other").equal


def test_a_table_that_lost_a_column_is_told(two: Lakeside) -> None:
    two.sql("alter table crm.people drop column name")
    assert "lacks the columns name" in problem(verify(two))


def test_a_version_that_is_no_longer_readable_is_told(two: Lakeside) -> None:
    for file in two.source(TABLE).path.glob("*.parquet"):
        file.unlink()
    assert "not compared" in problem(verify(two))
    assert verify(two, "crm.other").equal


def test_a_delta_table_that_was_replaced_is_told(two: Lakeside) -> None:
    """Beside a run that has not noticed yet: nothing is caught up with."""
    shutil.rmtree(two.source(TABLE).path)
    two.source(TABLE).write(people(7, 8))
    with PostgresDestination(two.project.settings.syncs()[0].destination_connection).claim(
        PIPELINE
    ):
        assert "has replaced" in problem(verify(two))
        assert verify(two, "crm.other").equal
    assert counts(verify(two)) == (2, 0, 0)


def test_a_table_that_was_never_loaded_is_told(two: Lakeside) -> None:
    two.source("crm.third").write(people(1))
    two.carry(TABLE, "crm.other", "crm.third")
    with PostgresDestination(two.project.settings.syncs()[0].destination_connection).claim(
        PIPELINE
    ):
        assert "is not there" in problem(verify(two, "crm.third"))
        two.sql("create table crm.third (id bigint primary key, name text)")
        assert "never took anything" in problem(verify(two, "crm.third"))


def test_4_verify_beside_a_run_that_goes_on_compares_where_each_table_stands(two: Lakeside) -> None:
    """Invariant 4."""
    with two.running() as running:
        for version in range(1, 6):
            two.source(TABLE).write(people(*range(version * 1000, version * 1000 + 500)))
            running.reach(TABLE, version - 1)
            found = verify(two)
            assert found.equal
            assert version - 1 <= (found.version or 0) <= version
        two.sql("update crm.people set name = 'x' where id = 2")
        assert verify(two).samples == ("id=2",)
