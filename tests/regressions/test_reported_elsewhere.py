"""Failures that were reported of other systems, and that no other test would find here.

docs/explanation/what-breaks-others.md has them all, each with its test.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

import headrace
from headrace.engine.runner import RunView
from headrace.engine.table_state import Phase
from headrace.log import CommitDraft, LogWriter, Manifest
from headrace.testing.database import Database
from replicated import PUBLICATION, assert_equal, write_project

PATIENCE = 60.0  # seconds; only a test that fails waits as long
SLOW = 3.0  # seconds that a commit takes
IMPATIENT = "1s"  # after which the server gives up a client that it does not hear from


def run_until(
    project: Path, condition: Callable[[RunView], bool], tick: Callable[[RunView], None]
) -> None:
    """Run; stop when `condition` holds, or when it has not for too long."""
    stop, met = threading.Event(), threading.Event()
    gave_up = threading.Timer(PATIENCE, stop.set)

    def look(views: Sequence[RunView]) -> None:
        tick(views[0])
        if condition(views[0]):
            met.set()
            stop.set()

    gave_up.start()
    try:
        assert headrace.load(project).run(stop=stop, on_tick=look) == []
    finally:
        gave_up.cancel()
    assert met.is_set(), "waited in vain"


@pytest.fixture
def slow_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits of the change log that hold rows take their time."""
    commit = LogWriter.commit

    def slowly(log: LogWriter, draft: CommitDraft) -> Manifest:
        if draft.files:
            threading.Event().wait(SLOW)
        return commit(log, draft)

    monkeypatch.setattr(LogWriter, "commit", slowly)


@pytest.mark.usefixtures("slow_commits")
def test_a_commit_that_takes_longer_than_the_servers_patience_costs_no_connection(
    database: Database, tmp_path: Path
) -> None:
    database.execute("create table items (id int primary key)")
    database.execute(f"alter database {database.name} set wal_sender_timeout = '{IMPATIENT}'")
    project = write_project(tmp_path, database.dsn)
    written, senders = threading.Event(), set()

    def write(view: RunView) -> None:
        walsender = "select active_pid from pg_replication_slots where slot_name = 'headrace_shop'"
        senders.update(database.execute(f"{walsender} and active"))
        copied = [copy.done for copy in view.copier.progress.values()]
        if view.capture.progress.connected and copied == [True] and not written.is_set():
            database.execute("insert into items select generate_series(1, 10)")
            written.set()

    run_until(project, lambda view: view.rows_applied >= 10, write)
    assert len(senders) == 1, "the server ended the connection"
    assert_equal(database, tmp_path, ["items"])


def test_tables_of_a_database_where_nobody_writes_are_loaded_and_followed(
    database: Database, tmp_path: Path
) -> None:
    database.execute("create table items as select generate_series(1, 10) id")
    database.execute(
        "alter table items add primary key (id); create table bare (id int primary key)"
    )
    project = write_project(tmp_path, database.dsn)

    def followed(view: RunView) -> bool:
        (materialization,) = view.materializations
        return {s.phase for s in materialization.tables.values()} == {Phase.STREAMING}

    run_until(project, followed, lambda _: None)
    assert_equal(database, tmp_path, ["items", "bare"])


def test_many_rows_of_one_foreign_key_stay_many(database: Database, tmp_path: Path) -> None:
    """The first column, and the first constraint, is the foreign key."""
    database.execute(
        "create table parents (id int primary key); insert into parents values (1), (2);"
        "create table children (parent int references parents, id int primary key, v text);"
        "insert into children select 1, g, 'snapshot' from generate_series(1, 10) g"
    )
    project = headrace.load(write_project(tmp_path, database.dsn))
    assert project.run(once=True) == []
    database.execute("insert into children select 1, g, 'stream' from generate_series(11, 20) g")
    database.execute("update children set parent = 2 where id % 2 = 0")
    database.execute("delete from children where id in (1, 11)")
    assert project.run(once=True) == []
    assert_equal(database, tmp_path, ["parents", "children"])


RELATIONS = "select array_agg(oid::regclass::text order by oid) from pg_class where oid >= 16384"


@pytest.fixture
def reader(database: Database) -> Iterator[str]:
    """The DSN of a role that may replicate and read, and nothing else."""
    name = f"reader_{secrets.token_hex(6)}"
    database.execute(f"create role {name} login replication password 'reads'")
    yield make_conninfo(database.dsn, user=name, password="reads")
    database.execute(f"drop owned by {name}; drop role {name}")


def test_a_role_that_owns_nothing_is_enough_and_leaves_only_a_slot(
    database: Database, tmp_path: Path, reader: str
) -> None:
    name = next(part for part in reader.split() if part.startswith("user=")).removeprefix("user=")
    database.execute(
        "create table items as select g as id, 'old' as name from generate_series(1, 100) g;"
        "alter table items add primary key (id);"
        f"create publication {PUBLICATION} for table items; grant select on items to {name}"
    )
    before = database.execute(RELATIONS)
    project = headrace.load(write_project(tmp_path, reader))
    assert project.run(once=True) == []
    database.execute("update items set name = 'new' where id < 50; delete from items where id = 7")
    assert project.run(once=True) == []
    assert_equal(database, tmp_path, ["items"])
    assert database.execute(RELATIONS) == before
    slots = "select slot_name from pg_replication_slots where database = %s"
    assert database.execute(slots, [database.name]) == [(PUBLICATION,)]  # the same name
