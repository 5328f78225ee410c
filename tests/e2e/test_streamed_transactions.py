"""Transactions that the server sends while they are in progress (option `streaming`, 14 and later).

A small logical_decoding_work_mem makes it send small ones so; a small buffer makes us write them.
"""

from __future__ import annotations

from functools import partial

import pytest

from headrace.engine.capture import CommitPolicy

pytestmark = pytest.mark.since(14)

FILLING = "insert into {t} select g, repeat('x', 100) from generate_series({a}, {b}) g"


@pytest.fixture
def orders(shop, monkeypatch):
    monkeypatch.setattr(
        "headrace.engine.capture.CommitPolicy", partial(CommitPolicy, max_bytes=50_000)
    )
    shop.sql("create table orders (id int primary key, v text)")
    shop.sql("create table items (id int primary key, v text)")
    shop.sql("create table quiet (id int primary key, v text)")
    shop.sql("insert into items select g, 'old' from generate_series(1, 100) g")
    shop.sql(f"alter database {shop.database.name} set logical_decoding_work_mem = '64kB'")
    shop.carry("public.orders", "public.items", "public.quiet")
    shop.catch_up()
    return shop


def fill(writer, table: str, first: int, rows: int = 2000) -> None:
    writer.execute(FILLING.format(t=table, a=first, b=first + rows - 1))


def fill_in_savepoint(writer, table: str, first: int, *, keep: bool) -> None:
    writer.execute("savepoint s")
    fill(writer, table, first)
    writer.execute("release s" if keep else "rollback to s")


def spilled(shop) -> list[str]:
    """Files of the log that no manifest names."""
    log = shop.state / "log/shop"
    named = "".join(path.read_text() for path in (log / "commits").glob("*.json"))
    found = (path.name for path in (log / "changes").rglob("*.parquet"))
    return [name for name in found if name not in named]


def change_at_once(orders, running) -> None:
    """Two large transactions side by side, one of which alters its table, and one that aborts."""
    connect = partial(orders.database.connect, autocommit=False)
    with connect() as one, connect() as two, connect() as none:
        fill(one, "orders", 1)
        fill_in_savepoint(one, "orders", 10_001, keep=False)
        fill(two, "items", 1001)
        two.execute("alter table items add column extra int default 7")
        fill_in_savepoint(one, "orders", 20_001, keep=True)
        fill(none, "orders", 30_001)
        two.execute("savepoint s; update items set v = 'never'; rollback to s")
        two.execute("update items set extra = id where id % 2 = 0")
        fill_in_savepoint(two, "items", 5001, keep=False)
        fill(one, "orders", 40_001)
        orders.sql("insert into quiet values (1, 'meanwhile')")
        running.wait(lambda _: len(spilled(orders)) >= 3)  # of each, one at least
        running.catch_up()
        orders.assert_equal("public.quiet")
        orders.assert_equal("public.orders")  # empty still
        none.rollback()
        two.commit()
        orders.sql("update items set v = 'after' where id < 50; insert into quiet values (2, 'x')")
        one.commit()


@pytest.mark.versions
def test_2_3_and_8_transactions_sent_in_progress_arrive_whole_or_not_at_all(orders):
    """Invariants 2, 3 and 8: beside each other, with savepoints, one altering its table; small
    ones do not wait for them."""
    with orders.running() as running:
        running.catch_up()
        change_at_once(orders, running)
        running.catch_up()
    for table in ("orders", "items", "quiet"):
        orders.assert_equal(f"public.{table}")
    assert spilled(orders) == []


def test_2_and_3_a_lost_connection_in_the_middle_of_one_begins_it_anew(orders):
    """Invariants 2 and 3."""
    drop = "select pg_terminate_backend(active_pid) from pg_replication_slots where active"
    with orders.running() as running, orders.database.connect(autocommit=False) as writer:
        fill(writer, "orders", 1)
        fill_in_savepoint(writer, "orders", 10_001, keep=False)
        running.wait(lambda _: bool(spilled(orders)))
        orders.sql(f"{drop} and database = '{orders.database.name}'")
        fill(writer, "orders", 20_001)
        writer.commit()
        running.catch_up()
    orders.assert_equal("public.orders")
    assert spilled(orders) == []


def test_2_what_a_stopped_run_had_of_one_is_sent_again(orders):
    """Invariant 2."""
    with orders.database.connect(autocommit=False) as writer:
        with orders.running() as running:
            fill(writer, "orders", 1)
            fill(writer, "items", 1001)
            running.wait(lambda _: bool(spilled(orders)))
        assert spilled(orders) == []
        writer.commit()
    orders.catch_up()
    orders.assert_equal("public.orders")
    orders.assert_equal("public.items")


def test_8_a_table_that_is_emptied_and_filled_in_one_is_read_while_it_is_locked(orders):
    """Invariant 8: also right after a start, when nothing is known but what the log tells."""
    with orders.running() as running:
        running.catch_up()
        with orders.database.connect(autocommit=False) as writer:
            writer.execute("truncate items")
            fill(writer, "items", 1)
            orders.sql("insert into quiet values (1, 'x')")
            running.wait(lambda _: bool(spilled(orders)))
            running.catch_up()
            orders.assert_equal("public.quiet")
            writer.commit()
        running.catch_up()
    orders.assert_equal("public.items")


def test_8_who_alters_a_table_that_one_has_let_go_of_stops_nothing(orders):
    """Invariant 8: what is rolled back gives up its locks, and what was read of it is void."""
    with orders.running() as running, orders.database.connect(autocommit=False) as writer:
        writer.execute("savepoint s")
        fill(writer, "orders", 1)
        running.wait(lambda _: bool(spilled(orders)))
        writer.execute("rollback to s")
        orders.sql("alter table orders add n int; insert into orders values (1, 'x', 2)")
        running.catch_up()
        fill(writer, "items", 5001)
        writer.commit()
        running.catch_up()
    assert orders.run() == []
    orders.assert_equal("public.orders")
    orders.assert_equal("public.items")


def test_12_a_column_replaced_by_its_like_inside_one_stops_the_table_aloud(orders):
    """Invariant 12: the stream does not tell that the rows' column is another one."""
    with orders.running() as running, orders.database.connect(autocommit=False) as writer:
        fill(writer, "orders", 1)
        running.wait(lambda _: bool(spilled(orders)))
        writer.execute("alter table orders drop v, add v text")
        fill(writer, "orders", 10_001)
        writer.commit()
        running.wait(lambda views: "headrace resync public.orders" in hints(views))
    assert spilled(orders) == []


def hints(views) -> list[str]:
    states = [s for view in views for m in view.materializations for s in m.tables.values()]
    return [state.error.hint for state in states if state.error is not None]
