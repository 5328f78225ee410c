"""A table that was given up is followed again from before its new snapshot, not from after it.

What committed between the two, and was read by the stream before it was known how the table looks,
was skipped without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import psycopg
import pytest
from harness import Shop

from headrace.connectors.postgres import snapshot
from headrace.engine.runner import RunView
from headrace.model import Lsn
from replicated import acknowledged_lsn


def stopped(views: Sequence[RunView]) -> bool:
    states = [s for view in views for m in view.materializations for s in m.tables.values()]
    return any(state.error is not None for state in states)


def test_7_what_commits_while_its_snapshot_is_opened_arrives(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 7."""
    shop.sql("create table orders (id int primary key); insert into orders values (1)")
    shop.carry("public.orders")
    shop.catch_up()
    clock = snapshot._clock

    def insert_and_be_received(session: psycopg.Connection[Any]) -> datetime:
        taken_at = clock(session)
        shop.sql("insert into orders select max(id) + 1 from orders")
        ((now,),) = shop.sql("select pg_current_wal_lsn()::text")
        while (acknowledged_lsn(shop.database) or Lsn(0)) < Lsn.parse(now):
            shop.sql("select pg_sleep(0.01)")
        return taken_at

    with shop.running() as running:
        running.catch_up()
        shop.sql("alter table orders add column r float default random()")
        shop.sql("insert into orders values (2)")
        running.wait(stopped)
        monkeypatch.setattr(snapshot, "_clock", insert_and_be_received)
        shop.project.resync(["public.orders"])
        running.wait(lambda views: not stopped(views))
        running.catch_up()
        shop.assert_equal("public.orders")
    assert shop.sql("select count(*) from orders") >= [(3,)]
