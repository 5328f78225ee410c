"""A pipeline at work: tables side by side, errors that stay with their table, ends and restarts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from change_samples import content
from simulated_lake import Lake, Shop
from test_sync_table import MERGES, SCHEMA, row

from headrace.engine import sync as sync_module
from headrace.engine.sync import Sync
from headrace.engine.sync_state import SyncTarget, SyncView
from headrace.engine.table_state import Phase
from headrace.errors import (
    DestinationUnavailableError,
    QuarantineFullError,
    SourceUnavailableError,
    UnexpectedError,
)
from headrace.model import TableId
from headrace.model.schedule import Schedule

PATIENCE = 20.0


def lake(name: str, *rows: dict[str, Any]) -> Lake:
    return Lake.of(replace(SCHEMA, table=TableId("lake", name)), *rows)


def pipeline(pairs: Sequence[tuple[Lake, Shop]], **options: Any) -> Sync:
    targets = [SyncTarget(source, shop) for source, shop in pairs]
    return Sync("lake_to_shop", targets, limits=MERGES, **options)


@contextmanager
def running(sync: Sync) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Runs until the end of the block; gives what waits for a condition, looked at each tick."""
    stop, seen = threading.Event(), threading.Condition()

    def tick(_: SyncView) -> None:
        with seen:
            seen.notify_all()

    def until(condition: Callable[[], bool]) -> None:
        with seen:
            assert seen.wait_for(condition, PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(sync.run, stop, on_tick=tick)
        try:
            yield until
        finally:
            stop.set()
            future.result(PATIENCE)


def test_once_ends_where_the_sources_were_at_the_start() -> None:
    pairs = [(lake(name, row(1)), Shop()) for name in "abc"]
    pipeline(pairs).run(threading.Event(), once=True)
    for source, _ in pairs:
        source.write(("insert", row(2)))
        source.write(("delete", row(1)))
    sync = pipeline(pairs)
    sync.run(threading.Event(), once=True)
    assert all(shop.content == content([row(2)]) for _, shop in pairs)
    assert all(state.settled for state in sync.tables.values())
    assert sync.view.rows_applied == 3 * 2


def test_once_ends_with_its_last_table_and_not_at_the_next_tick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sync_module, "TICK", 3600.0)
    shop = Shop()
    with ThreadPoolExecutor(1) as pool:
        run = pipeline([(lake("a", row(1)), shop)]).run
        pool.submit(run, threading.Event(), once=True).result(PATIENCE)
    assert shop.content == content([row(1)])


def test_once_does_not_chase_a_source_that_never_rests() -> None:
    source, shop = lake("busy", row(1)), Shop()
    numbers = iter(range(2, 100))
    source.before_read = lambda: source.write(("insert", row(next(numbers))))
    pipeline([(source, shop)]).run(threading.Event(), once=True)
    assert shop.at is not None
    assert shop.at.commit == 0


def test_once_goes_on_through_passing_trouble() -> None:
    source, shop = lake("t", row(1)), Shop()
    source.faults = {"head": [SourceUnavailableError("later")]}
    shop.faults = {"replace.done": [DestinationUnavailableError("answer lost")]}
    pipeline([(source, shop)]).run(threading.Event(), once=True)
    assert [how for how, *_ in shop.commits] == ["replace"]


def test_one_bad_table_never_stops_the_others() -> None:
    bad, good = (lake("bad", row(1)), Shop()), (lake("good", row(1)), Shop())
    bad[1].faults = {"replace": [QuarantineFullError("too many", hint="look")]}
    sync = pipeline([bad, good])
    with running(sync) as until:
        until(lambda: good[1].at is not None)
        good[0].write(("insert", row(2)))
        until(lambda: good[1].content == content([row(1), row(2)]))
        until(lambda: sync.tables[bad[0].name].phase is Phase.FAILED)
    [(name, table, error)] = sync.failed_tables
    assert (name, table, str(error)) == ("lake_to_shop", bad[0].name, "too many\nhint: look")
    assert bad[1].at is None


def test_a_fault_that_nothing_foresaw_is_told_as_ours() -> None:
    source, shop = lake("t", row(1)), Shop()
    shop.faults = {"replace": [ZeroDivisionError("one by zero")]}
    sync = pipeline([(source, shop)])
    sync.run(threading.Event(), once=True)
    [(_, _, error)] = sync.failed_tables
    assert isinstance(error, UnexpectedError)
    assert "lake.t: unexpected ZeroDivisionError" in error.message


