"""Recordings of a real server (record.py): what is decoded makes the tables that it had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from replay import apply, changes_of_columns, changes_of_messages, parse_all, read_frames

from headrace.pgoutput import ReferenceDecoder
from headrace.pgoutput import messages as m

FIXTURES = Path(__file__).parent / "fixtures"
TABLES: dict[str, dict[str, Any]] = json.loads((FIXTURES / "tables.json").read_text())
STREAMED = ("streamed_v2", "streamed_v4", "two_phase")


def recording(name: str) -> list[bytes]:
    return read_frames(FIXTURES / f"{name}.frames.gz")


def data_frames(name: str) -> list[bytes]:
    return [frame for frame in recording(name) if frame[:1] == b"w"]


def expected(name: str) -> dict[str, Any]:
    return {table: rows for table, rows in TABLES[name].items() if rows}


def made(tables: dict[str, Any]) -> dict[str, Any]:
    return {table: rows for table, rows in tables.items() if rows}


@pytest.mark.parametrize("name", ["simple", *STREAMED])
def test_the_messages_make_the_tables_of_the_server(name: str) -> None:
    """Versions 1, 2 and 4; streamed, partly and wholly aborted, prepared and rolled back."""
    assert expected(name)
    assert made(apply(changes_of_messages(parse_all(recording(name))))) == expected(name)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 1000], ids=lambda n: f"take every {n}")
@pytest.mark.parametrize("name", ["simple", *STREAMED])
def test_the_columns_make_the_tables_of_the_server(
    decoder: ReferenceDecoder, name: str, every: int
) -> None:
    """Invariants 4 and 6, as far as decoding goes: unchanged TOAST values are marked, not lost."""
    takes, frames = [], data_frames(name)
    for start in range(0, len(frames), every):
        decoder.push(frames[start : start + every])
        takes.append(decoder.take())
    assert made(apply(changes_of_columns(takes))) == expected(name)


def test_logical_messages_arrive_with_their_content(decoder: ReferenceDecoder) -> None:
    decoder.push(data_frames("simple"))
    seen = [(x.transactional, x.prefix, x.content) for x in decoder.take().messages]
    assert seen == [(True, "app", b"inside"), (False, "beat", b"\x00\xff"), (False, "end", b"")]


def test_binary_values_arrive_as_the_server_sends_them(decoder: ReferenceDecoder) -> None:
    decoder.push(data_frames("binary"))
    (batch,) = decoder.take().batches
    assert [column.to_arrow().to_pylist() for column in batch.new] == [[b"a"], [b"\x00\xff"]]
    assert {int(column.kinds[0]) for column in batch.new} == {m.BINARY}


def test_the_recordings_hold_every_message_but_origin() -> None:
    kinds = {type(x) for name in ("simple", *STREAMED) for x in parse_all(recording(name))}
    assert kinds == set(m.PgoutputMessage.__args__) - {m.Origin}


def test_version_4_aborts_bear_lsn_and_time_and_version_2_aborts_do_not() -> None:
    for name, has in {"streamed_v2": False, "streamed_v4": True}.items():
        aborts = [x for x in parse_all(recording(name)) if isinstance(x, m.StreamAbort)]
        assert [x.xid == x.subtransaction_xid for x in aborts] == [False, True]
        assert {x.abort_lsn is not None for x in aborts} == {has}
