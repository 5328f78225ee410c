"""The starts of a scheduled pipeline, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from headrace.model.schedule import Schedule

# The wall clock is asked again so often, because it may be set, and stands still in a suspended
# machine while the monotonic clock that waits are measured by goes on, or the other way round.
LONGEST_WAIT: Final = 60.0


def now() -> datetime:
    return datetime.now(UTC)


def starts(
    schedule: Schedule, wait: Callable[[float], bool], clock: Callable[[], datetime] = now
) -> Iterator[datetime]:
    """Yield at each start, until `wait` (`Event.wait` of what stops the run) tells of a stop.

    What runs in the loop over it is over before the next start is looked for, so that there are
    never two at a time. A continuous schedule starts once.
    """
    start: datetime | None = schedule.first(clock())
    while start is not None:
        while (left := (start - clock()).total_seconds()) > 0:
            if wait(min(left, LONGEST_WAIT)):
                return
        if wait(0):
            return
        started = clock()
        yield started
        start = schedule.next(started)
