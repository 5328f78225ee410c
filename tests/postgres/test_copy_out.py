"""Rows by COPY: whole or with an error, whatever cuts it short, and the session is free after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from headrace.connectors.postgres import copy_out as ways
from headrace.connectors.postgres.copy_out import copy_out
from headrace.pgcopy import KERNEL, Kind, ReferenceDecoder, Wanted
from headrace.testing.database import Database

COLUMNS = [Wanted(Kind.INT8, pa.int64()), Wanted(Kind.TEXT, pa.string())]
ROWS = 60_000  # some 12 MB: two batches, and more than a socket holds
QUERY = f"SELECT g::int8, repeat('x', 180) FROM generate_series(1, {ROWS}) g"


@pytest.fixture
def session(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with closing(database.connect(autocommit=True)) as opened:
        yield opened


# A set-returning function there is evaluated row by row, and not stored first.
ENDLESS = "SELECT generate_series(1, 1000000000)::int8, repeat('x', 180)"


def ids(session: psycopg.Connection[Any], query: str) -> list[int]:
    found = [rows.columns[0].values for rows in copy_out(session, query, COLUMNS)]
    return [n for values in found for n in values.to_pylist()]


@pytest.mark.parametrize("way", ["libpq", "psycopg", "reference"])
def test_all_rows_come_in_order_by_each_way(
    session: psycopg.Connection[Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "libpq" and not KERNEL:
        pytest.skip("installed without a compiler")
    if way != "libpq":
        monkeypatch.setattr(ways, "_LIBPQ", None)
    if way == "reference":
        monkeypatch.setattr(ways, "Decoder", ReferenceDecoder)
    assert ids(session, QUERY) == list(range(1, ROWS + 1))
    assert ids(session, "SELECT 1::int8, 'x' WHERE false") == []


def test_the_fast_way_is_taken_where_there_is_a_kernel() -> None:
    assert (ways._LIBPQ is not None) == KERNEL


def test_a_copy_that_is_given_up_leaves_its_session_free(session: psycopg.Connection[Any]) -> None:
    session.execute("BEGIN")
    session.execute("SAVEPOINT before")
    batches = copy_out(session, ENDLESS, COLUMNS)
    assert next(batches).rows > 0
    batches.close()
    session.execute("ROLLBACK TO SAVEPOINT before")
    assert ids(session, QUERY) == list(range(1, ROWS + 1))


def test_an_error_amid_the_rows_is_raised_and_leaves_the_session_free(
    session: psycopg.Connection[Any],
) -> None:
    failing = f"SELECT 1 / ({ROWS} - g), 'x' FROM generate_series(1, {ROWS}) g"
    with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero"):
        ids(session, failing.replace("1 /", "1::int8 /"))
    assert ids(session, QUERY) == list(range(1, ROWS + 1))


def test_a_query_that_is_refused_is_the_servers_own_error(
    session: psycopg.Connection[Any],
) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        ids(session, "SELECT * FROM not_there")
    assert ids(session, QUERY) == list(range(1, ROWS + 1))


def test_a_killed_backend_is_an_error_and_never_an_end(
    session: psycopg.Connection[Any], database: Database
) -> None:
    batches = copy_out(session, ENDLESS, COLUMNS)
    next(batches)
    database.execute("SELECT pg_terminate_backend(%s)", (session.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError):
        list(batches)
    assert session.closed
