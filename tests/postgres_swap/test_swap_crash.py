"""A rebuild or undo that is killed at a durable step: the table is one whole generation or the
other, with the checkpoint that belongs to it, and the next run leaves no trace of the dead one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rebuilding import PIPELINE, Rebuilding
from table_features import BASE

from headrace.connectors.postgres import building, former
from headrace.testing.database import Database

CHILD = Path(__file__).with_name("swap_crash_child.py")
OLD, NEW = ((40,), (7, None)), ((3,), (8, None))
UNDONE = ((40,), (7, "undone by a test"))
LEFT = "select count(*) from pg_class where relnamespace = 'headrace_work'::regnamespace"
KEYS = """
alter table shop.orders add constraint of_region foreign key (region) references shop.regions;
create view shop.ids as select id from shop.orders;
"""


def killed(database: Database, action: str, failpoint: str) -> None:
    environment = {**os.environ, "HEADRACE_FAILPOINT": f"{failpoint}=kill"}
    child = subprocess.run(
        [sys.executable, CHILD, action, database.dsn], env=environment, capture_output=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()


def state(table: Rebuilding) -> tuple[tuple[int, ...], tuple[int, str | None]]:
    rows = table.database.execute("select count(*) from shop.ids")[0]
    return rows, table.standing()


@pytest.fixture
def table(database: Database) -> Rebuilding:
    database.execute(BASE + KEYS)
    rebuilding = Rebuilding(database)
    rebuilding.applied(7)
    return rebuilding


@pytest.mark.parametrize(
    ("failpoint", "left"),
    [
        ("postgres.load", OLD),
        ("postgres.built", OLD),
        ("postgres.swap", OLD),
        ("postgres.swapped", NEW),
    ],
)
def test_a_killed_rebuild_leaves_one_whole_generation(
    table: Rebuilding, failpoint: str, left: object
) -> None:
    """DESIGN §13, invariants 3 and 11."""
    database = table.database
    killed(database, "rebuild", failpoint)
    assert state(table) == left
    database.execute("create table headrace_work.mine (id int)")  # a user's, for whatever reason
    with database.connect() as connection:
        swept = building.sweep(connection, PIPELINE)
        former.drop_previous(connection, table.table)
    assert swept == (1 if left == OLD else 0)
    assert database.execute(LEFT) == [(1,)]
    assert state(table) == left
    valid = "select convalidated from pg_constraint where conname = 'of_region'"
    assert database.execute(valid) == [(True,)]


def test_a_killed_undo_changes_nothing_and_can_be_done_again(table: Rebuilding) -> None:
    table.rebuild(lambda c, b: table.copy(c, b, "id <= 3"), version=8)
    killed(table.database, "undo", "postgres.undo")
    assert state(table) == NEW
    table.undo()
    assert state(table) == UNDONE


def test_another_pipelines_build_is_not_swept(table: Rebuilding) -> None:
    with table.database.connect() as connection:
        build = building.begin(connection, table.table, "another", ["id"])
        assert building.sweep(connection, PIPELINE) == 0
        building.discard(connection, build)
        building.discard(connection, build)
    assert table.database.execute(LEFT) == [(0,)]
