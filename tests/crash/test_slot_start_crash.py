"""A run killed before it has looked whether its new slot began beside changes of tables."""

from __future__ import annotations

import signal
from pathlib import Path

from test_crash_points import running_child

from blind_ddl import BLIND_CHANGES, beginning_beside, write
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
