"""What each reader makes of the same tables is what docs/reference/readers.md says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import reading
from environment import heavy_python
from reader_tables import LivedTable, feeds, tables
from reading import FEED, READERS, canonical_rows

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "readers.md"
EVERYDAY = ("deltalake", "duckdb", "polars")  # which every developer has
FED = ("deltalake", "spark")  # which have a function for the Change Data Feed
TITLES = {
    "deltalake": "deltalake",
    "duckdb": "DuckDB",
    "polars": "Polars",
    "chdb": "chdb",
    "pysail": "pysail",
    "daft": "daft",
    "spark": "Spark",
}


@cache
def matrix() -> dict[str, dict[str, str]]:
    """The page's verdicts, by reader and table; footnotes are left out."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    head, *rest = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    names = {title: reader for reader, title in TITLES.items()}
    return {
        names[title]: {
            re.sub(r".*<!-- (\w+) -->", r"\1", row[0]): row[column].partition(" ")[0]
            for row in rest
            if "<!--" in row[0]
        }
        for column, title in enumerate(head)
        if title in names
    }


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> list[LivedTable]:
    root = tmp_path_factory.mktemp("readers")
    return [*tables(root), *feeds(root)]


def read_by(reader: str, asked: Sequence[LivedTable]) -> list[str]:
    """What a reader makes of each table: exact, differs or refuses."""
    python = sys.executable if reader in EVERYDAY else heavy_python()
    done = subprocess.run(
        [str(python), reading.__file__, reader],
        input=json.dumps([table.asked() for table in asked]),
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    lines = [line.partition(" ")[2] for line in done.stdout.splitlines() if "answer {" in line]
    assert len(lines) == len(asked), f"{reader} gave up: {done.stderr[-2000:]}"
    return [_verdict(json.loads(line), table) for line, table in zip(lines, asked, strict=True)]


def _verdict(answer: dict[str, object], table: LivedTable) -> str:
    if "error" in answer:
        print(table.name, answer["error"])
        return "refuses"
    wanted = canonical_rows(table.rows)
    if answer["rows"] == json.loads(json.dumps(wanted)):
        return "exact"
    print(table.name, "has", answer["rows"], "instead of", wanted)
    return "differs"


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first of the heavy ones installs them all
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_makes_of_each_table_what_the_page_says(
    reader: str, lived: list[LivedTable]
) -> None:
    """Invariant 11: exact, or known not to be."""
    asked = [t for t in lived if reader in FED or not set(FEED) <= set(t.columns)]
    verdicts = dict(zip((table.name for table in asked), read_by(reader, asked), strict=True))
    assert verdicts == {name: said for name, said in matrix()[reader].items() if said != "—"}
