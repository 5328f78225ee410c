"""What the pages show is what happens: every console, python and sql block is executed, in order.

A block that cannot be says why in a comment above it: `<!-- not executed: … -->`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pages import EXECUTABLE, ROOT, Block, blocks, name, pages
from place import Place
from terminal import Step, Terminal, difference, steps

from headrace.testing.duckdb_delta import delta_extension

GUIDES = [page for page in pages() if any(block.executed for block in blocks(page))]

SHOP = """
CREATE TABLE orders (id bigserial PRIMARY KEY, status text NOT NULL, total numeric(10, 2));
INSERT INTO orders (status, total) SELECT 'new', i FROM generate_series(1, 100) i;
"""
# What each page takes for granted; the others begin with an empty database.
DATABASES = {
    "README.md": SHOP,
    "docs/how-to/prepare-postgres.md": "CREATE TABLE audit_log (entry text);",
    "docs/how-to/read-the-tables.md": SHOP,
    "docs/how-to/run-at-night.md": SHOP,
    "docs/how-to/slots-and-wal.md": SHOP,
}
REPLICATED = (
    "docs/how-to/read-the-tables.md",
    "docs/how-to/run-at-night.md",
    "docs/how-to/slots-and-wal.md",
)
# What a page shows that servers before this version do not have.
SINCE = {
    "docs/how-to/large-transactions.md": 15,  # two_phase
    "docs/how-to/prepare-postgres.md": 18,  # publish_generated_columns
    "docs/how-to/slots-and-wal.md": 17,  # since when nobody reads from a slot
}
REPLICATE = (
    "headrace init --source-url '${DATABASE_URL}'",
    "headrace run --once",
)


def of_its_version(page: Path):
    return pytest.param(page, id=name(page), marks=pytest.mark.since(SINCE.get(name(page), 13)))


@pytest.mark.slow
@pytest.mark.parametrize("page", [of_its_version(page) for page in GUIDES])
def test_every_block_of_a_page_does_what_the_page_shows(page: Path, place: Place) -> None:
    if before := DATABASES.get(name(page)):
        place.database.execute(before)
    with Terminal(place.folder, place.environment) as terminal:
        for command in REPLICATE if name(page) in REPLICATED else ():
            assert not terminal.run(Step(command, ()))
        for block in blocks(page):
            if block.executed:
                execute(block, place, terminal)


def execute(block: Block, place: Place, terminal: Terminal) -> None:
    if block.language == "console":
        for step in steps(block.text):
            wrong = terminal.run(step)
            assert not wrong, f"{block.where}: $ {step.command}\n{wrong}"
        return
    command = {
        "python": [sys.executable, "-W", "error", "-c", block.text],
        "sql": ["psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", place.environment["DATABASE_URL"]],
    }[block.language]
    if block.mark == "executed by DuckDB":
        command = [sys.executable, "-c", DUCKDB, str(delta_extension())]
    done = subprocess.run(
        command,
        check=False,
        input=block.text,
        capture_output=True,
        text=True,
        cwd=place.folder,
        env=place.environment,
    )
    assert not done.returncode, f"{block.where}\n{done.stdout}{done.stderr}"


# A wheel has the extension that DuckDB would fetch from the network.
DUCKDB = """
import duckdb, sys
with duckdb.connect(config={"allow_unsigned_extensions": "true"}) as connection:
    connection.execute(f"LOAD '{sys.argv[1]}'")
    assert connection.execute(sys.stdin.read()).fetch_arrow_table().num_rows
"""


def test_a_block_that_is_not_executed_says_why() -> None:
    for page in pages():
        for block in blocks(page):
            assert not block.mark or block.language in EXECUTABLE, block.where
            reason = block.mark.partition(":")[2].strip()
            assert block.executed or block.language not in EXECUTABLE or reason, block.where


def test_the_guides_are_found() -> None:
    assert {"README.md", "docs/tutorials/getting-started.md"} <= set(map(name, GUIDES))


def test_make_targets_that_a_page_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in pages():
        for block in blocks(page):
            for step in steps(block.text) if block.language == "console" else ():
                if step.command.startswith("make "):
                    assert f"\n{step.command.split()[1]}:" in makefile, block.where


# -- the comparison itself -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (("10 rows",), "10 rows\n"),
        (("at 0/…, equal",), "at 0/1A2B, equal\n"),
        (("id   name", " 1   a"), "id  name\n 1  a   \n"),
        (("first", "…", "last"), "first\nlast\n"),
        (("first", "…", "last"), "first\nsecond\nthird\nlast\n"),
        (("a (b) [c] *",), "a (b) [c] *\n"),
    ],
)
def test_output_as_shown_is_accepted(shown: tuple[str, ...], printed: str) -> None:
    assert not difference(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (("10 rows",), "11 rows\n"),
        (("10 rows",), "10 rows\nwarning: more\n"),
        (("10 rows", "done"), "10 rows\n"),
        (("at 0/…, equal",), "at 0/1A2B, different\n"),
        (("at …",), "at 1\nand at 2\n"),
        (("first", "…", "last"), "first\nsecond\n"),
        ((".*",), "anything\n"),
    ],
)
def test_output_that_drifted_is_refused_with_a_diff(shown: tuple[str, ...], printed: str) -> None:
    assert "+++" in difference(shown, printed)


def test_a_failing_command_is_refused(tmp_path: Path) -> None:
    with Terminal(tmp_path, {"PATH": "/usr/bin:/bin"}) as terminal:
        assert terminal.run(Step("exit_code() { return 3; }; exit_code", ())).startswith(
            "exit code 3"
        )
        assert not terminal.run(Step("true", ()))
