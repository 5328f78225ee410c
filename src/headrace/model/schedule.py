"""When a pipeline runs: all the time, every so often, or by the clock. Times are UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from cronsim import CronSim, CronSimError

_INTERVAL: Final = re.compile(r"([1-9]\d{0,8})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_FORMS: Final = (
    "expected continuous, an interval such as 5m or 1h, or a cron line such as 0 3 * * *"
)
_LONGEST: Final = timedelta(days=366)
_SOME_DAY: Final = datetime(2024, 1, 1, tzinfo=UTC)  # cronsim looks 50 years ahead


@dataclass(frozen=True)
class Schedule:
    """`continuous`; an interval, such as `5m`; or a cron line of five fields, read in UTC.

    Intervals count from start to start. A run that takes longer than to its next start is followed
    by one run at once, however many starts it missed; two never run at a time.
    """

    text: str
    interval: timedelta | None = None
    cron: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a schedule. Raises ValueError, with a sentence for a person."""
        text = text.strip()
        if text == "continuous":
            return cls(text)
        if found := _INTERVAL.fullmatch(text):
            return cls(text, interval=_interval(text, int(found[1]), found[2]))
        fields = text.split()
        if len(fields) == 5:
            return cls(text, cron=_cron(" ".join(fields)))
        if len(fields) > 2:
            raise ValueError(
                f"a cron line has five fields (minute hour day month weekday), not {len(fields)}"
            )
        raise ValueError(f"{_FORMS}, not {text!r}")

    @property
    def is_continuous(self) -> bool:
        return self.interval is None and self.cron is None

    def first(self, now: datetime) -> datetime:
        """When to start for the first time: at once, but by a cron line at its next time."""
        return self.next(now) or now if self.cron else now

    def next(self, after: datetime) -> datetime | None:
        """The start that follows one at `after`; None where a run never ends (continuous).

        It may have passed already: then the next run starts at once.
        """
        if self.interval is not None:
            return after + self.interval
        if self.cron is not None:
            return _next(self.cron, after.astimezone(UTC))
        return None


def _interval(text: str, count: int, unit: str) -> timedelta:
    interval = timedelta(**{_UNITS[unit]: count})
    if interval > _LONGEST:
        raise ValueError(f"{text} is more than a year")
    return interval


def _cron(line: str) -> str:
    try:
        CronSim(line, _SOME_DAY)
    except CronSimError as error:
        raise ValueError(f"{line!r} is not a cron line: {str(error).lower()}") from error
    if _next(line, _SOME_DAY) is None:
        raise ValueError(f"{line!r} is a cron line whose day never comes")
    return line


def _next(line: str, after: datetime) -> datetime | None:
    return next(CronSim(line, after), None)
