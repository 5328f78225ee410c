"""Rows that stay in Delta when their source loses them, rows that tell of their change, and every
change as a row: from a real Postgres, read back by three readers."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from deltalake import DeltaTable
from harness import Shop

from headrace.errors import UnsuitableShapeError, UnsuitableTableError
from tables import READERS, difference, exact, multiset, source_rows
from toast_orders import ORDERS, STEPS, big, names

METADATA = ["lsn", "commit_ts", "op", "xid"]
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def held(shop: Shop, table: str, *columns: str, reader: str = "deltalake") -> list[tuple[Any, ...]]:
    """The rows of a table in the lake, times as UTC."""
    found = READERS[reader](shop.location(f"public.{table}"), columns, {})
    return sorted(found.elements(), key=repr)


def same_for_all_readers(shop: Shop, table: str, *columns: str) -> None:
    first, *others = (multiset(held(shop, table, *columns, reader=reader)) for reader in READERS)
    assert all(not difference(first, other) for other in others)


def committed(shop: Shop, *statements: str) -> tuple[int, int]:
    """Run a transaction; gives its number, and an LSN that its end is behind."""
    with shop.database.connect(autocommit=False) as session:
        for statement in statements:
            session.execute(statement)
        row = session.execute(
            "select pg_current_xact_id()::text::bigint, pg_current_wal_insert_lsn() - '0/0'"
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def live_equals_source(shop: Shop, table: str) -> None:
    columns = ("id", "n", "a", "_deleted_at")
    for reader in READERS:
        rows = held(shop, table, *columns, reader=reader)
        live = multiset(row[:3] for row in rows if row[3] is None)
        wrong = difference(source_rows(shop.database.dsn, table, columns[:3]), live)
        assert not wrong, f"{reader}: {wrong}"


def marks(shop: Shop, table: str) -> dict[int, tuple[int, str]]:
    """By key, the values of rows that bear a mark."""
    rows = held(shop, table, "id", "n", "a", "_deleted_at")
    return {id_: (n, a) for id_, n, a, at in rows if at is not None}


def test_6_a_deleted_row_stays_with_its_last_values_and_the_time_of_its_delete(shop: Shop) -> None:
    """Invariant 6 too: what is out of line is never sent again."""
    shop.sql("create table t (id int primary key, n int, a text)")
    for id_ in range(1, 8):
        shop.sql("insert into t values (%s, %s, %s)", (id_, id_, big(id_)))
    shop.carry({"source": "public.t", "on_delete": "mark", "metadata": METADATA})
    shop.catch_up()
    assert {row[:2] for row in held(shop, "t", "_op", "_commit_ts")} == {("r", None)}
    (snapshot,) = {row[0] for row in held(shop, "t", "_lsn")}

    xid, behind = committed(shop, "delete from t where id = 1")
    committed(shop, "update t set n = 20 where id = 2", "delete from t where id = 2")
    moved, _ = committed(shop, "update t set id = 30, n = 31 where id = 3")
    committed(shop, "delete from t where id = 4")
    shop.catch_up()
    live_equals_source(shop, "t")
    assert marks(shop, "t") == {1: (1, big(1)), 2: (20, big(2)), 3: (3, big(3)), 4: (4, big(4))}
    columns = ("id", "_op", "_xid", "_lsn", "_deleted_at", "_commit_ts")
    rows = {row[0]: row[1:] for row in held(shop, "t", *columns)}
    assert rows[1][:2] == ("d", xid)
    assert rows[3][:2] == rows[30][:2] == ("u", moved)
    assert snapshot < behind <= rows[1][2] < rows[2][2] < rows[3][2] == rows[30][2] < rows[4][2]
    assert all(rows[key][3] == rows[key][4] for key in (1, 2, 3, 4))
    assert rows[30][3] is None

    committed(shop, "insert into t values (1, 100, 'again')", "update t set id = 3 where id = 5")
    shop.catch_up()
    live_equals_source(shop, "t")
    assert marks(shop, "t").keys() == {2, 4, 5}
    same_for_all_readers(shop, "t", *columns)


def test_a_truncate_and_a_resync_mark_what_the_source_lost(shop: Shop) -> None:
    shop.sql("create table t (id int primary key, n int, a text)")
    shop.sql("insert into t select i, i, 'a' from generate_series(1, 5) i")
    shop.carry({"source": "public.t", "on_delete": "mark"})
    shop.catch_up()
    committed(shop, "delete from t where id = 1")
    shop.catch_up()
    ((deleted,),) = [row[1:] for row in held(shop, "t", "id", "_deleted_at") if row[0] == 1]
    committed(shop, "update t set n = 40 where id = 4")
    committed(shop, "update t set id = 50 where id = 5", "insert into t values (9, 9, 'i')")
    committed(shop, "truncate t", "insert into t values (2, 20, 'b')")
    shop.catch_up()
    live_equals_source(shop, "t")
    gone = {1: (1, "a"), 3: (3, "a"), 4: (40, "a"), 5: (5, "a"), 50: (5, "a"), 9: (9, "i")}
    assert marks(shop, "t") == gone
    at = dict(held(shop, "t", "id", "_deleted_at"))
    assert at[1] == deleted, "the first mark stands"
    assert at[3] == at[4] == at[50] == at[9] > at[5] > deleted

    committed(shop, "insert into t values (6, 6, 'c'), (7, 7, 'd')")
    shop.catch_up()
    committed(shop, "delete from t where id = 6")  # applied by the run, before the copy
    assert not shop.project.resync(["public.t"])
    live_equals_source(shop, "t")
    after = dict(held(shop, "t", "id", "_deleted_at"))
    assert {key: after[key] for key in (1, 3, 4, 5)} == {key: at[key] for key in (1, 3, 4, 5)}
    assert after[6] is not None
    same_for_all_readers(shop, "t", "id", "_deleted_at")


def test_a_marked_row_keeps_its_values_when_a_copy_brings_other_columns(shop: Shop) -> None:
    shop.sql("create table t (id int primary key, n int, a text)")
    shop.sql("insert into t select i, i * 10, 'a' from generate_series(1, 3) i")
    shop.carry({"source": "public.t", "on_delete": "mark"})
    shop.catch_up()
    committed(shop, "delete from t where id = 3")
    shop.catch_up()
    shop.sql("alter table t rename n to m")
    shop.sql("alter table t rename id to code")
    shop.sql("alter table t add x int default 7")
    shop.carry({"source": "public.t", "on_delete": "mark", "metadata": ["op"]})
    assert not shop.project.resync(["public.t"])
    assert held(shop, "t", "_op") == [("r",), ("r",), (None,)]
    told = held(shop, "t", "code", "m", "a", "x")
    assert told == [(1, 10, "a", 7), (2, 20, "a", 7), (3, 30, "a", 7)]

    shop.sql("drop table t")
    shop.sql("create table t (m int, code int primary key, x int, a text)")
    shop.sql("insert into t values (10, 1, 7, 'a')")
    assert not shop.project.resync(["public.t"])
    assert held(shop, "t", "code", "m", "a", "x") == told


def test_ignored_deletes_leave_rows_as_they_are(shop: Shop) -> None:
    shop.sql("create table t (id int primary key, n int, a text)")
    shop.sql("insert into t select i, i, 'a' from generate_series(1, 3) i")
    shop.carry({"source": "public.t", "on_delete": "ignore"})
    shop.catch_up()
    committed(shop, "delete from t where id = 1")
    committed(shop, "update t set id = 20 where id = 2")
    shop.catch_up()
    everything = [(1, 1, "a"), (2, 2, "a"), (20, 2, "a"), (3, 3, "a")]
    for reader in READERS:
        assert held(shop, "t", "id", "n", "a", reader=reader) == sorted(everything, key=repr)
    committed(shop, "truncate t")
    shop.catch_up()
    assert not shop.project.resync(["public.t"])
    assert held(shop, "t", "id", "n", "a") == sorted(everything, key=repr)


# -- every change as a row -------------------------------------------------------------------------


def equal(shop: Shop, table: str) -> bool:
    """Whether `headrace verify` finds that the table is as its source says."""
    (found,) = [v for v in shop.project.verify() if v.table.name == table]
    assert found.problem is None, found.problem
    return found.equal


def changes(shop: Shop, table: str, *columns: str) -> list[tuple[Any, ...]]:
    """The rows in the order of the changes that they tell."""
    rows = held(shop, table, "_lsn", "_ordinal", *columns)
    return [row[2:] for row in sorted(rows, key=lambda row: (row[0], row[1]))]


@pytest.mark.parametrize("identity", ["default", "full"])
def test_every_change_is_a_row_with_what_was_before(shop: Shop, identity: str) -> None:
    shop.sql("create table t (id int primary key, n int)")
    shop.sql(f"alter table t replica identity {identity}")
    shop.sql("insert into t values (1, 1)")
    shop.carry({"source": "public.t", "mode": "append"})
    shop.catch_up()
    xid, _ = committed(
        shop,
        "insert into t values (2, 2)",
        "update t set n = 20 where id = 2",
        "update t set id = 3 where id = 2",
    )
    committed(shop, "delete from t where id = 3")
    committed(shop, "truncate t")
    shop.catch_up()
    assert changes(shop, "t", "_op", "id", "n") == [
        ("r", 1, 1),
        ("i", 2, 2),
        ("u", 2, 20),
        ("u", 3, 20),
        ("d", None, None),
        ("t", None, None),
    ]
    assert [row[0] for row in changes(shop, "t", "_xid")][1:4] == [xid] * 3
    whole = identity == "full"
    before = (
        [{"id": 2, "n": 2}, {"id": 2, "n": 20}, {"id": 3, "n": 20}]
        if whole
        else [None, {"id": 2}, {"id": 3}]
    )
    told = changes(shop, "t", "_before")
    assert [row[0] for row in told] == [exact(each) for each in (None, None, *before, None)]
    assert equal(shop, "t")


def test_6_values_that_were_not_sent_are_named_and_stand_in_an_earlier_row(shop: Shop) -> None:
    """Invariant 6 in mode append: `headrace verify` follows the rows to where the values stand."""
    for table in names().values():
        shop.sql(f"create table {table} (id int primary key, n int, a text, b text, c text)")
        for id_ in (1, 2, 3):
            shop.sql(f"insert into {table} values (%s, 0, %s, %s)", (id_, big(id_), big(-id_)))
    shop.carry({"source": "public.*", "mode": "append"})
    shop.catch_up()
    for step in range(STEPS):
        for order, table in names().items():
            with shop.database.connect(autocommit=False) as session:
                for statement in ORDERS[order][step : step + 1]:
                    for query, *parameters in statement:
                        session.execute(query.format(t=table), *parameters)
        shop.catch_up()
    verified = shop.project.verify()
    assert len(verified) == len(ORDERS)
    assert all(v.equal and v.rows for v in verified), verified
    table = names()["update of a row in the lake"]
    assert {row[2] for row in changes(shop, table, "_op", "n", "_unchanged") if row[0] == "u"} == {
        ("a", "b")
    }
    shop.sql(f"alter table {table} rename a to d")
    shop.sql(f"insert into {table} (id) values (50)")
    shop.catch_up()
    told = changes(shop, table, "_op", "n", "_unchanged")
    assert {row[2] for row in told if row[0] == "u"} == {("d", "b")}
    assert equal(shop, table)
    DeltaTable(shop.location(f"public.{table}")).delete("_op = 'u' and id = 2")
    assert not equal(shop, table)


def test_a_resync_begins_another_snapshot_and_loses_no_change(shop: Shop) -> None:
    shop.sql("create table t (id int primary key, n int)")
    shop.sql("insert into t values (1, 1), (2, 2)")
    shop.carry({"source": "public.t", "mode": "append"})
    shop.catch_up()
    committed(shop, "update t set n = 10 where id = 1", "delete from t where id = 2")
    shop.catch_up()
    before = changes(shop, "t", "_op", "id", "n")
    committed(shop, "alter table t rename n to m", "alter table t add x int default 7")
    assert not shop.project.resync(["public.t"])
    again = changes(shop, "t", "_op", "id", "m")
    assert again == [*before, ("t", None, None), ("r", 1, 10)]
    committed(shop, "insert into t values (3, 3)")
    shop.catch_up()
    assert changes(shop, "t", "_op", "id", "m", "x")[-2:] == [("r", 1, 10, 7), ("i", 3, 3, 7)]
    assert equal(shop, "t")
    same_for_all_readers(shop, "t", "_op", "_lsn", "id", "m")


def test_a_replica_identity_may_change_while_changes_are_kept(shop: Shop) -> None:
    """What `_before` holds gets wider, and stays so."""
    shop.sql("create table t (id int primary key, n int)")
    shop.sql("insert into t values (1, 1)")
    shop.carry({"source": "public.t", "mode": "append"})
    shop.catch_up()
    for identity in ("full", "default", "full"):
        shop.sql(f"alter table t replica identity {identity}")
        committed(shop, "update t set n = n + 1")
        shop.catch_up()
        shop.sql("delete from t")
        shop.sql("insert into t values (1, 1)")
        shop.catch_up()
    told = changes(shop, "t", "_op", "_before")
    full, key = exact({"id": 1, "n": 2}), exact({"id": 1, "n": None})
    assert [row[1] for row in told if row[0] == "d"] == [full, key, full]
    assert equal(shop, "t")


@pytest.mark.parametrize("identity", ["default", "full"])
def test_old_rows_follow_a_column_that_gets_wider(shop: Shop, identity: str) -> None:
    shop.sql("create table t (id int primary key, n int)")
    shop.sql(f"alter table t replica identity {identity}")
    shop.sql("insert into t values (1, 1), (2, 2)")
    shop.carry({"source": "public.t", "mode": "append"})
    shop.catch_up()
    committed(shop, "delete from t where id = 2")
    shop.catch_up()
    committed(shop, "alter table t alter id type bigint, alter n type bigint")
    committed(shop, "insert into t values (3000000000, 4000000000)")
    committed(shop, "delete from t where id > 1")
    shop.catch_up()
    full = identity == "full"
    told = [row for row in changes(shop, "t", "_op", "_before") if row[0] == "d"]
    assert told == [
        ("d", exact({"id": id_, "n": n} if full else {"id": id_}))
        for id_, n in ((2, 2), (3000000000, 4000000000))
    ]
    same_for_all_readers(shop, "t", "_op", "_lsn", "_before", "id", "n")
    assert equal(shop, "t")


# -- what cannot be --------------------------------------------------------------------------------


def test_tables_that_cannot_be_kept_so_stop_alone(shop: Shop) -> None:
    shop.sql("create table good (id int primary key)")
    shop.sql("create table no_key (n int)")
    shop.sql("create table clash (id int primary key, _lsn int)")
    for table in ("good", "no_key", "clash"):
        shop.sql(f"alter table {table} replica identity full")
        shop.sql(f"insert into {table} values (1)")
    shop.carry({"source": "public.*", "on_delete": "mark", "metadata": ["lsn"]})
    failures = {f.table.name: f.error for f in shop.run()}
    assert failures.keys() == {"no_key", "clash"}
    assert all(isinstance(error, UnsuitableShapeError) for error in failures.values())
    assert "has no key" in failures["no_key"].message
    assert "has a column _lsn" in failures["clash"].message
    assert held(shop, "good", "id") == [(1,)]


def test_no_change_of_mode_loses_what_only_the_lake_knows(shop: Shop) -> None:
    shop.sql("create table t (id int primary key)")
    shop.sql("insert into t values (1)")
    shop.carry("public.t")
    shop.catch_up()
    committed(shop, "insert into t values (2)")
    shop.catch_up()
    shop.carry({"source": "public.t", "mode": "append"})
    shop.catch_up()
    kept = [("r", 1), ("i", 2)]
    assert changes(shop, "t", "_op", "id") == kept, "as the change log still tells it"
    for entry in ({}, {"on_delete": "mark"}):
        shop.carry({"source": "public.t", **entry})
        for failures in (shop.run(), shop.project.resync(["public.t"])):
            (failure,) = failures
            assert isinstance(failure.error, UnsuitableTableError)
            assert "made in mode append, and is to be kept in mode scd1" in failure.error.message
        assert changes(shop, "t", "_op", "id") == kept
