"""When pipelines run: each start at its time, missed ones once, never two at a time."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.schedule import starts
from headrace.model.schedule import Schedule

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)  # a Saturday
MINUTE = timedelta(minutes=1)


class Clock:
    """A wall clock that moves while somebody waits; a wait tells of a stop from `stop` on."""

    def __init__(self, stop: datetime = NOON + timedelta(days=999)) -> None:
        self.now = NOON
        self.stop = stop

    def __call__(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += timedelta(seconds=seconds)
        return self.now >= self.stop


def first_starts(text: str, count: int, run: timedelta = timedelta(0)) -> list[datetime]:
    clock = Clock()
    found = []
    for start in islice(starts(Schedule.parse(text), clock.wait, clock), count):
        found.append(start)
        clock.now += run
    return found


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ("30s", NOON + timedelta(seconds=30)),
        ("5m", NOON + 5 * MINUTE),
        ("1h", NOON + timedelta(hours=1)),
        ("2d", NOON + timedelta(days=2)),
        ("0 3 * * *", datetime(2026, 2, 1, 3, tzinfo=UTC)),
        ("*/20 * * * *", NOON + 20 * MINUTE),
        ("0 12 * * *", NOON + timedelta(days=1)),  # never the same moment again
        ("30 6 * * MON-FRI", datetime(2026, 2, 2, 6, 30, tzinfo=UTC)),
        ("  0   0 29 2  * ", datetime(2028, 2, 29, tzinfo=UTC)),
        ("continuous", None),
    ],
)
def test_the_start_after_a_start(text: str, following: datetime | None) -> None:
    assert Schedule.parse(text).next(NOON) == following


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected continuous"),
        ("often", "expected continuous, an interval such as 5m or 1h, or a cron line"),
        ("0m", "expected continuous"),
        ("5", "expected continuous"),
        ("1.5h", "expected continuous"),
        ("100ms", "expected continuous"),
        ("@daily", "expected continuous"),
        ("400d", "400d is more than a year"),
        ("999999999d", "more than a year"),
        ("0 3 * *", "five fields (minute hour day month weekday), not 4"),
        ("0 0 3 * * *", "five fields (minute hour day month weekday), not 6"),
        ("0 25 * * *", "bad hour"),
        ("61 * * * *", "bad minute"),
        ("0 0 * * FUNDAY", "bad day-of-week"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("*/0 * * * *", "bad minute"),
    ],
)
def test_what_is_no_schedule_is_said_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"expected|not|than") as caught:
        Schedule.parse(text)
    assert said in str(caught.value)


@given(st.text("0123456789*/,- smhdMONcontiuse@", max_size=20))
def test_any_text_is_a_schedule_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        schedule = Schedule.parse(text)
        following = schedule.next(NOON)
        assert schedule.is_continuous if following is None else following > NOON


def test_cron_lines_are_read_in_utc_wherever_the_machine_stands() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=9)))
    assert Schedule.parse("0 13 * * *").next(elsewhere) == NOON + timedelta(hours=1)


def test_intervals_start_at_once_and_count_from_start_to_start() -> None:
    assert first_starts("5m", 3, run=2 * MINUTE) == [NOON, NOON + 5 * MINUTE, NOON + 10 * MINUTE]


def test_a_run_longer_than_its_interval_is_followed_by_one_at_once() -> None:
    assert first_starts("5m", 3, run=12 * MINUTE) == [NOON, NOON + 12 * MINUTE, NOON + 24 * MINUTE]


def test_a_cron_line_waits_for_its_time_and_makes_up_for_missed_starts_by_one() -> None:
    ten, minutes = timedelta(minutes=10), "*/10 * * * *"
    assert first_starts(minutes, 2) == [NOON + ten, NOON + 2 * ten]
    late = first_starts(minutes, 3, run=25 * MINUTE)
    assert late == [NOON + 10 * MINUTE, NOON + 35 * MINUTE, NOON + 60 * MINUTE]


def test_a_continuous_pipeline_starts_once_and_at_once() -> None:
    assert first_starts("continuous", 5) == [NOON]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (NOON, []),
        (NOON + 4 * MINUTE, [NOON]),
        (NOON + 5 * MINUTE, [NOON]),
        (NOON + 6 * MINUTE, [NOON, NOON + 5 * MINUTE]),
    ],
)
def test_a_stop_ends_the_wait_for_the_next_start(stop: datetime, expected: list[datetime]) -> None:
    clock = Clock(stop)
    assert list(starts(Schedule.parse("5m"), clock.wait, clock)) == expected


def test_a_clock_that_is_set_while_waiting_is_believed() -> None:
    clock = Clock()
    waits = []

    def wait_while_the_clock_is_set(seconds: float) -> bool:
        waits.append(seconds)
        clock.now = NOON + timedelta(days=1)
        return False

    following = starts(Schedule.parse("0 12 * * *"), wait_while_the_clock_is_set, clock)
    assert next(following) == NOON + timedelta(days=1)
    assert waits == [60, 0]
