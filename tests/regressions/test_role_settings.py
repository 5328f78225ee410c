"""Settings of the role or the database bend neither values nor a copy that takes its time."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import headrace
from headrace.testing.database import Database
from replicated import assert_equal, write_project

SETTINGS = (
    "datestyle = 'German, DMY'",
    "timezone = 'America/New_York'",
    "intervalstyle = 'sql_standard'",
    "extra_float_digits = -5",
    "bytea_output = 'escape'",
    "search_path = 'nowhere'",
    "quote_all_identifiers = on",
    "standard_conforming_strings = off",
    "array_nulls = off",
    "row_security = off",
    "default_transaction_isolation = 'serializable'",
    "statement_timeout = '300ms'",
    "lock_timeout = '50ms'",
    "idle_in_transaction_session_timeout = '100ms'",
)
NEWER_SETTINGS = (
    (140000, "idle_session_timeout = '100ms'"),
    (170000, "transaction_timeout = '300ms'"),
)


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A superuser's role of its own, with every setting that could harm."""
    name = f"role_{secrets.token_hex(6)}"
    ((version,),) = database.execute("select current_setting('server_version_num')::int")
    newer = [setting for since, setting in NEWER_SETTINGS if version >= since]
    database.execute(f"create role {name} login superuser password 'test'")
    for setting in (*SETTINGS, *newer):
        database.execute(f"alter role {name} in database {database.name} set {setting}")
    yield name
    database.execute(f"drop owned by {name}; drop role {name}")


def assert_somebody_waits(session: psycopg.Connection[Any], database: str) -> None:
    """Come back when a backend waits for a lock, after longer than the role's limits allow."""
    waiting = "select 1 from pg_stat_activity where datname = %s and wait_event_type = 'Lock'"
    while session.execute(waiting, [database]).fetchone() is None:
        session.execute("select pg_sleep(0.01), pg_stat_clear_snapshot()")
    session.execute("select pg_sleep(0.5)")


def test_settings_of_the_role_change_no_value_and_end_no_copy(
    database: Database, tmp_path: Path, role: str
) -> None:
    database.execute(
        "create table items (id int primary key, at timestamptz, f float8, b bytea, d date);"
        "insert into items select n, '2026-07-01 10:00+3', 0.1::float8 + 0.2, '\\x00ff',"
        " '2026-01-02' from generate_series(1, 1000) n"
    )
    dsn = make_conninfo(database.dsn, user=role, password="test")
    project = headrace.load(write_project(tmp_path, dsn))
    with database.connect(autocommit=False) as session, ThreadPoolExecutor(1) as pool:
        session.execute("lock table items in access exclusive mode")
        run = pool.submit(project.run, once=True)
        assert_somebody_waits(session, database.name)
        session.rollback()
        assert run.result() == []
    database.execute("insert into items select id + 1000, at, f, b, d from items")
    assert project.run(once=True) == []
    assert_equal(database, tmp_path, ["items"])
