"""Snapshots of a server that grants no second slot: their LSN is found in the change log."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import busy
import pytest
from harness import Shop, all_loaded

from headrace.connectors.postgres import exporting, snapshot
from headrace.testing.database import temporary_database
from headrace.testing.postgres import EmbeddedPostgres

SLOTS = "select count(*), max(slot_name::text) from pg_replication_slots"


@pytest.fixture
def crowded_shop(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    """A server with room for the stream, and nothing else."""
    monkeypatch.setattr(snapshot, "MIN_CHUNK_PAGES", 20)
    with (
        EmbeddedPostgres({request.param: "1"}, fast=True) as server,
        temporary_database(server.dsn()) as database,
    ):
        shop = Shop(database, tmp_path)
        busy.fill(shop)
        yield shop


@contextmanager
def many_commits(shop: Shop) -> Iterator[None]:
    """Sessions that commit side by side, so that they become visible in any order."""
    stop = threading.Event()

    def write(number: int) -> None:
        with shop.database.connect() as session:
            while not stop.is_set():
                session.execute("insert into orders values (nextval('ids'), %s, now())", [number])

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, number) for number in range(3)]
        try:
            yield
        finally:
            stop.set()
            for writer in writers:
                writer.result()


@pytest.mark.parametrize(
    "crowded_shop", ["max_replication_slots", "max_wal_senders"], indirect=True
)
def test_7_a_snapshot_without_a_slot_of_its_own_equals_the_stream_alone(crowded_shop: Shop) -> None:
    """Invariant 7, beside transactions of all kinds, some of which end only after it is taken."""
    with busy.writing(crowded_shop), many_commits(crowded_shop), crowded_shop.running() as running:
        running.wait(all_loaded)
        running.catch_up()
    crowded_shop.catch_up()
    for table in busy.TABLES:
        crowded_shop.assert_equal(table)
    assert crowded_shop.database.execute(SLOTS) == [(1, "headrace_shop")]
    assert all(table.equal for table in crowded_shop.project.verify())


@pytest.mark.parametrize("crowded_shop", ["max_replication_slots"], indirect=True)
def test_a_snapshot_that_fits_no_position_is_taken_again(
    crowded_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is told to have seen all but one of the transactions of the log."""
    seen = exporting._visibility
    taken: list[str] = []

    def visibility(text: str) -> object:
        taken.append(text)
        if len(taken) > 1:
            return seen(text)
        with crowded_shop.database.connect() as session:
            first, second = (
                session.execute(
                    "insert into orders values (nextval('ids'), 'x', now()) "
                    "returning pg_current_xact_id()::text::bigint"
                ).fetchone()
                for _ in range(2)
            )
        assert first is not None
        assert second is not None
        return type(seen(text))(second[0] + 1, frozenset({first[0]}))

    monkeypatch.setattr(exporting, "_visibility", visibility)
    crowded_shop.catch_up()
    assert len(taken) == 2
    for table in busy.TABLES:
        crowded_shop.assert_equal(table)
