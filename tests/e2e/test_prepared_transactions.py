"""Two-phase commit with `two_phase: true`: what is prepared is sent at once, and arrives when it
has committed, whoever went away in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from harness import Running, Shop

from headrace.connectors.postgres import two_phase
from headrace.errors import CheckFailedError, SlotLostError
from headrace.testing.database import Database
from headrace.testing.postgres import EmbeddedPostgres
from replicated import SLOT, acknowledged_lsn, assert_acknowledged_is_durable, durable_lsn


@pytest.fixture
def orders(shop: Shop) -> Shop:
    return opened(shop)


def opened(shop: Shop) -> Shop:
    """With a table that has been copied."""
    shop.sql("create table orders (id int primary key, v text)")
    shop.sql("insert into orders select g, 'old' from generate_series(1, 10) g")
    shop.sql(f"alter database {shop.database.name} set logical_decoding_work_mem = '64kB'")
    carry(shop, two_phase=True)
    shop.catch_up()
    return shop


def carry(shop: Shop, *, two_phase: bool) -> None:
    shop.carry("public.orders", source={"two_phase": two_phase})


def quoted(shop: Shop, name: str) -> str:
    """Names of prepared transactions are of the whole server."""
    return psycopg.sql.quote(f"{shop.database.name} {name}")


def prepare(shop: Shop, name: str, *statements: str) -> None:
    with shop.database.connect(autocommit=False) as session:
        for statement in statements:
            session.execute(statement.encode())
        session.execute(f"prepare transaction {quoted(shop, name)}".encode())


def end(shop: Shop, name: str, how: str) -> None:
    shop.sql(f"{how} prepared {quoted(shop, name)}")


def prepare_several(shop: Shop) -> None:
    """A small one, one that is sent in blocks, and one for nothing; others commit between."""
    prepare(
        shop, "small", "insert into orders values (100, 'small')", "delete from orders where id = 1"
    )
    shop.sql("insert into orders values (11, 'meanwhile')")
    rows = "insert into orders select g, repeat('x', 100) from generate_series({}, {}) g"
    prepare(
        shop,
        "large",
        rows.format(1001, 3000),
        "savepoint s",
        rows.format(3001, 5000),
        "rollback to s",
        "update orders set v = 'changed' where id = 2",
    )
    prepare(shop, "undone", "insert into orders values (300, 'never')")
    shop.sql("insert into orders values (12, 'later')")


def end_all(shop: Shop) -> None:
    """In another order than they were prepared in."""
    shop.sql("update orders set v = 'between' where id = 3")
    end(shop, "undone", "rollback")
    end(shop, "large", "commit")
    shop.sql("update orders set v = v || '!' where id = 2")
    end(shop, "small", "commit")


def assert_held_back(shop: Shop) -> None:
    """All is durable, and the source knows of what came before the oldest prepared one only."""
    shop.assert_equal("public.orders", readers=["deltalake"])
    assert_acknowledged_is_durable(shop.database, shop.root)
    assert acknowledged_lsn(shop.database) < durable_lsn(shop.root)


def finish(shop: Shop, running: Running) -> None:
    """What was prepared has ended: it arrives, and holds nothing back any more."""
    durable = durable_lsn(shop.root)
    end_all(shop)
    running.catch_up()
    shop.assert_equal("public.orders", readers=["deltalake"])
    running.wait(lambda _: acknowledged_lsn(shop.database) > durable)


def stay(shop: Shop) -> None:
    """The same session sees both."""


def cut(shop: Shop) -> None:
    users = "select pg_terminate_backend(active_pid) from pg_replication_slots where active"
    shop.sql(f"{users} and slot_name = '{SLOT}'")


@pytest.mark.since(15)
@pytest.mark.parametrize("between", [stay, cut])
def test_1_2_and_3_what_is_prepared_arrives_once_it_has_committed(
    orders: Shop, between: Callable[[Shop], None]
) -> None:
    """Invariants 1 to 3: whole, once, and in the order of the commits."""
    with orders.running() as running:
        running.catch_up()
        prepare_several(orders)
        running.catch_up()
        assert_held_back(orders)
        between(orders)
        finish(orders, running)
    orders.assert_equal("public.orders")


@pytest.mark.versions
@pytest.mark.since(15)
def test_2_and_3_what_is_prepared_arrives_if_it_commits_while_no_run_goes_on(orders: Shop) -> None:
    """Invariants 2 and 3: in two runs, which receive anew what the first one had committed."""
    with orders.running() as running:
        running.catch_up()
        prepare_several(orders)
        running.catch_up()
    assert_held_back(orders)
    orders.catch_up()
    assert_held_back(orders)
    end_all(orders)
    orders.catch_up()
    orders.assert_equal("public.orders")


@pytest.mark.since(15)
@pytest.mark.parametrize("stop", ["fast", "kill"])
def test_1_2_and_3_what_is_prepared_outlives_a_restart_of_the_server(
    tmp_path: Path, stop: str
) -> None:
    """Invariants 1 to 3. A server that shuts down is not held up by what is held back."""
    with EmbeddedPostgres({"max_prepared_transactions": "8"}, fast=True) as server:
        orders = opened(Shop(Database("postgres", server.dsn()), tmp_path))
        with orders.running() as running:
            running.catch_up()
            prepare_several(orders)
            running.catch_up()
            assert_held_back(orders)
            if stop == "kill":
                server.kill()
            else:
                server.stop("fast")  # which fails if it takes long
            server.start()
            finish(orders, running)
        orders.assert_equal("public.orders")


@pytest.mark.since(15)
def test_8_a_prepared_transaction_that_alters_its_table_is_read_when_it_has_committed(
    orders: Shop,
) -> None:
    """Invariant 8."""
    with orders.running() as running:
        running.catch_up()
        altered = "alter table orders add column extra int default 7"
        prepare(orders, "altered", altered, "insert into orders values (20, 'new', 1)")
        end(orders, "altered", "commit")
        orders.sql("insert into orders values (21, 'newer', 2)")
        running.catch_up()
        orders.assert_equal("public.orders")


@pytest.mark.parametrize("postgres_version", [13, 14])
def test_it_is_refused_where_the_server_does_not_offer_it(
    shop: Shop, postgres_version: int
) -> None:
    shop.sql("create table orders (id int primary key, v text)")
    carry(shop, two_phase=True)
    with pytest.raises(CheckFailedError, match=f"Postgres {postgres_version} ") as refused:
        shop.run()
    assert "two_phase:" in refused.value.hint


@pytest.mark.since(15)
@pytest.mark.parametrize("postgres_version", [None, 17])
def test_2_a_slot_that_was_made_otherwise_is_turned_or_refused(orders: Shop) -> None:
    """Invariant 2: also for what is prepared before it is turned, and commits after."""
    prepare_several(orders)
    orders.catch_up()
    carry(orders, two_phase=False)
    with orders.database.connect() as session:
        version = session.info.server_version // 10000
    if version < two_phase.ALTERED_SINCE:
        with pytest.raises(
            CheckFailedError, match=f"slot '{SLOT}' sends transactions when"
        ) as refused:
            orders.run()
        assert "set two_phase: true" in refused.value.hint
        carry(orders, two_phase=True)
    orders.catch_up()
    end_all(orders)
    orders.catch_up()
    orders.assert_equal("public.orders")


@pytest.mark.since(15)
def test_2_what_was_prepared_before_it_is_asked_for_is_sent_when_it_commits(shop: Shop) -> None:
    """Invariant 2."""
    shop.sql("create table orders (id int primary key, v text)")
    carry(shop, two_phase=False)
    shop.catch_up()
    shop.sql("insert into orders select g, 'old' from generate_series(1, 10) g")
    prepare_several(shop)
    shop.catch_up()
    carry(shop, two_phase=True)
    shop.catch_up()
    end_all(shop)
    shop.catch_up()
    shop.assert_equal("public.orders")


@pytest.mark.since(15)
def test_12_a_slot_that_somebody_moved_past_a_prepare_is_told(orders: Shop) -> None:
    """Invariant 12: nothing but the COMMIT PREPARED would come."""
    prepare(orders, "lost", "insert into orders values (20, 'lost')")
    orders.catch_up()
    gone = "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where active"
    orders.sql(f"{gone} and slot_name = '{SLOT}'")  # the run's session may not have ended yet
    orders.sql(f"select pg_replication_slot_advance('{SLOT}', '{durable_lsn(orders.root)}')")
    end(orders, "lost", "commit")
    with pytest.raises(SlotLostError, match="the slot stands after") as lost:
        orders.run()
    assert lost.value.hint


@pytest.mark.since(15)
def test_status_tells_which_prepared_transactions_wait(orders: Shop) -> None:
    name = "it's one"
    prepare(orders, name, "insert into orders values (20, 'new')")
    (capture,) = orders.project.status().captures
    (told,) = capture.waits
    assert f"ROLLBACK PREPARED {quoted(orders, name)}" in told
    end(orders, name, "rollback")
    (capture,) = orders.project.status().captures
    assert capture.waits == ()
