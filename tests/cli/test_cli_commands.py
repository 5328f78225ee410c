"""Commands that need no server, and pages that follow from the code."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headrace
from headrace import pgoutput
from headrace.cli import app
from headrace.config import json_schema

ROOT = Path(__file__).parents[2]
GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))
run = CliRunner()


@pytest.mark.parametrize("name", GENERATED["PAGES"])
def test_the_reference_page_is_what_the_code_says(name):
    written = (ROOT / "docs" / "reference" / name).read_text("utf-8")
    assert written == GENERATED["PAGES"][name](), "make docs writes it anew"


def test_every_command_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")
    names = [command.callback.__name__ for command in app.registered_commands]
    assert len(names) > 10
    inner = [info.typer_instance for info in app.registered_groups]
    names += [
        f"{group.info.name} {c.name or c.callback.__name__}"
        for group in inner
        for c in group.registered_commands
    ]
    assert "quarantine list" in names
    assert [name for name in names if f"## headrace {name}\n" not in page] == []


@pytest.mark.parametrize(
    ("kernel", "decoder"),
    [(True, "compiled pgoutput kernel"), (False, "plain Python pgoutput decoder")],
)
def test_the_version_tells_which_decoder_is_in_use(monkeypatch, kernel, decoder):
    monkeypatch.setattr(pgoutput, "KERNEL", kernel)
    done = run.invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"headrace {headrace.__version__} ({decoder})\n")


def test_schema_prints_the_schema_of_the_file():
    done = run.invoke(app, ["schema"])
    assert done.exit_code == 0
    assert json.loads(done.output) == json_schema()


def test_run_warns_where_the_kernel_is_missing(monkeypatch, shop):
    monkeypatch.setattr(pgoutput, "KERNEL", False)
    done = shop.inside("run", "--once")
    assert done.code == 0, done.err
    assert "warning: the compiled pgoutput kernel is missing" in done.err


def test_without_arguments_it_helps():
    assert "Usage: headrace" in run.invoke(app, []).output


def test_help_needs_nothing_heavy():
    """Completion calls the program at every key press."""
    script = (
        "import sys; from headrace.cli import app\n"
        "print([m for m in ('deltalake', 'psycopg', 'pydantic', 'polars') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
