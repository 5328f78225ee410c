"""Going easy on a destination, by a clock that only moves while somebody waits."""

from __future__ import annotations

from threading import Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.throttle import MAX_PAUSE, Throttle


class Clock:
    """Time passes by waiting only."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        assert seconds > 0
        self.now += seconds
        self.waits.append(seconds)
        return False


def throttle(clock: Clock, rows: float | None = None, size: float | None = None, **more: float):
    return Throttle(rows, size, clock=clock, wait=clock.wait, **more)


def test_without_bounds_nothing_waits() -> None:
    clock = Clock()
    free = throttle(clock)
    for _ in range(10):
        free(10**9, 10**12)
    free.observe(99)
    assert clock.waits == []
    assert (free.pause, free.latency) == (0, None)


def test_the_first_batch_goes_at_once_and_the_next_when_it_is_paid_for() -> None:
    clock = Clock()
    paced = throttle(clock, rows=100)
    paced(50, 1)
    assert clock.waits == []
    paced(50, 1)
    assert clock.waits == [pytest.approx(0.5)]


def test_a_batch_larger_than_a_second_of_the_rate_is_paid_for_in_full() -> None:
    clock = Clock()
    paced = throttle(clock, rows=100)
    paced(1000, 1)
    paced(1, 1)
    assert clock.waits == [pytest.approx(10)]


def test_the_tighter_of_both_rates_holds() -> None:
    clock = Clock()
    paced = throttle(clock, rows=100, size=1000)
    paced(100, 5000)
    paced(100, 10)
    paced(1, 1)
    assert clock.waits == [pytest.approx(5), pytest.approx(1)]


def test_a_rest_earns_no_burst() -> None:
    clock = Clock()
    paced = throttle(clock, rows=100)
    paced(100, 1)
    clock.now += 3600
    paced(100, 1)
    paced(100, 1)
    assert clock.waits == [pytest.approx(1)]


@given(
    rate=st.integers(1, 10**6),
    batches=st.lists(st.integers(0, 10**6), min_size=2, max_size=50),
    work=st.floats(0, 2),
)
def test_the_rate_holds_over_any_stretch(rate: int, batches: list[int], work: float) -> None:
    clock = Clock()
    paced = throttle(clock, rows=rate)
    starts = []
    for rows in batches:
        paced(rows, 0)
        starts.append(clock.now)
        clock.now += work  # to send the batch
    for first in range(len(batches)):
        for last in range(first, len(batches)):
            sent = sum(batches[first:last])
            assert sent <= rate * (starts[last] - starts[first]) * (1 + 1e-6) + 1e-3 * rate


def test_threads_share_one_rate() -> None:
    """Bookings add up: each of 8 batches gets a moment of its own, 0.1 s after the one before."""
    waits: list[float] = []
    shared = Throttle(1000, clock=lambda: 0.0, wait=waits.append)
    threads = [Thread(target=shared, args=(100, 0)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == [pytest.approx(0.1 * n) for n in range(1, 8)]


def test_a_stop_ends_every_wait() -> None:
    stop = Event()
    stopped = Throttle(1, wait=stop.wait)
    stopped(10**9, 0)
    waiting = Thread(target=stopped, args=(1, 0))
    waiting.start()
    stop.set()
    waiting.join(60)
    assert not waiting.is_alive()


# -- latency ---------------------------------------------------------------------------------------


def test_a_quick_destination_is_not_paused() -> None:
    clock = Clock()
    polite = throttle(clock, max_latency=0.2)
    for _ in range(10):
        polite.observe(0.19)
        polite(1, 1)
    assert clock.waits == []


def test_one_slow_answer_among_quick_ones_changes_nothing() -> None:
    clock = Clock()
    polite = throttle(clock, max_latency=0.2)
    for seconds in (0.05, 0.05, 0.3, 0.05):
        polite.observe(seconds)
    assert polite.pause == 0


def test_slow_answers_double_the_pause_and_quick_ones_take_it_back_in_steps() -> None:
    clock = Clock()
    polite = throttle(clock, max_latency=0.2)
    for _ in range(4):
        polite.observe(1.0)
        polite(1, 1)
    assert clock.waits == [pytest.approx(0.2 * 2**n) for n in range(4)]
    clock.waits.clear()
    while polite.pause:
        polite.observe(0.01)
        polite(1, 1)
    steps = [a - b for a, b in zip(clock.waits, clock.waits[1:], strict=False)]
    recovering = [step for step in steps if step > 0]
    assert recovering == [pytest.approx(0.2)] * len(recovering)
    assert len(recovering) > 3


def test_the_pause_grows_only_after_a_batch_has_waited_for_it() -> None:
    clock = Clock()
    polite = throttle(clock, max_latency=0.2)
    for _ in range(20):
        polite.observe(1.0)
    assert polite.pause == pytest.approx(0.2)


def test_the_pause_is_bounded() -> None:
    clock = Clock()
    polite = throttle(clock, max_latency=0.2)
    for _ in range(50):
        polite.observe(60)
        polite(1, 1)
    assert clock.waits[-1] == MAX_PAUSE


def test_rate_and_pause_do_not_add_up() -> None:
    clock = Clock()
    both = throttle(clock, rows=1, max_latency=0.2)
    both(10, 1)
    both.observe(1)
    both(1, 1)
    assert clock.waits == [pytest.approx(10)]
