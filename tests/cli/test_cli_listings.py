"""What a person is shown is whole, or says that it is not."""

from __future__ import annotations

import pyarrow as pa
from rich.console import Console, RenderableType

from headrace.cli.listings import SHOWN_ROWS, findings_view, rows_view, verification_view
from headrace.model import Lsn, TableId
from headrace.model.finding import Finding, Severity
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


def test_a_difference_names_its_rows():
    table = TableVerification("p", TableId("public", "t"), Lsn(9), 10, 1, 0, ("id=7",))
    lines = shown(verification_view([table]))
    assert lines[-1] == "0 of 1 tables equal their source"
    assert "public.t differs at id=7" in lines
