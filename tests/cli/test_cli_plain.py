"""Values on their way to a program or to a terminal."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.plain import about, cell, duration, json_line, plain, prose, with_short_floats
from headrace.engine.table_state import Phase
from headrace.errors import ConfigError
from headrace.model import Lsn, TableId
from headrace.status import TableStatus


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Lsn.parse("16/B374D848"), "16/B374D848"),
        (TableId("public", "orders"), "public.orders"),
        (Phase.FAILED, "failed"),
        (Decimal("1.10"), "1.10"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (b"\x00\xff", "\\x00ff"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"),
        ([{"a": (1, None)}], [{"a": [1, None]}]),
        (2**63, 2**63),
        (True, True),
        (ConfigError("what", hint="do"), {"error": "what", "hint": "do"}),
    ],
)
def test_json_keeps_what_numbers_would_lose(value, expected):
    made = json.loads(json_line(value))
    assert made == expected
    assert type(made) is type(expected)


def test_a_dataclass_becomes_an_object_of_its_fields():
    status = TableStatus(
        "p", "public.t", Phase.STREAMING, 3, Lsn(1), None, 0.5, None, breaches={"a": 1}
    )
    assert plain(status) == {
        "pipeline": "p",
        "table": "public.t",
        "phase": "streaming",
        "rows_applied": 3,
        "lsn": "0/1",
        "lag_bytes": None,
        "lag_seconds": 0.5,
        "error": None,
        "version": None,
        "source_version": None,
        "lag_versions": None,
        "quarantined": None,
        "breaches": {"a": 1},
        "notice": None,
        "upserted": None,
        "deleted": None,
        "verified": None,
    }


@given(st.text())
def test_no_row_can_command_the_terminal(text):
    assert all(c.isprintable() or ord(c) >= 0xA0 for c in cell(text))
    assert all(c == "\n" or c.isprintable() or ord(c) >= 0xA0 for c in prose(text))


def test_an_escape_sequence_is_shown_and_not_obeyed():
    assert cell("\x1b[2Jhello\nthere\x9b") == "\\x1b[2Jhello\\nthere\\x9b"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (9.99, "10.0 s"), (42, "42 s"), (59.7, "1 min 0 s"), (7800, "2 h 10 min")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_single_precision_prints_as_postgres_prints_it() -> None:
    values = [0.1, 1e30, float("nan"), float("-inf"), None]
    rows = pa.table({"r": pa.array(values, pa.float32()), "d": pa.array(values, pa.float64())})
    shown = with_short_floats(rows)
    assert list(map(repr, shown["r"].to_pylist())) == list(map(repr, values))
    assert list(map(repr, shown["d"].to_pylist())) == list(map(repr, values))


def test_what_a_text_is_about_is_named_once() -> None:
    assert about("crm.people", "no such column") == "crm.people: no such column"
    assert about("crm.people", "crm.people: no such column") == "crm.people: no such column"
    assert about("crm.people", "crm.people has stopped") == "crm.people has stopped"
    assert about("crm.people", "crm.people2 has stopped") == "crm.people: crm.people2 has stopped"
