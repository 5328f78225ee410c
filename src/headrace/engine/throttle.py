"""Going easy on a destination: no more rows and bytes per second than its owner allows, and less
while it answers slowly.

Rates are kept as in GCRA (the token bucket without a burst): each batch moves the moment at which
the next may start. A batch larger than the rate is sent whole, and is paid for afterwards. Slow
answers lengthen a pause before each batch, by doubling; quick ones shorten it, step by step, as
TCP does with its window (RFC 5681, section 3.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock
from typing import Final

# Weight of the newest latency: five answers say more than the hundred before them.
SMOOTHING: Final = 0.3
MAX_PAUSE: Final = 30.0  # seconds; a destination that needs more than that is down, not slow


@dataclass
class Pace:
    """The moment from which the next batch may start, at `rate` units per second."""

    rate: float
    free_at: float = 0.0

    def book(self, amount: float, start: float) -> None:
        self.free_at = start + amount / self.rate


@dataclass
class Courtesy:
    """How long to pause before each batch, seconds, for a destination that answers slowly."""

    max_latency: float
    latency: float | None = None  # smoothed
    pause: float = 0.0
    _felt: bool = True  # a batch has waited for the pause since it was last lengthened

    def observe(self, seconds: float) -> None:
        before = seconds if self.latency is None else self.latency
        self.latency = before + SMOOTHING * (seconds - before)
        if self.latency <= self.max_latency:
            self.pause = max(0.0, self.pause - self.max_latency)
        elif self._felt:
            self.pause = min(MAX_PAUSE, max(self.max_latency, 2 * self.pause))
            self._felt = False

    def take(self) -> float:
        self._felt = True
        return self.pause


class Throttle:
    """Call it with a batch's rows and bytes before the batch is sent: it returns when it may be.

    One throttle may be shared by threads, whose batches then add up. `max_rows_per_second` and
    `max_bytes_per_second` bound the average since the first batch after a rest; `max_latency`
    (seconds) is what `observe` is measured by. None: no bound.

    `wait` takes seconds and may return before they are over: `Event.wait` of the event that stops
    the run, so that a stop does not wait for the throttle.
    """

    def __init__(
        self,
        max_rows_per_second: float | None = None,
        max_bytes_per_second: float | None = None,
        max_latency: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._rows = Pace(max_rows_per_second) if max_rows_per_second else None
        self._bytes = Pace(max_bytes_per_second) if max_bytes_per_second else None
        self._courtesy = Courtesy(max_latency) if max_latency else None
        self._clock = clock
        self._wait = wait or Event().wait
        self._lock = Lock()

    def __call__(self, rows: int, size: int) -> None:
        delay = self._book(rows, size)
        if delay > 0:
            self._wait(delay)

    def observe(self, seconds: float) -> None:
        """Tell how long the destination took for a small probe, or for a statement."""
        if self._courtesy:
            with self._lock:
                self._courtesy.observe(seconds)

    @property
    def latency(self) -> float | None:
        """The destination's latency, smoothed, in seconds; None if it was never observed."""
        return self._courtesy.latency if self._courtesy else None

    @property
    def pause(self) -> float:
        """Seconds that each batch waits at present because of the latency."""
        return self._courtesy.pause if self._courtesy else 0.0

    def _book(self, rows: int, size: int) -> float:
        """Seconds until this batch may start; the batches after it start later."""
        with self._lock:
            now = self._clock()
            paused = now + (self._courtesy.take() if self._courtesy else 0.0)
            booked = [(p, n) for p, n in ((self._rows, rows), (self._bytes, size)) if p]
            start = max([paused, *(pace.free_at for pace, _ in booked)])
            for pace, amount in booked:
                pace.book(amount, start)
            return start - now
