"""What a person is shown is whole, or says that it is not."""

from __future__ import annotations

import pyarrow as pa
from rich.console import Console, RenderableType

from headrace.cli.listings import (
    SHOWN_ROWS,
    findings_view,
    rows_view,
    status_view,
    verification_view,
)
from headrace.engine.table_state import Phase
from headrace.errors import VerificationImpossibleError
from headrace.model import Lsn, TableId
from headrace.model.finding import Finding, Severity
from headrace.status import CaptureStatus, Status, TableStatus
from headrace.verify import TableVerification


def shown(view: RenderableType) -> list[str]:
    console = Console(width=200, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_null_and_empty_text_are_told_apart_and_markup_is_text():
    rows = pa.table({"id": [1, 2], "name": [None, ""], "note": ["[red]x[/red]", "a\tb"]})
    assert [line.split() for line in shown(rows_view(rows))] == [
        ["id", "name", "note"],
        ["1", "null", "[red]x[/red]"],
        ["2", "a\\tb"],
        ["(2", "rows)"],
    ]


def test_rows_left_out_are_counted():
    lines = shown(rows_view(pa.table({"n": range(SHOWN_ROWS + 5)})))
    assert lines[-1] == "(the first 1,000 of 1,005 rows; --json prints all)"
    assert len(lines) == SHOWN_ROWS + 2


def test_what_is_in_order_is_counted_and_listed_on_demand():
    findings = [
        Finding(Severity.BLOCKER, "no-slot", "no slot is free", fix="raise", sql=("ALTER x",)),
        Finding(Severity.OK, "wal-level", "wal_level is logical"),
    ]
    brief, full = (shown(findings_view(findings, everything=e)) for e in (False, True))
    assert brief[-1] == "1 blocker, 0 warnings, 1 in order"
    assert any("no slot is free" in line for line in brief)
    assert not any("wal_level" in line for line in brief)
    assert any("wal_level is logical" in line for line in full)
    assert any("ALTER x" in line for line in brief)


def test_each_verdict_says_why_a_table_is_not_equal():
    name = TableId("crm", "t")
    stopped = VerificationImpossibleError("crm.t has stopped", hint="headrace status")
    tables = [
        TableVerification("p", name, None, 10, 0, 0, version=3),
        TableVerification("p", name, None, 10, 0, 0, version=3, quarantined=2),
        TableVerification("p", name, None, 0, 0, 0, problem=stopped),
        TableVerification("p", name, None, 9, 1, 0, ("id=7",), 3, 2, stopped),
    ]
    header, *lines, summary = shown(verification_view(tables))
    assert header.split()[-1] == "at"
    results = [line.split()[2] for line in lines[:4]]
    assert results == ["equal", "incomplete", "unproven", "different"]
    assert [line.split()[-1] for line in lines[:4]] == ["3", "3", "-", "3"]
    assert "crm.t: 2 rows in quarantine, not compared: headrace quarantine list" in lines
    assert lines[lines.index("crm.t: crm.t has stopped") + 1] == "hint: headrace status"
    assert "crm.t differs at id=7" in lines
    assert summary == "1 of 4 tables equal their source"


def test_a_difference_names_its_rows():
    table = TableVerification("p", TableId("public", "t"), Lsn(9), 10, 1, 0, ("id=7",))
    lines = shown(verification_view([table]))
    assert lines[-1] == "0 of 1 tables equal their source"
    assert "public.t differs at id=7" in lines


# -- status ----------------------------------------------------------------------------------------

CAPTURE = CaptureStatus("shop", None, 7, Lsn(16), None, None, None, error="away")
FOLLOWED = TableStatus(
    "p", "public.t", Phase.STREAMING, 10, Lsn(16), 100, 0.5, None, upserted=7, deleted=2
)
SYNCED = TableStatus(
    "s",
    "crm.t",
    Phase.STREAMING,
    5000,
    None,
    None,
    61.0,
    None,
    version=12,
    source_version=15,
    lag_versions=3,
    quarantined=2,
    breaches={"adult": 4, "known": 0},
    notice="rebuilt: the log was cleaned",
)


def test_a_status_of_both_directions_shows_each_in_its_own_terms():
    lines = shown(status_view(Status((CAPTURE,), (FOLLOWED, SYNCED))))
    rows = [line.split() for line in lines]
    assert any(row[:6] == ["p", "public.t", "streaming", "10", "7", "2"] for row in rows)
    assert [
        "s",
        "crm.t",
        "streaming",
        "5,000",
        "12",
        "15",
        "3",
        "versions",
        "1",
        "min",
        "1",
        "s",
        "2",
    ] in rows
    assert lines[-1] == "shop: away"
    assert "crm.t: rebuilt: the log was cleaned" in lines
    assert "crm.t: rows that broke a rule: adult 4" in lines
    assert "crm.t: 2 rows refused: headrace quarantine list" in lines


def test_a_status_without_captures_has_no_empty_table_of_them():
    lines = shown(status_view(Status((), (SYNCED,))))
    assert lines[0].split()[:3] == ["pipeline", "table", "phase"]
    assert not any("WAL" in line for line in lines)


def test_a_status_before_the_first_run_says_how_to_begin():
    assert shown(status_view(Status((), ()))) == ["no table has been copied yet: headrace run"]
