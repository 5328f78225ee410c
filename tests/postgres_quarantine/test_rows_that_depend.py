"""Rows whose landing depends on others of their batch: only what nothing can cure is parked."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from parking_lot import Kept, Maker

from headrace.errors import QuarantineFullError
from headrace.testing.database import Database

UNIQUE = "create table t (id int8 primary key, v text not null unique)"
UNIQUE_COLUMNS = {"id": pa.int64(), "v": pa.string()}
STAFF = """
create table t (id int8 primary key, boss int8 references t, pay int check (pay > 0))
"""
STAFF_COLUMNS = {"id": pa.int64(), "boss": pa.int64(), "pay": pa.int64()}


def unique(database: Database, *values: str, ddl: str = UNIQUE) -> Kept:
    """Rows 1, 2, … with these values."""
    kept = Kept.make(database, ddl, UNIQUE_COLUMNS)
    kept.apply([{"id": i, "v": v} for i, v in enumerate(values, 1)], version=1)
    assert len(kept.rows()) == len(values)
    return kept


def test_two_rows_swap_a_unique_value(database: Database) -> None:
    kept = unique(database, "a", "b")
    assert kept.apply([{"id": 1, "v": "b"}, {"id": 2, "v": "a"}]) == 0
    assert kept.rows() == [(1, "b"), (2, "a")]


def test_a_unique_value_is_handed_on_through_a_long_chain(database: Database) -> None:
    values = [f"v{i:04}" for i in range(3000)]
    kept = unique(database, *values)
    shifted = [{"id": i, "v": f"v{i:04}"} for i in range(1, 3001)]
    assert kept.apply(shifted) == 0
    assert kept.rows() == [(i, f"v{i:04}") for i in range(1, 3001)]


def test_values_go_round_beside_a_row_that_nothing_can_cure(database: Database) -> None:
    kept = unique(database, "a", "b", "c", "d", "stays")
    rows = [(1, "b"), (2, "stays"), (3, "d"), (4, "c")]
    assert kept.apply([{"id": i, "v": v} for i, v in rows]) == 2
    # 2 keeps its b, so that 1 cannot have it; 3 and 4 have swapped.
    assert kept.rows() == [(1, "a"), (2, "b"), (3, "d"), (4, "c"), (5, "stays")]
    assert {row.key for row in kept.parked()} == {("1",), ("2",)}


def test_a_swap_is_told_apart_from_a_duplicate_that_stands_between(database: Database) -> None:
    kept = unique(database, "a", "b", "c", "d")
    rows = [(1, "c"), (2, "d"), (3, "a")]
    assert kept.apply([{"id": i, "v": v} for i, v in rows]) == 1
    assert kept.rows() == [(1, "c"), (2, "b"), (3, "a"), (4, "d")]
    assert [row.key for row in kept.parked()] == [("2",)]


def test_a_value_of_a_deleted_row_is_free_for_another(database: Database) -> None:
    kept = unique(database, "a", "b")
    assert kept.apply([{"id": 3, "v": "a"}], [{"id": 1}]) == 0
    assert kept.rows() == [(2, "b"), (3, "a")]


def test_of_two_new_rows_with_one_unique_value_one_stands(database: Database) -> None:
    kept = unique(database)
    assert kept.apply([{"id": 1, "v": "x"}, {"id": 2, "v": "x"}, {"id": 3, "v": "y"}]) == 1
    assert len(kept.rows()) == 2
    assert len(kept.parked()) == 1


@pytest.mark.parametrize(
    "bond",
    [
        "create table child (t int8 references t on delete cascade); insert into child values (1)",
        "create table child (t int8 references t on delete set null); insert into child values (1)",
        "alter table t add note text default 'mine'",
    ],
)
def test_a_swap_takes_nothing_with_it_that_is_not_ours(database: Database, bond: str) -> None:
    """Rows cannot make room where something hangs on them: they are parked instead."""
    kept = unique(database, "a", "b")
    database.execute(bond)
    before = database.execute("select * from t order by 1")
    assert kept.apply([{"id": 1, "v": "b"}, {"id": 2, "v": "a"}, {"id": 3, "v": "c"}]) == 2
    assert database.execute("select * from t where id < 3 order by 1") == before
    if "child" in bond:
        assert database.execute("select t from child") == [(1,)]


def test_a_swap_of_rows_that_others_point_to_is_parked(database: Database) -> None:
    kept = unique(database, "a", "b")
    database.execute("create table child (t int8 references t); insert into child values (1)")
    assert kept.apply([{"id": 1, "v": "b"}, {"id": 2, "v": "a"}, {"id": 3, "v": "c"}]) == 2
    assert kept.rows() == [(1, "a"), (2, "b"), (3, "c")]
    assert database.execute("select t from child") == [(1,)]


def test_a_foreign_key_may_point_to_a_later_row_of_the_batch(database: Database) -> None:
    kept = Kept.make(database, STAFF, STAFF_COLUMNS)
    rows = [{"id": i, "boss": i + 1 if i < 100 else None, "pay": 1} for i in range(1, 101)]
    assert kept.apply(rows) == 0
    assert len(kept.rows()) == 100


def test_only_rows_under_a_refused_one_wait_for_it(database: Database) -> None:
    """Rows that point to each other across the whole batch stand, but for those below a bad one."""
    kept = Kept.make(database, STAFF, STAFF_COLUMNS, max_rows=10)
    order = random.Random(4).sample(range(1, 5001), 5000)
    bosses = {i: order[place // 3] if place else None for place, i in enumerate(order)}
    bad = order[1500]  # its three are at the bottom
    below = {i for i, boss in bosses.items() if boss == bad}
    rows = [{"id": i, "boss": bosses[i], "pay": 0 if i == bad else 1} for i in range(1, 5001)]
    assert kept.apply(rows) == 4
    assert {int(str(row.key[0])) for row in kept.parked()} == {bad, *below}
    assert len(kept.rows()) == 4996
    assert kept.apply([{"id": bad, "boss": bosses[bad], "pay": 2}]) == 0
    assert kept.retry_waiting().applied == 3
    assert len(kept.rows()) == 5000
    assert kept.parked() == []


def test_rows_that_wait_for_another_table_are_applied_when_it_has_theirs(
    database: Database,
) -> None:
    ddl = """
    create table parent (a int, b text, primary key (a, b));
    create table t (id int8 primary key, a int, b text, foreign key (a, b) references parent)
    """
    kept = Kept.make(database, ddl, {"id": pa.int64(), "a": pa.int32(), "b": pa.string()})
    rows = [{"id": i, "a": i % 5, "b": "x"} for i in range(100)]
    assert kept.apply([*rows, {"id": 100, "a": None, "b": "x"}]) == 100
    assert kept.retry_waiting().applied == 0
    assert {row.attempts for row in kept.parked()} == {1}  # asked for, not tried
    database.execute("insert into parent values (3, 'x'), (4, 'y')")
    assert kept.retry_waiting().applied == 20
    assert {row[1] for row in kept.rows()} == {3, None}
    assert len(kept.parked()) == 80


def test_a_waiting_row_is_not_applied_over_a_newer_one(database: Database) -> None:
    ddl = """
    create table parent (id int primary key);
    create table t (id int8 primary key, v int references parent)
    """
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.int32()})
    kept.apply([{"id": 1, "v": 5}])
    kept.apply([{"id": 1, "v": None}], version=8)
    database.execute("insert into parent values (5)")
    assert kept.retry_waiting().applied == 0
    assert kept.rows() == [(1, None)]


def test_a_delete_waits_until_nobody_points_to_its_row(database: Database) -> None:
    kept = unique(database, "a", "b")
    database.execute("create table child (t int8 references t); insert into child values (1)")
    assert kept.apply(deletes=[{"id": 1}, {"id": 2}]) == 1
    assert kept.rows() == [(1, "a")]
    (parked,) = kept.parked()
    assert (parked.operation.value, parked.row.to_pylist()) == ("delete", [{"id": 1}])
    assert kept.retry_waiting().applied == 0
    database.execute("delete from child")
    assert kept.retry_waiting().applied == 1
    assert (kept.rows(), kept.parked()) == ([], [])


def test_a_delete_that_waits_is_superseded_by_the_row_coming_back(database: Database) -> None:
    kept = unique(database, "a")
    database.execute("create table child (t int8 references t); insert into child values (1)")
    kept.apply(deletes=[{"id": 1}])
    kept.apply([{"id": 1, "v": "back"}], version=8)
    database.execute("delete from child")
    assert kept.retry_waiting().applied == 0
    assert kept.rows() == [(1, "back")]


def test_a_row_is_deleted_whose_last_pointer_the_same_batch_turns_away(
    database: Database,
) -> None:
    kept = Kept.make(database, STAFF, STAFF_COLUMNS)
    kept.apply([{"id": 1, "boss": None, "pay": 1}, {"id": 2, "boss": 1, "pay": 1}])
    assert kept.apply([{"id": 2, "boss": None, "pay": 1}], [{"id": 1}]) == 0
    assert kept.rows() == [(2, None, 1)]


def test_three_bad_rows_of_a_hundred_thousand_take_few_statements(database: Database) -> None:
    ddl = "create table t (id int8 primary key, v int check (v <> -1))"
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.int32()})
    bad = {7, 49_999, 99_999}
    rows = pa.table(
        {
            "id": pa.array(range(100_000), pa.int64()),
            "v": pa.array([-1 if i in bad else i for i in range(100_000)], pa.int32()),
        }
    )
    with database.connect() as connection:
        maker = Maker(connection, kept)
        with connection.transaction():
            assert maker.apply(kept.changes(rows)) == 3
        assert maker.landings < 2 * 3 * 17 + 4  # two for each halving, on the way to each row
    assert database.execute("select count(*) from t") == [(99_997,)]
    assert {int(str(row.key[0])) for row in kept.parked()} == bad


def test_over_the_budget_nothing_is_applied_and_the_search_ends_early(database: Database) -> None:
    ddl = "create table t (id int8 primary key, v int check (v > 0))"
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.int32()}, max_rows=5)
    assert kept.apply([{"id": 1, "v": 1}, *({"id": i, "v": 0} for i in range(2, 5))]) == 3
    rows = pa.table(
        {"id": range(10, 5010), "v": pa.array([i % 2 for i in range(5000)], pa.int32())}
    )
    with database.connect() as connection:
        maker = Maker(connection, kept)
        with pytest.raises(QuarantineFullError) as raised, connection.transaction():
            maker.apply(kept.changes(rows))
        assert maker.landings < 60
    assert "public.t" in raised.value.message
    assert "t_v_check" in raised.value.message
    assert "headrace quarantine list public.t" in raised.value.hint
    assert (kept.rows(), len(kept.parked())) == ([(1, 1)], 3)


def test_the_budget_counts_what_was_parked_before(database: Database) -> None:
    ddl = "create table t (id int8 primary key, v int check (v > 0))"
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.int32()}, max_rows=2)
    kept.apply([{"id": 1, "v": 0}, {"id": 2, "v": 0}])
    with pytest.raises(QuarantineFullError):
        kept.apply([{"id": 3, "v": 0}, {"id": 4, "v": 1}])
    assert kept.rows() == []
    assert kept.apply([{"id": 1, "v": 1}, {"id": 3, "v": 0}]) == 1  # one left, one came
