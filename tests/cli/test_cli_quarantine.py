"""`headrace quarantine` and `headrace undo`: what they ask of a project, and what they show."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from headrace.cli import app
from headrace.connectors.postgres.bisection import Operation
from headrace.connectors.postgres.parked import ParkedRow
from headrace.errors import ConfigError
from headrace.model import TableId

AT = datetime(2026, 11, 3, 12, 30, tzinfo=UTC)
ROW = ParkedRow(
    id=12,
    table=TableId("app", "profiles"),
    pipeline="lake_to_shop",
    operation=Operation.UPSERT,
    key=("7",),
    code="over_long_text",
    reason="value too long for type character varying(3)",
    sqlstate="22001",
    constraint_schema="",
    constraint_table="",
    constraint="",
    column="code",
    log_id="1f0e",
    version=41,
    parked_at=AT,
    tried_at=AT,
    attempts=2,
    row=pa.table({"id": [7], "code": ["ABCD\x1b[2J"], "note": [None]}),
)


@dataclass
class FakeProject:
    """Notes what it is asked for."""

    rows: list[ParkedRow] = field(default_factory=lambda: [ROW, replace(ROW, id=13, key=())])
    left: dict[int, str] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def applied(self) -> int:
        return len(self.rows) - len(self.left)

    def quarantine(self, table=None, pipeline=None):
        self.asked.append(("list", table, pipeline))
        return self.rows

    def quarantined(self, number, pipeline=None):
        self.asked.append(("show", number, pipeline))
        if number != ROW.id:
            raise ConfigError(f"no row {number} is in quarantine", hint="headrace quarantine list")
        return ROW

    def retry(self, ids=(), table=None, pipeline=None):
        self.asked.append(("retry", tuple(ids), table, pipeline))
        return self

    def drop_quarantined(self, ids=(), table=None, pipeline=None):
        self.asked.append(("drop", tuple(ids), table, pipeline))
        return 2

    def undo(self, table):
        self.asked.append(("undo", table))
        return f"{table} holds again what it held on Monday"


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> FakeProject:
    made = FakeProject()
    monkeypatch.setattr("headrace.project.load", lambda _: made)
    return made


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(app, arguments, **options)


def test_a_list_tells_each_row_with_its_reason(project):
    done = run("quarantine", "list", "app.profiles", "--pipeline", "lake_to_shop")
    assert project.asked == [("list", "app.profiles", "lake_to_shop")]
    first = done.stdout.splitlines()[1].split()
    assert first[:4] == ["12", "app.profiles", "7", "upsert"]
    assert "over_long_text: value too long for type character varying(3)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 in quarantine")


def test_an_empty_quarantine_is_told(project):
    project.rows = []
    assert run("quarantine", "list").stdout == "no row is in quarantine\n"
    assert run("quarantine", "list", "--json").stdout == ""


def test_a_list_for_programs_holds_no_values_of_rows(project):
    lines = run("quarantine", "list", "--json").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == [12, 13]
    assert records[0]["table"] == "app.profiles"
    assert (records[0]["sqlstate"], records[0]["constraint"]) == ("22001", None)
    assert records[0]["parked_at"] == "2026-11-03T12:30:00+00:00"
    assert "ABCD" not in "".join(lines)


def test_one_row_is_shown_whole_and_nothing_in_it_is_obeyed_by_a_terminal(project):
    done = run("quarantine", "show", "12")
    assert project.asked == [("show", 12, None)]
    assert "ABCD\\x1b[2J" in done.stdout
    assert "upsert, of source version 41" in done.stdout
    assert "headrace quarantine retry 12" in done.stdout
    shown = json.loads(run("quarantine", "show", "12", "--json").stdout)
    assert shown["row"] == {"id": 7, "code": "ABCD\x1b[2J", "note": None}


def test_a_row_that_is_not_there_is_wrong_use(project):
    done = run("quarantine", "show", "99")
    assert (done.exit_code, "no row 99" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["12", "13"], ((12, 13), None, None)),
        (["--table", "app.profiles"], ((), "app.profiles", None)),
        (["--all", "--pipeline", "p"], ((), None, "p")),
    ],
)
def test_a_retry_tries_what_was_chosen(project, arguments, asked):
    done = run("quarantine", "retry", *arguments)
    assert (done.exit_code, project.asked) == (0, [("retry", *asked)])
    assert done.stdout == "2 applied, 0 refused again\n"


def test_a_retry_that_leaves_rows_fails_and_says_why(project):
    project.left = {13: "still too long"}
    done = run("quarantine", "retry", "--all")
    assert done.exit_code == 1
    assert done.stdout == "1 applied, 1 refused again\n  13: still too long\n"
    again = run("quarantine", "retry", "--all", "--json")
    assert json.loads(again.stdout) == {"applied": 1, "left": {"13": "still too long"}}


@pytest.mark.parametrize("command", ["retry", "drop"])
@pytest.mark.parametrize("arguments", [[], ["12", "--all"], ["--all", "--table", "a.b"]])
def test_rows_are_chosen_in_exactly_one_way(project, command, arguments):
    done = run("quarantine", command, *arguments)
    assert (done.exit_code, project.asked) == (2, [])
    assert f"headrace quarantine {command} 12 13" in done.stderr


def test_dropping_asks_first(project):
    refused = run("quarantine", "drop", "--all")
    assert (refused.exit_code, project.asked) == (2, [])
    assert "--yes agrees beforehand" in refused.stderr
    done = run("quarantine", "drop", "12", "--yes")
    assert project.asked == [("drop", (12,), None, None)]
    assert done.stdout == "2 dropped\n"


def test_undo_asks_first_and_tells_what_it_did(project):
    assert run("undo", "app.profiles").exit_code == 2
    assert project.asked == []
    done = run("undo", "app.profiles", "--yes")
    assert project.asked == [("undo", "app.profiles")]
    assert done.stdout == "app.profiles holds again what it held on Monday\n"
