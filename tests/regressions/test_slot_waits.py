"""Creating a slot waits for every open transaction: it is told who, and a stop ends the wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import pq

import headrace
from headrace.connectors.postgres import slots
from headrace.errors import SourceUnavailableError
from headrace.project import Project
from headrace.testing.database import Database, temporary_database
from headrace.testing.postgres import EmbeddedPostgres
from replicated import write_project

PATIENCE = 60.0  # seconds; only a test that fails waits as long
SLOTS = "select slot_name from pg_replication_slots where database = %s"


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    database.execute("create table items (id int primary key)")
    return headrace.load(write_project(tmp_path, database.dsn))


@contextmanager
def open_transaction(database: Database) -> Iterator[int]:
    with database.connect(autocommit=False) as session:
        session.execute("select pg_current_xact_id()")
        yield session.info.backend_pid
        session.rollback()


class Telling(logging.Handler):
    """Keeps what the log of a run says, and lets it be waited for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.told.set()


def run_until_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run until a warning tells who is waited for, then stop; the warning, and what status says."""
    telling, stop, logger = Telling(), threading.Event(), logging.getLogger("headrace.run")
    monkeypatch.setattr(slots, "TELL_AFTER", 0.1)
    logger.addHandler(telling)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(project.run, stop=stop)
        try:
            assert telling.told.wait(PATIENCE)
            waits = project.status().captures[0].waits
        finally:
            stop.set()
            logger.removeHandler(telling)
        assert run.result(PATIENCE) == []
    return "\n".join([*telling.texts, *waits])


def test_a_first_run_tells_whom_its_slot_waits_for_and_stops_without_leaving_one(
    database: Database, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_transaction(database) as pid:
        text = run_until_told(project, monkeypatch)
        assert f"pid={pid} " in text
        assert f"pg_terminate_backend({pid})" in text
        assert database.execute(SLOTS, [database.name]) == []


def test_a_snapshot_that_waits_is_told_and_stopped_too(
    database: Database, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project.run(once=True) == []
    before = database.execute(SLOTS, [database.name])
    database.execute("create table others (id int primary key); insert into others values (1)")
    with open_transaction(database) as pid:
        text = run_until_told(project, monkeypatch)
        assert f"pid={pid} " in text
        assert "a snapshot waits until a transaction ends that user" in text
        assert f": pid {pid}, application" in text
        assert database.execute(SLOTS, [database.name]) == before
    assert project.run(once=True) == []
    assert project.query("select * from public.others").num_rows == 1


def test_a_prepared_transaction_that_holds_up_the_slot_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        EmbeddedPostgres({"max_prepared_transactions": "2"}, fast=True) as server,
        temporary_database(server.dsn()) as database,
    ):
        database.execute("create table items (id int primary key)")
        with database.connect(autocommit=False) as session:
            session.execute("insert into items values (1)")
            session.execute("prepare transaction 'forgotten'")
        project = headrace.load(write_project(tmp_path, database.dsn))
        text = run_until_told(project, monkeypatch)
        assert "prepared='forgotten'" in text
        assert "may wait for the prepared transaction 'forgotten'" in text
        database.execute("rollback prepared 'forgotten'")


def test_a_slot_that_is_in_use_is_dropped_once_it_is_released_or_it_is_told_who_has_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `headrace destroy` finds it just after a run has ended."""
    with (
        psycopg.connect(f"{database.dsn} replication=database", autocommit=True) as replication,
        database.connect() as session,
        ThreadPoolExecutor(1) as pool,
    ):
        replication.execute("CREATE_REPLICATION_SLOT held TEMPORARY LOGICAL pgoutput")
        monkeypatch.setattr(slots, "RELEASE_PATIENCE", 0.0)
        with pytest.raises(SourceUnavailableError, match="is active for PID") as refused:
            slots.drop_slot(session, "held")
        assert "pg_terminate_backend" in refused.value.hint
        replication.execute("DROP_REPLICATION_SLOT held")
        replication.execute("CREATE_REPLICATION_SLOT held LOGICAL pgoutput")
        options = b"proto_version '1', publication_names 'p'"
        start = b"START_REPLICATION SLOT held LOGICAL 0/0 (%b)" % options
        result = replication.pgconn.exec_(start)
        assert result.status == pq.ExecStatus.COPY_BOTH, result.error_message
        monkeypatch.setattr(slots, "RELEASE_PATIENCE", PATIENCE)
        dropped = pool.submit(slots.drop_slot, session, "held")
        while not database.execute(f"{SLOTS} and active", [database.name]):
            pass
        replication.close()
        dropped.result()
    assert database.execute(SLOTS, [database.name]) == []