def test_an_error_is_forgotten_when_the_table_goes_on() -> None:
    source, shop = lake("t", row(1)), Shop()
    shop.faults = {"replace": [DestinationUnavailableError("down")]}
    sync = pipeline([(source, shop)])
    sync.run(threading.Event(), once=True)
    (state,) = sync.tables.values()
    assert (state.phase, state.error) == (Phase.STREAMING, None)


def test_a_continuous_run_takes_versions_as_they_come() -> None:
    source, shop = lake("t", row(1)), Shop()
    with running(pipeline([(source, shop)])) as until:
        for key in range(2, 6):
            source.write(("insert", row(key)))
            until(lambda: shop.at is not None and shop.at.commit == len(source.versions) - 1)
    assert shop.content == source.versions[-1].content


def test_trouble_while_waiting_is_outlived() -> None:
    source, shop = lake("t", row(1)), Shop()
    source.faults = {"await_newer": [SourceUnavailableError("later")]}
    with running(pipeline([(source, shop)])) as until:
        until(lambda: not source.faults["await_newer"])
        source.write(("insert", row(2)))
        until(lambda: shop.content == content([row(1), row(2)]))


def test_a_stop_ends_a_run_that_waits() -> None:
    sync = pipeline([(lake("t", row(1)), Shop())])
    with running(sync) as until:
        until(lambda: all(state.caught_up for state in sync.tables.values()))


@pytest.mark.parametrize("text", ["1h", "0 0 1 1 *"])
def test_a_stop_ends_a_run_that_waits_for_its_schedule(text: str) -> None:
    source, shop = lake("t", row(1)), Shop()
    sync = pipeline([(source, shop)], schedule=Schedule.parse(text))
    with running(sync) as until:
        until(lambda: "1h" not in text or shop.at is not None)
    assert (shop.at is not None) == (text == "1h")


def test_a_scheduled_run_comes_again() -> None:
    source, shop = lake("t", row(1)), Shop()
    with running(pipeline([(source, shop)], schedule=Schedule.parse("1s"))) as until:
        until(lambda: shop.at is not None)
        source.write(("insert", row(2)))
        until(lambda: shop.content == content([row(1), row(2)]))
    assert "await_newer" not in source.calls


def test_a_resync_names_tables_of_the_source() -> None:
    one, two = (lake("one", row(1)), Shop()), (lake("two", row(1)), Shop())
    pipeline([one, two]).run(threading.Event(), once=True)
    pipeline([one, two], resync={one[0].name}).run(threading.Event(), once=True)
    assert [len(shop.commits) for _, shop in (one, two)] == [2, 1]


def test_what_is_recorded_goes_on_counting() -> None:
    source, shop = lake("t", row(1), row(2)), Shop()
    records: list[Mapping[str, Any]] = []
    pipeline([(source, shop)], journal=records.append).run(threading.Event(), once=True)
    source.write(("insert", row(3)))
    again = pipeline([(source, shop)], journal=records.append, recorded=records[-1])
    again.run(threading.Event(), once=True)
    told = records[-1]["tables"]["lake.t"]
    assert (told["phase"], told["version"], told["rows_applied"]) == ("streaming", 1, 3)
    assert again.describe() == records[-1]


def test_a_journal_that_has_no_room_for_now_stops_nothing() -> None:
    source, shop = lake("t", row(1)), Shop()

    def full(_: Mapping[str, Any]) -> None:
        raise SourceUnavailableError("no room")

    pipeline([(source, shop)], journal=full).run(threading.Event(), once=True)
    assert shop.content == content([row(1)])


def test_no_more_tables_work_at_a_time_than_there_are_workers() -> None:
    """DESIGN §13, invariant 10: each may hold a batch in memory."""
    busy, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    class Counting(Shop):
        def replace(self, *args: Any, **more: Any) -> None:
            nonlocal busy, most
            with lock:
                busy, most = busy + 1, max(most, busy + 1)
            both.wait(PATIENCE)  # two do work side by side
            super().replace(*args, **more)
            with lock:
                busy -= 1

    pairs = [(lake(f"t{n}", row(1)), Counting()) for n in range(6)]
    pipeline(pairs, workers=2).run(threading.Event(), once=True)
    assert most == 2
