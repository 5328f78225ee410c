"""A run killed before it has looked whether its new slot began beside changes of tables."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from test_crash_points import running_child

import headrace
from blind_ddl import BLIND_CHANGES, await_waiting, beginning_beside, write
from headrace.testing.database import Database
from live_run import LiveRun
from replicated import assert_equal, write_project
from workload import create_tables


def test_invariant_4_the_next_run_begins_another_slot(database: Database, tmp_path: Path) -> None:
    create_tables(database, seed=1)
    project = write_project(tmp_path, database.dsn)
    (change, *_) = BLIND_CHANGES
    with (
        beginning_beside(database, change) as begin,
        running_child(project, "slot.created=kill@1") as child,
    ):
        begin()
        assert child.wait(timeout=60) == -signal.SIGKILL
    with LiveRun(project) as run:
        run.wait_for_copies()
        with database.connect(autocommit=False) as session:
            write(session, 1001)
        run.catch_up(database)
    assert_equal(database, tmp_path)


def test_a_run_killed_while_its_slot_waited_is_followed_by_one_that_waits_for_that_slot(
    database: Database, tmp_path: Path
) -> None:
    """The server goes on creating it until it can tell its client, who is gone."""
    create_tables(database, seed=1)
    project = write_project(tmp_path, database.dsn)
    with database.connect(autocommit=False) as open_transaction:
        open_transaction.execute("select pg_current_xact_id()")
        with running_child(project) as child:
            await_waiting(database, open_transaction)
            child.kill()
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(headrace.load(project).run, once=True)
            refused = "select count(*) from pg_stat_activity where query ~ 'pg_drop_replication'"
            while database.execute(f"{refused} and pid <> pg_backend_pid()") == [(0,)]:
                assert not following.done(), following.result()
            open_transaction.rollback()
            assert following.result() == []
    assert_equal(database, tmp_path)
