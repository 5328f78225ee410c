"""Snapshots that are taken while the source goes on changing."""

from __future__ import annotations

import pytest
from busy import TABLES, writing
from harness import all_loaded


@pytest.mark.versions
def test_7_a_snapshot_beside_a_busy_stream_equals_the_stream_alone(busy_shop):
    """Invariant 7: several tables of several chunks are copied while all of them change."""
    with writing(busy_shop) as done, busy_shop.running() as running:
        before = len(done)
        running.wait(all_loaded)
        assert len(done) > before
        running.catch_up()
    busy_shop.catch_up()
    for table in TABLES:
        busy_shop.assert_equal(table)
    chunks = sum(len(snapshots(busy_shop, table)) for table in TABLES)
    with busy_shop.database.connect() as session:  # Postgres 13 cannot scan a range of a table
        assert chunks > 10 or session.info.server_version < 140000


def snapshots(shop, table):
    return list((shop.state / "log/shop/snapshots" / table).rglob("*.parquet"))


def test_7_a_table_added_later_is_copied_beside_the_stream_of_the_others(busy_shop):
    """Invariant 7: the log and the slot are old; only the new table is copied."""
    busy_shop.carry(*TABLES[:1])
    busy_shop.catch_up()
    busy_shop.carry(*TABLES)
    with writing(busy_shop), busy_shop.running() as running:
        running.wait(all_loaded)
        running.catch_up()
    busy_shop.catch_up()
    for table in TABLES:
        busy_shop.assert_equal(table)


def test_7_a_copy_that_was_cut_short_is_begun_anew(busy_shop):
    """Invariant 7: the run is stopped in the middle of the copy, while the tables change."""
    with writing(busy_shop):
        with busy_shop.running() as running:
            running.wait(lambda views: any(p.rows for v in views for p in copying(v)))
        with busy_shop.running() as running:
            running.wait(all_loaded)
    busy_shop.catch_up()
    for table in TABLES:
        busy_shop.assert_equal(table)


def copying(view):
    return list(view.copier.progress.values())


def test_4_a_run_once_ends_beside_a_source_that_never_rests(busy_shop):
    """Invariant 4: it brings what was there when it began, and does not wait for a quiet moment."""
    busy_shop.catch_up()
    with writing(busy_shop) as done:
        for _ in range(3):
            before = len(done)
            busy_shop.catch_up()
            assert len(done) > before
    busy_shop.catch_up()
    for table in TABLES:
        busy_shop.assert_equal(table)
