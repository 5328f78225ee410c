"""A table that somebody holds locked, to alter it for one: the others go on, and it is told who."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import headrace
from headrace.connectors.postgres import check
from headrace.project import Project
from headrace.testing.database import Database
from replicated import destination_rows, source_rows, write_project

WAITING = """
select pg_sleep(0.01) from pg_stat_activity
 where datname = current_database() and application_name = 'headrace' and wait_event_type = 'Lock'
"""


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    database.execute("create table locked (id int primary key)")
    database.execute("create table others (id int primary key)")
    return headrace.load(write_project(tmp_path, database.dsn))


@contextmanager
def altering(database: Database, table: str) -> Iterator[int]:
    """The process that does."""
    with database.connect(autocommit=False) as session:
        session.execute(f"alter table {table} add column more int".encode())
        yield session.info.backend_pid
        session.rollback()


def test_invariant_9_a_run_begins_and_goes_on_while_somebody_alters_a_table(
    database: Database, tmp_path: Path, project: Project
) -> None:
    """Of several tables that it has; what came to the locked one before arrives, too."""
    assert project.run(once=True) == []
    database.execute("insert into locked values (1)")
    before = source_rows(database, "locked")
    with altering(database, "locked"):
        database.execute("insert into others values (1)")
        assert project.run(once=True) == []
        assert destination_rows(tmp_path, "others") == source_rows(database, "others")
        assert destination_rows(tmp_path, "locked") == before


def test_status_names_who_has_locked_a_table_that_a_run_waits_for(
    database: Database, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table cannot be published while it is locked."""
    monkeypatch.setattr(check, "LOCK_TIMEOUT", "60s")
    with ThreadPoolExecutor(1) as pool:
        with altering(database, "locked") as pid:
            run = pool.submit(project.run, once=True)
            while not database.execute(WAITING):
                assert not run.done()
            waits = "".join(project.status().captures[0].waits)
            assert "table public.locked" in waits
            assert f"SELECT pg_terminate_backend({pid})" in waits
        assert run.result(60) == []
