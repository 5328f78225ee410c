"""When a table may be copied anew by itself: by cause, since the last time, and by the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from headrace.model.refresh import RefreshCause, RefreshPolicy, Window

NOON = datetime(2026, 5, 17, 12, 0, tzinfo=UTC)


def at(hour: float, day: int = 17) -> datetime:
    return datetime(2026, 5, day, tzinfo=UTC) + timedelta(hours=hour)


@pytest.mark.parametrize(
    ("window", "after", "opens"),
    [
        ("10:00-14:00", NOON, NOON),
        ("13:30-14:00", NOON, at(13.5)),
        ("08:00-12:00", NOON, at(8, 18)),  # its end is outside
        ("22:00-06:00", NOON, at(22)),
        ("22:00-06:00", at(23), at(23)),
        ("22:00-06:00", at(5.5), at(5.5)),
        ("22:00-06:00", at(6), at(22)),
        ("00:00-00:00", NOON, NOON),  # the whole day
    ],
)
def test_a_window_opens_every_day_also_over_midnight(
    window: str, after: datetime, opens: datetime
) -> None:
    assert Window.parse(window).opens(after) == opens


def test_an_hour_elsewhere_is_read_in_utc() -> None:
    eastern = NOON.astimezone(timezone(timedelta(hours=-5)))
    assert Window.parse("11:00-13:00").holds(eastern)


def test_the_interval_and_the_window_both_have_to_be_waited_for() -> None:
    policy = RefreshPolicy(
        frozenset({RefreshCause.DIVERGED}), timedelta(hours=24), Window.parse("22:00-06:00")
    )
    start = policy.start
    assert start(RefreshCause.DIVERGED, None, NOON) == at(22)
    assert start(RefreshCause.DIVERGED, at(23), at(23)) == at(23, 18)
    assert start(RefreshCause.DIVERGED, at(7), at(23)) == at(22, 18)
    assert start(RefreshCause.DIVERGED, at(7, 10), at(23)) == at(23)
    assert start(RefreshCause.SCHEMA_CHANGE, None, at(23)) is None
