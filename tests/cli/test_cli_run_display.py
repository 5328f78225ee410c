"""What is told of a run, made from numbers alone."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from headrace.cli.display import PROGRESS_INTERVAL, SHOWN_COPIES, RunLog, live_view
from headrace.cli.events import Event, happenings, progress
from headrace.cli.numbers import (
    CopyNumbers,
    RunNumbers,
    StreamNumbers,
    SyncNumbers,
    TableNumbers,
    read_numbers,
)
from headrace.engine.judging import RuleCount
from headrace.engine.sync_state import SyncState, SyncTarget, SyncView
from headrace.engine.table_state import Phase
from headrace.errors import ConfigError
from headrace.model import Checkpoint, Lsn, RowCounts, TableId, TableVersion

UP = StreamNumbers("p", connected=True)
DOWN = StreamNumbers("p", connected=False)
AWAY = replace(DOWN, error="refused")


def lines(before: RunNumbers | None, now: RunNumbers) -> list[str]:
    return [str(event) for event in happenings(before, now)]


def in_phase(phase: Phase, error: str | None = None) -> TableNumbers:
    return TableNumbers("p", "public.t", phase, error=error)


def shown(*history: RunNumbers) -> str:
    console = Console(width=120, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(live_view(history))
    return captured.get()


# -- log lines -------------------------------------------------------------------------------------


def test_each_change_of_state_is_one_line_and_no_change_is_none():
    moments = [
        RunNumbers(0, streams=(DOWN,), tables=(in_phase(Phase.WAITING),)),
        RunNumbers(1, streams=(UP,), tables=(in_phase(Phase.LOADING),)),
        RunNumbers(2, streams=(UP,), tables=(in_phase(Phase.STREAMING),)),
        RunNumbers(3, streams=(UP,), tables=(in_phase(Phase.STREAMING),), captured=9),
        RunNumbers(4, streams=(AWAY,), tables=(in_phase(Phase.STREAMING),)),
    ]
    told = [lines(a, b) for a, b in zip([None, *moments], moments, strict=False)]
    assert told == [
        [],
        ["stream_connected pipelines=p", "table pipeline=p table=public.t phase=loading"],
        ["table pipeline=p table=public.t phase=streaming"],
        [],
        ["stream_lost pipelines=p", "source_retrying pipelines=p error=refused"],
    ]


def test_a_copy_is_told_at_its_start_and_at_its_end():
    copies = [
        CopyNumbers("public.t", 0, 0),  # nothing is known of it yet
        CopyNumbers("public.t", 100, 0),
        CopyNumbers("public.t", 100, 50),
        CopyNumbers("public.t", 100, 98, done=True),
        CopyNumbers("public.t", 100, 98, done=True),
    ]
    moments = [RunNumbers(at, copies=(copy,)) for at, copy in enumerate(copies)]
    told = [line for a, b in zip([None, *moments], moments, strict=False) for line in lines(a, b)]
    assert told == [
        "copy_started table=public.t rows_expected=100",
        "copy_finished table=public.t rows=98",
    ]


def test_a_failure_is_an_error_with_its_reason_on_one_line():
    now = RunNumbers(0, tables=(in_phase(Phase.FAILED, 'no "x"\nhint: resync'),))
    (event,) = happenings(None, now)
    assert event.level == logging.ERROR
    assert str(event).endswith(r'phase=failed error="no \"x\"\nhint: resync"')


def test_a_lost_source_is_a_warning_each_time_its_reason_changes():
    first = list(happenings(RunNumbers(0, (UP,)), RunNumbers(1, (AWAY,))))
    assert [(e.name, e.level) for e in first] == [
        ("stream_lost", logging.WARNING),
        ("source_retrying", logging.WARNING),
    ]
    assert lines(RunNumbers(1, (AWAY,)), RunNumbers(2, (AWAY,))) == []


def test_progress_is_a_rate_over_the_time_between():
    before = RunNumbers(10.0, captured=100)
    written = RowCounts(700, 2)
    now = RunNumbers(20.0, (), (), (), 1100, 900, written, lag_bytes=5000, lag_seconds=1.26)
    assert str(progress(before, now)) == (
        "progress changes=1100 changes_per_second=100 applied=900 upserted=700 deleted=2"
        " lag_bytes=5000 lag_seconds=1.3 failed_tables=0"
    )


def test_progress_tells_of_rows_while_copying_only():
    copying = RunNumbers(0, copies=(CopyNumbers("a", 10, 4), CopyNumbers("b", 5, 5, done=True)))
    assert progress(copying, copying).fields["rows_copied"] == 9
    copied = RunNumbers(0, copies=(CopyNumbers("b", 5, 5, done=True),))
    assert "rows_copied" not in progress(copied, copied).fields


def test_a_quiet_run_reports_at_its_interval_and_at_its_end():
    told: list[Event] = []
    log = RunLog(told.append)
    for tick in range(1 + int(2.5 * PROGRESS_INTERVAL)):
        log.look(RunNumbers(float(tick), captured=tick))
    assert [event.fields["changes"] for event in told] == [10, 20]
    log.close()
    assert told[-1].fields["changes"] == 25


# -- the live view ---------------------------------------------------------------------------------


def test_a_copy_shows_rows_speed_and_the_time_left():
    table = in_phase(Phase.WAITING)
    before = RunNumbers(0.0, (UP,), (CopyNumbers("public.t", 10_000, 1000),), (table,))
    now = RunNumbers(2.0, (UP,), (CopyNumbers("public.t", 10_000, 5000),), (table,))
    row = shown(before, now).splitlines()[0].split()
    assert row[0] == "public.t"
    assert " ".join(row[2:]) == "5,000 rows 2,000/s 2 s left" or " ".join(row[2:]).endswith(
        "5,000 rows 2,000/s 2.5 s left"
    )


def test_an_estimate_that_was_too_low_promises_nothing():
    copy = CopyNumbers("public.t", 100, 5000)
    text = shown(
        RunNumbers(0.0, copies=(copy,)), RunNumbers(1.0, copies=(replace(copy, rows=9000),))
    )
    assert "9,000 rows" in text
    assert "left" not in text


def test_many_tables_leave_room_and_those_in_progress_come_first():
    copies = [CopyNumbers(f"public.t{n}", 10, 10, done=True) for n in range(30)]
    copies.append(CopyNumbers("public.busy", 10, 3))
    text = shown(RunNumbers(0.0, copies=tuple(copies)))
    assert text.startswith("public.busy")
    assert len(text.splitlines()) == SHOWN_COPIES + 2
    assert "31 tables, 30 copied" in text


def test_after_the_copy_one_line_tells_speed_and_lag():
    before = RunNumbers(0.0, (UP,), captured=0)
    now = RunNumbers(2.0, (UP,), captured=5000, applied=4900, lag_bytes=12_000, lag_seconds=0.2)
    (line,) = shown(before, now).splitlines()
    assert "2,500 changes/s" in line
    assert "5,000 captured, 4,900 applied" in line
    assert "lag 12.0 kB, 0.2 s" in line


def test_a_failed_table_stays_in_sight_with_its_reason():
    now = RunNumbers(0.0, (UP,), tables=(in_phase(Phase.FAILED, "no room\x1b[2J\nhint: x"),))
    text = shown(now)
    assert "1 of 1 tables failed" in text
    assert "public.t: no room\\x1b[2J" in text


# -- tables that follow versions -------------------------------------------------------------------

SYNCED = SyncNumbers("s", "crm.t", Phase.STREAMING, version=12, head=12, lag_versions=0)
BEHIND = replace(SYNCED, head=15, lag_versions=3, lag_seconds=4.2)


def test_a_synced_table_shows_its_version_and_how_far_it_is_behind():
    now = RunNumbers(2.0, tables=(replace(BEHIND, applied=500),), applied=500, lag_seconds=4.2)
    first, last = shown(RunNumbers(0.0, tables=(SYNCED,)), now).splitlines()
    assert first.split() == [
        "crm.t",
        "streaming",
        "version",
        "12",
        "of",
        "15,",
        "4.2",
        "s",
        "behind",
        "500",
        "rows",
    ]
    assert "watching   250 rows/s   500 applied   lag 3 versions, 4.2 s" in last
    assert "captured" not in last


def test_a_capture_and_a_sync_stand_in_one_view():
    now = RunNumbers(0.0, (UP,), tables=(in_phase(Phase.STREAMING), SYNCED), lag_bytes=2000)
    text = shown(now)
    assert "crm.t  streaming  version 12" in text
    assert "streaming   0 changes/s   0 captured, 0 applied   lag 2.0 kB, 0 versions" in text


def test_tables_that_need_a_look_come_first():
    tables = [replace(SYNCED, table=f"crm.t{n}") for n in range(30)]
    tables += [
        replace(BEHIND, table="crm.behind"),
        replace(SYNCED, table="x.y", phase=Phase.FAILED),
    ]
    lines = shown(RunNumbers(0.0, tables=tuple(tables))).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["crm.behind", "x.y"]
    assert "and 20 more: headrace status" in lines[-2]


def test_broken_rules_and_what_was_out_of_the_ordinary_are_in_sight():
    table = replace(SYNCED, breaches=(("adult", 3), ("known", 0)), notice="rebuilt: log cleaned")
    text = shown(RunNumbers(0.0, tables=(table,)))
    assert "broken: adult 3" in text
    assert "known" not in text
    assert "crm.t: rebuilt: log cleaned" in text


def test_a_notice_and_the_first_breach_of_a_rule_are_one_line_each():
    broken = replace(SYNCED, breaches=(("adult", 1),), notice="compared whole tables")
    moments = [
        RunNumbers(0, tables=(SYNCED,)),
        RunNumbers(1, tables=(broken,)),
        RunNumbers(2, tables=(replace(broken, breaches=(("adult", 9),)),)),
    ]
    told = [lines(a, b) for a, b in zip([None, *moments], moments, strict=False)]
    assert told == [
        ["table pipeline=s table=crm.t phase=streaming version=12"],
        [
            'notice pipeline=s table=crm.t notice="compared whole tables"',
            "expectation_broken pipeline=s table=crm.t rule=adult rows=1",
        ],
        [],
    ]


def test_progress_of_a_sync_counts_versions_and_breaches():
    before = RunNumbers(10.0, tables=(SYNCED,))
    table = replace(BEHIND, breaches=(("adult", 2), ("known", 1)))
    now = RunNumbers(20.0, tables=(table,), applied=1000, lag_seconds=4.2)
    assert str(progress(before, now)) == (
        "progress applied=1000 upserted=0 deleted=0 applied_per_second=100 lag_versions=3"
        " breaches=3 lag_seconds=4.2 failed_tables=0"
    )


def test_the_end_of_a_run_closes_its_stream_and_does_not_lose_it():
    going = RunNumbers(0, (UP,))
    closed = RunNumbers(1, (DOWN,))
    ended = replace(closed, at=2.0, ended=True)
    assert lines(going, closed) == lines(closed, ended) == []
    assert "● ended" in shown(going, closed, ended)


# -- what is read of a run -------------------------------------------------------------------------


def view(**state: Any) -> SyncView:
    target = cast(SyncTarget, None)  # nothing is read of it
    return SyncView("s", {TableId("crm", "t"): SyncState(target, **state)})


def test_a_sync_is_read_as_numbers():
    head = TableVersion("log", 9, datetime.now(UTC))
    counted = SimpleNamespace(counts={"adult": RuleCount(checked=100, breaches=4)})
    at = Checkpoint("log", 7, Lsn(7))
    now = read_numbers(
        [
            view(
                phase=Phase.STREAMING,
                checkpoint=at,
                head=head,
                behind_since=datetime.now(UTC) - timedelta(hours=1),
                applied_rows=50,
                transforms=[counted],
                notice="told",
            )
        ]
    )
    (table,) = now.syncs
    assert (table.table, table.version, table.head, table.lag_versions) == ("crm.t", 7, 9, 2)
    assert (table.breaches, table.notice, now.applied) == ((("adult", 4),), "told", 50)
    assert now.lag_versions == 2
    assert now.lag_seconds >= 3600
    assert (now.streams, now.copies) == ((), ())


def test_a_table_that_is_read_whole_is_a_copy_until_it_is_at_the_destination():
    loading = view(phase=Phase.LOADING, copied_rows=40, expected_rows=100)
    assert read_numbers([loading]).copies == (CopyNumbers("crm.t", 100, 40),)
    assert read_numbers([loading]).copying
    at = Checkpoint("log", 7, Lsn(7))
    loaded = view(phase=Phase.STREAMING, copied_rows=100, expected_rows=100, checkpoint=at)
    assert read_numbers([loaded]).copies == (CopyNumbers("crm.t", 100, 100, done=True),)
    failed = view(phase=Phase.FAILED, copied_rows=9, error=ConfigError("no", hint="x"))
    (copy,) = read_numbers([failed]).copies
    assert (copy.done, copy.ended) == (False, True)
