"""When a table that cannot go on is copied anew by itself: for which causes, how often, at which
times of the day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from enum import Enum
from typing import Final, Self

MIN_INTERVAL: Final = timedelta(hours=24)


class RefreshCause(Enum):
    """Why a table is to be copied anew."""

    SCHEMA_CHANGE = "schema_change"  # the destination cannot follow what became of its columns
    DIVERGED = "diverged"  # the destination is not as the change log or the source says
    LOG_LOST = "log_lost"  # changes since its checkpoint are gone: log, slot or source was replaced
    ASKED = "asked"  # by a person; nothing holds that back


@dataclass(frozen=True)
class Window:
    """Times of each day, in UTC, from `start` up to `end`; over midnight where `end` is earlier."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `22:00-06:00`."""
        start, _, end = text.partition("-")
        return cls(time.fromisoformat(start), time.fromisoformat(end))

    def holds(self, moment: datetime) -> bool:
        now = moment.astimezone(UTC).time()
        if self.start < self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end

    def opens(self, after: datetime) -> datetime:
        """The first moment from `after` on at which it is open."""
        after = after.astimezone(UTC)
        if self.holds(after):
            return after
        today = datetime.combine(after.date(), self.start, UTC)
        return today if today > after else today + timedelta(days=1)


@dataclass(frozen=True)
class RefreshPolicy:
    """The user's choice for one pipeline (`auto_refresh`)."""

    on: frozenset[RefreshCause] = frozenset(RefreshCause)
    min_interval: timedelta = MIN_INTERVAL
    window: Window | None = None

    def start(self, cause: RefreshCause, last: datetime | None, now: datetime) -> datetime | None:
        """From when on a table may be copied anew, whose last copy began at `last`; None: never."""
        if cause not in self.on:
            return None
        free = now if last is None else max(now, last + self.min_interval)
        return free if self.window is None else self.window.opens(free)
