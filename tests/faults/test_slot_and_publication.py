"""Somebody takes slot or publication away from us: a clear error, never silence (invariant 12)."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from shop import SEED, Shop

import headrace
from headrace.errors import HeadraceError, SlotLostError, SourceError
from live_run import LiveRun
from replicated import PUBLICATION, SLOT, assert_equal
from workload import Load

TERMINATE = "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s"


def replicate(shop: Shop) -> None:
    assert headrace.load(shop.project).run(once=True) == []


def run_once(shop: Shop) -> HeadraceError:
    """Run, and fail."""
    with pytest.raises(HeadraceError) as failure:
        headrace.load(shop.project).run(once=True)
    return failure.value


def drop_slot(shop: Shop) -> None:
    """Drop it between two of our connections, if it is in use."""
    with shop.database.connect() as session:
        while True:
            session.execute(TERMINATE, [SLOT])
            try:
                session.execute("select pg_drop_replication_slot(%s)", [SLOT])
            except psycopg.errors.ObjectInUse:
                continue
            return


def assert_told(shop: Shop, error: HeadraceError, said: str) -> None:
    assert isinstance(error, SlotLostError)
    assert SLOT in error.message
    assert said in error.message
    assert error.hint
    assert isinstance(run_once(shop), SlotLostError)  # and it stays so


def test_invariant_12_a_slot_that_is_dropped_while_running_is_told(shop: Shop) -> None:
    replicate(shop)
    with LiveRun(shop.project) as run:
        run.wait_for(lambda view: view.capture.progress.connected)
        drop_slot(shop)
        error = run.failure()
    assert_told(shop, error, "no longer exists")


def test_invariant_12_a_slot_that_was_dropped_while_stopped_is_told(shop: Shop) -> None:
    replicate(shop)
    drop_slot(shop)
    assert_told(shop, run_once(shop), "no longer exists")


def test_invariant_12_a_slot_that_somebody_advanced_is_told(shop: Shop) -> None:
    replicate(shop)
    shop.database.execute("insert into customers values (-1)")
    advance = "select pg_replication_slot_advance(%s, pg_current_wal_lsn())"
    shop.database.execute(advance, [SLOT])
    assert_told(shop, run_once(shop), "somebody else advanced")


def test_invariant_12_a_slot_that_somebody_made_anew_under_our_name_is_told(shop: Shop) -> None:
    replicate(shop)
    shop.database.execute("select pg_drop_replication_slot(%s)", [SLOT])
    shop.database.execute("insert into customers values (-1)")
    shop.database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [SLOT])
    error = run_once(shop)
    assert isinstance(error, SlotLostError)
    assert "recreated" in error.message


@pytest.mark.versions
def test_invariant_12_a_publication_that_is_dropped_while_running_is_told(shop: Shop) -> None:
    replicate(shop)
    with LiveRun(shop.project) as run:
        run.wait_for(lambda view: view.capture.progress.connected)
        shop.database.execute(f"drop publication {PUBLICATION}")
        shop.database.execute("insert into customers values (-1)")
        error = run.failure()
    assert isinstance(error, SourceError)
    assert PUBLICATION in error.message
    assert error.hint
    assert PUBLICATION in run_once(shop).message  # making it anew does not bring the change back


def taken_out(shop: Shop) -> None:
    """A table leaves the publication, and a change of it is not sent."""
    shop.database.execute(f"alter publication {PUBLICATION} drop table customers")
    shop.database.execute("insert into customers values (-1)")


def assert_customers_is_named(failures: list[Any]) -> None:
    (failure,) = failures
    assert str(failure.table) == "public.customers"
    assert PUBLICATION in failure.error.message
    assert "headrace resync public.customers" in failure.error.hint


@pytest.mark.versions
def test_invariant_12_a_table_that_leaves_the_publication_while_running_is_told(
    shop: Shop,
) -> None:
    replicate(shop)
    with LiveRun(shop.project) as run:
        run.wait_for(lambda view: view.capture.progress.connected)
        taken_out(shop)
        with Load(shop.database, SEED) as load:
            load.wait_for(10)
        run.wait_for(
            lambda view: any(s.error for m in view.materializations for s in m.tables.values())
        )
        run.catch_up(shop.database)
    assert_customers_is_named(headrace.load(shop.project).run(once=True))
    assert_equal(shop.database, shop.folder, ["documents", "lines", "events"])


def test_invariant_12_a_table_that_left_the_publication_while_stopped_is_told(shop: Shop) -> None:
    replicate(shop)
    taken_out(shop)
    assert_customers_is_named(headrace.load(shop.project).run(once=True))
    assert_equal(shop.database, shop.folder, ["documents", "lines", "events"])
