"""A destination that is gone easy on: what it is sent at most; and no wait outlives its run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from headrace import syncing
from headrace.connectors.postgres.staging import BATCH_ROWS, PACED_SHARE
from headrace.engine.throttle import Throttle
from headrace.errors import LogCorruptError
from lakeside import Lakeside, people


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time stands still but for the seconds that a throttle waits, which are told here."""
    told: list[float] = []
    made = Throttle.__init__

    def counting(self: Throttle, *limits: Any, wait: Any, **_: Any) -> None:
        made(self, *limits, clock=lambda: sum(told), wait=told.append)

    monkeypatch.setattr(Throttle, "__init__", counting)
    return told


def test_rows_per_second_are_respected_by_loads_and_by_merges(
    lakeside: Lakeside, waits: list[float]
) -> None:
    """But for one burst, since what was sent is paid for by the next batch."""
    source = lakeside.source("crm.people")
    source.write(people(*range(20_000)))
    lakeside.carry("crm.people", throttle={"max_rows_per_second": 500})
    lakeside.catch_up()
    loaded = sum(waits)
    assert loaded >= (20_000 - BATCH_ROWS // PACED_SHARE) / 500
    source.update("id >= 15000", name="'other'")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert sum(waits) - loaded >= (5000 - BATCH_ROWS // PACED_SHARE) / 500


def test_bytes_per_second_are_respected_however_few_rows_come_at_a_time(
    lakeside: Lakeside, waits: list[float]
) -> None:
    sources = [lakeside.source(f"crm.people{n}") for n in range(4)]
    for source in sources:
        source.write(people(*range(500), name="x" * 1000))
    tables = [f"crm.people{n}" for n in range(4)]
    lakeside.carry(*tables, throttle={"max_bytes_per_second": 10_000})
    lakeside.catch_up()
    for table in tables:
        lakeside.assert_equal(table)
    assert sum(waits) >= 3 * 500 * 1000 / 10_000  # the last of them is paid for afterwards


def throttled(lakeside: Lakeside) -> None:
    """A table whose second batch has to wait for an hour."""
    source = lakeside.source("crm.people")
    source.write(people(*range(10_000)))
    lakeside.carry("crm.people", throttle={"max_rows_per_second": 1})


def test_a_run_that_is_stopped_does_not_wait_for_its_throttle(lakeside: Lakeside) -> None:
    throttled(lakeside)
    with lakeside.running() as running:
        running.wait(lambda states: any(s.copied_rows for s in states.values()))


def test_a_run_that_fails_does_not_wait_for_its_throttle(
    lakeside: Lakeside, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttled(lakeside)
    waiting = threading.Event()
    call = Throttle.__call__

    def telling(self: Throttle, rows: int, size: int) -> None:
        if waiting.is_set():
            call(self, rows, size)
        waiting.set()
        call(self, rows, size)

    def record(_: Any, __: str, record: Mapping[str, Any]) -> None:
        if waiting.is_set():
            raise LogCorruptError("the state cannot be written", hint="mend it")

    monkeypatch.setattr(Throttle, "__call__", telling)
    monkeypatch.setattr(syncing, "_record", record)
    with pytest.raises(LogCorruptError):
        lakeside.run()
