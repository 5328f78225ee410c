"""When a commit of the change log closes: pure, so that every case is one line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.engine.capture import CommitPolicy, Pending
from headrace.engine.retry import FIRST_DELAY, MAX_DELAY, Backoff

POLICY = CommitPolicy()
QUIET = Pending(
    bytes=0,
    rows=0,
    in_transaction=False,
    idle=True,
    behind=0,
    position_wanted=False,
    awaited=False,
    since_commit=1.0,
    commit_took=0.005,
)


def due(**changes: object) -> bool:
    return POLICY.due(replace(QUIET, **changes))  # type: ignore[arg-type]  # by field name


def test_nothing_to_commit_is_never_due() -> None:
    assert not due()
    assert not due(since_commit=1e9)


def test_rows_of_an_idle_stream_are_due_at_once() -> None:
    assert due(rows=1)


def test_half_a_transaction_is_never_due_for_age() -> None:
    assert not due(rows=1, in_transaction=True, since_commit=1e9)


def test_a_full_buffer_is_due_even_inside_a_transaction() -> None:
    assert due(rows=1, bytes=POLICY.max_bytes, in_transaction=True, idle=False, since_commit=0.0)


def test_a_busy_stream_is_due_after_the_longest_delay() -> None:
    assert not due(rows=1, idle=False, since_commit=POLICY.max_delay / 2, commit_took=0.0)
    assert due(rows=1, idle=False, since_commit=POLICY.max_delay, commit_took=0.0)


def test_dear_commits_are_followed_by_longer_rests() -> None:
    took = 0.2
    assert not due(rows=1, since_commit=POLICY.rest * took - 0.01, commit_took=took)
    assert due(rows=1, since_commit=POLICY.rest * took, commit_took=took)


def test_who_waits_for_a_position_does_not_wait_for_a_rest() -> None:
    assert due(rows=1, awaited=True, since_commit=0.0, commit_took=10.0)
    assert not due(rows=1, awaited=True, in_transaction=True)


def test_a_backlog_is_committed_in_even_parts() -> None:
    ample, took = POLICY.ample_bytes, 0.05
    assert due(rows=1, bytes=ample, commit_took=took, since_commit=POLICY.max_delay, idle=False)
    assert not due(rows=1, bytes=ample - 1, commit_took=took, since_commit=POLICY.max_delay)
    assert not due(rows=1, bytes=ample, in_transaction=True)


def test_parts_of_a_backlog_are_larger_where_a_commit_has_many_files() -> None:
    took = 0.2
    ample = int(POLICY.ample_rate * took)
    assert due(rows=1, bytes=ample, commit_took=took, since_commit=POLICY.max_delay)
    assert not due(rows=1, bytes=ample - 1, commit_took=took, since_commit=POLICY.max_delay)


def test_no_rest_is_longer_than_a_reader_may_wait() -> None:
    assert not due(rows=1, since_commit=POLICY.max_rest - 0.01, commit_took=10.0)
    assert due(rows=1, since_commit=POLICY.max_rest, commit_took=10.0)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_position_of_an_idle_source_is_recorded_when_asked_or_in_time(wanted: bool) -> None:
    soon, late = 0.5, POLICY.progress_interval
    assert due(behind=1, position_wanted=wanted, since_commit=soon) is wanted
    assert due(behind=1, position_wanted=wanted, since_commit=late)


def test_wal_of_other_databases_is_let_go_of_soon_and_in_large_pieces() -> None:
    much, rest = POLICY.progress_bytes, POLICY.progress_rest
    assert due(behind=much, since_commit=rest)
    assert not due(behind=much, since_commit=rest / 2)
    assert not due(behind=much - 1, since_commit=rest)
    assert not due(behind=much, in_transaction=True, since_commit=rest)


def test_backoff_doubles_to_its_bound_and_begins_anew_after_a_success() -> None:
    backoff = Backoff()
    delays = [backoff.next() for _ in range(12)]
    assert delays[:3] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
    assert delays[-1] == MAX_DELAY
    backoff.reset()
    assert backoff.next() == FIRST_DELAY
