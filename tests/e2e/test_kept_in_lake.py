"""Rows that stay in Delta when their source loses them, rows that tell of their change, and every
change as a row: from a real Postgres, read back by three readers."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from harness import Shop
from tables import READERS, difference, multiset, source_rows

from headrace.errors import UnsuitableShapeError, UnsuitableTableError
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
    committed(shop, "truncate t", "insert into t values (2, 20, 'b')")
    shop.catch_up()
    live_equals_source(shop, "t")
    at = dict(held(shop, "t", "id", "_deleted_at"))
    assert at[1] == deleted, "the first mark stands"
    assert at[3] == at[4] == at[5] > deleted

    committed(shop, "insert into t values (6, 6, 'c'), (7, 7, 'd')")
    shop.catch_up()
    shop.sql("alter table t disable trigger all")
    committed(shop, "delete from t where id = 6")  # applied by the run, before the copy
    assert not shop.project.resync(["public.t"])
    live_equals_source(shop, "t")
    after = dict(held(shop, "t", "id", "_deleted_at"))
    assert {key: after[key] for key in (1, 3, 4, 5)} == {key: at[key] for key in (1, 3, 4, 5)}
    assert after[6] is not None
    same_for_all_readers(shop, "t", "id", "_deleted_at")


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
    before = [{"id": 2, "n": 2}, {"id": 2, "n": 20}, {"id": 3, "n": 20}] if whole else [None, {"id": 2}, {"id": 3}]
    assert [row[0] for row in before_of(shop)] == [None, None, *before, None]


def before_of(shop: Shop) -> list[tuple[Any, ...]]:
    import pyarrow as pa
    from deltalake import DeltaTable, QueryBuilder

    table = DeltaTable(shop.location("public.t"))
    query = "select _before from t order by _lsn, _ordinal"
    rows = pa.table(QueryBuilder().register("t", table).execute(query))
    return [(value,) for value in rows.column("_before").to_pylist()]
