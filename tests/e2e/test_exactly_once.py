"""Exactly once: runs repeated, foreign commits between, readers while a table is loaded."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable, QueryBuilder
from deltalake.schema import Field, PrimitiveType
from harness import all_loaded

from headrace.engine.capture import CommitPolicy
from headrace.errors import SourceUnavailableError
from headrace.log import LogWriter


@pytest.fixture
def orders(shop):
    shop.sql("create table orders (id int primary key, v text)")
    shop.sql("insert into orders select g, 'first' from generate_series(1, 1000) g")
    shop.sql("create table quiet (id int primary key); insert into quiet values (1)")
    shop.carry("public.orders", "public.quiet")
    shop.catch_up()
    return shop


def change(shop, number: int) -> None:
    shop.sql(f"update orders set v = v || '{number}' where id % 10 = {number}")
    shop.sql(f"delete from orders where id % 100 = {number} + 50")
    new = f"select 10000 + {number} * 100 + g, 'new' from generate_series(1, 9) g"
    shop.sql(f"insert into orders {new}")


def delta(shop, table: str = "public.orders") -> DeltaTable:
    return DeltaTable(shop.location(table))


def test_3_a_run_without_changes_commits_nothing_to_any_table(orders):
    """Invariant 3: neither do runs that bring other tables changes."""
    versions = orders.version("public.orders"), orders.version("public.quiet")
    for _ in range(3):
        orders.catch_up()
    assert (orders.version("public.orders"), orders.version("public.quiet")) == versions
    change(orders, 1)
    orders.catch_up()
    changed = orders.version("public.orders")
    assert changed > versions[0]
    orders.catch_up()
    assert orders.version("public.orders") == changed
    assert orders.version("public.quiet") == versions[1]
    orders.assert_equal("public.orders")


def test_3_a_change_that_changes_nothing_is_no_loss_and_no_double(orders):
    """Invariant 3: rows that come and go, updates to the same value, rollbacks, savepoints."""
    with orders.database.connect(autocommit=False) as connection:
        connection.execute("insert into orders values (-1, 'gone')")
        connection.execute("savepoint s")
        connection.execute("update orders set v = 'never'")
        connection.execute("rollback to s")
        connection.execute("delete from orders where id = -1")
        connection.execute("update orders set v = v where id < 10")
    orders.sql("begin; delete from orders; rollback")
    orders.catch_up()
    orders.assert_equal("public.orders")


FOREIGN = {
    "compaction": lambda table: table.optimize.compact(),
    "a property": lambda table: table.alter.set_table_properties(
        {"delta.logRetentionDuration": "interval 7 days"}
    ),
    "a comment of a column": lambda table: table.alter.set_column_metadata(
        "v", {"comment": "what it is"}
    ),
    "a checkpoint": lambda table: table.create_checkpoint(),
    "a lite vacuum": lambda table: table.vacuum(dry_run=False),
    "a name": lambda table: table.alter.set_table_name("orders of the shop"),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_3_commits_of_others_between_runs_lose_and_double_nothing(orders, foreign):
    """Invariant 3."""
    for number in range(3):
        change(orders, number)
        if number:
            orders.catch_up()
        FOREIGN[foreign](delta(orders))
    orders.catch_up()
    orders.assert_equal("public.orders")
    assert all(verified.equal for verified in orders.project.verify())


def test_3_commits_of_others_while_running_lose_and_double_nothing(orders):
    """Invariant 3: the run knows its own table and has to follow what others made of it."""
    with orders.running() as running:
        for number, foreign in enumerate([*FOREIGN.values()][:4]):
            change(orders, number)
            running.catch_up()
            foreign(delta(orders))
            change(orders, number + 4)
            running.catch_up()
    orders.assert_equal("public.orders")


def test_12_a_column_that_another_writer_added_stops_the_table(orders):
    """Invariant 12: nothing tells what its values shall be in rows of ours."""
    delta(orders).alter.add_columns([Field("theirs", PrimitiveType("string"))])
    change(orders, 1)
    (failure,) = orders.run()
    assert "theirs" in failure.error.message
    assert failure.error.hint


def test_11_a_reader_sees_nothing_or_everything_of_a_load(shop, monkeypatch):
    """Invariant 11: a reader looks whenever the load has come one step further."""
    shop.sql("create table orders (id int primary key, v text)")
    shop.sql("insert into orders select g, 'first' from generate_series(1, 50000) g")
    shop.carry("public.orders")
    folder = Path(shop.location("public.orders"))
    seen: set[int | None] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            exists = (folder / "_delta_log" / f"{0:020}.json").exists()
            seen.add(count(folder) if exists else None)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        with shop.running() as running:
            running.wait(all_loaded)
            assert count(folder) == 50000
    finally:
        stop.set()
        reader.join()
    assert seen - {None} <= {50000}
    assert None in seen


def count(folder: Path) -> int:
    found = QueryBuilder().register("t", DeltaTable(folder)).execute("select count(*) n from t")
    return int(found.read_all().column("n")[0].as_py())


def test_13_a_run_ends_though_others_hold_transactions_open(orders):
    """Invariant 13: the end of the WAL is then often inside a record that is not flushed."""
    orders.sql("create sequence numbers start 2")
    with orders.database.connect(autocommit=False) as writer:
        wal = "select pg_current_wal_lsn() - '0/0'"
        while int(orders.sql(wal)[0][0]) % 8192:
            writer.execute("insert into quiet select nextval('numbers') from generate_series(1, 9)")
            orders.sql("select pg_sleep(0.01)")
        (end,) = orders.sql(wal)[0]
        targets = set()
        orders.project.run(once=True, on_tick=lambda views: targets.add(views[0].capture.target))
        targets.discard(None)  # before the source was asked
        assert targets
        assert all(target > end for target in targets)
    orders.catch_up()
    orders.assert_equal("public.quiet")


TRANSACTION = (
    "insert into orders select g, repeat('big', 200) from generate_series(20001, 40000) g",
    "update orders set v = 'both' where id between 30000 and 31000",
    "delete from orders where id between 30500 and 30600",
)


@pytest.mark.parametrize("cut", [False, True])
def test_2_and_10_a_transaction_beyond_the_buffer_arrives_whole_or_not_at_all(
    orders, monkeypatch, cut
):
    """Invariants 2 and 10: its parts are spilled; once the connection is lost half way."""
    monkeypatch.setattr(
        "headrace.engine.capture.CommitPolicy", partial(CommitPolicy, max_bytes=50_000)
    )
    staged = cut_at(monkeypatch, 3 if cut else 0)
    with orders.running() as running:
        with orders.database.connect(autocommit=False) as writer:
            for statement in TRANSACTION:
                writer.execute(statement)
            change(orders, 3)
        running.catch_up()
    assert len(staged) > 3
    orders.assert_equal("public.orders")
    assert rows_of_largest_commit(orders) >= 20000 + 1001 + 101  # smaller ones may share its commit
    assert {file.name for file in files(orders)} == named_files(orders)


def cut_at(monkeypatch, number: int) -> list[int]:
    """Counts what is staged; at the numbered time the source goes away."""
    stage_all, staged = LogWriter.stage_all, []

    def counted(self, batches):
        staged.append(len(batches))
        if len(staged) == number:
            raise SourceUnavailableError("the connection is lost")
        return stage_all(self, batches)

    monkeypatch.setattr(LogWriter, "stage_all", counted)
    return staged


def manifests(shop) -> list[dict[str, Any]]:
    return [json.loads(m.read_text()) for m in (shop.state / "log/shop/commits").glob("*.json")]


def rows_of_largest_commit(shop) -> int:
    return max(sum(file["rows"] for file in m["files"]) for m in manifests(shop))


def files(shop) -> list[Path]:
    return list((shop.state / "log/shop/changes").rglob("*.parquet"))


def named_files(shop) -> set[str]:
    return {Path(file["path"]).name for m in manifests(shop) for file in m["files"]}
