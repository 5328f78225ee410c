"""Each change is in the table exactly once, whatever happens to us, the network or the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg.conninfo import conninfo_to_dict
from target_place import LOG, NAME, PIPELINE, Place, at, net, schema_of, settings

from headrace.connectors.postgres.claim import Claim
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.synced_table import PostgresTable
from headrace.errors import (
    DestinationConflictError,
    DestinationLockedError,
    DestinationUnavailableError,
    DivergedError,
)
from headrace.testing.database import Database
from lost_commit import Loss, Way, way_to

SCHEMA = schema_of({"id": pa.int64(), "v": pa.string()})
MULTISET = schema_of({"id": pa.int64(), "v": pa.string()}, key=[])
ONE = {"id": 1, "v": "one"}


def test_a_commit_that_is_applied_twice_counts_once_3(place: Place) -> None:
    """Invariant 3. A table without a key would show it."""
    table = place.prepared(MULTISET)
    for _ in range(2):
        table.apply(net(MULTISET, [ONE]), at(1))
    assert place.rows() == [(1, "one")]
    fresh = place.table()
    fresh.apply(net(MULTISET, [ONE]), at(1))
    assert place.rows() == [(1, "one")]


def test_an_older_commit_changes_nothing_3(place: Place) -> None:
    """Invariant 3."""
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [ONE]), at(5))
    table.apply(net(SCHEMA, [{"id": 1, "v": "older"}], []), at(4))
    assert place.rows() == [(1, "one")]
    assert table.checkpoint(LOG) == at(5)


def test_a_position_of_another_log_says_nothing(place: Place) -> None:
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [ONE]), at(5))
    assert table.checkpoint("another") is None
    assert table.standing() == at(5)
    table.apply(net(SCHEMA, [{"id": 1, "v": "new"}]), at(1, "another"))
    assert table.standing() == at(1, "another")
    assert place.rows() == [(1, "new")]


def test_a_checkpoint_that_moved_under_us_is_a_conflict_and_then_followed(place: Place) -> None:
    ours = place.prepared(SCHEMA)
    ours.apply(net(SCHEMA, [ONE]), at(1))
    place.table().apply(net(SCHEMA, [{"id": 2, "v": "theirs"}]), at(3))
    with pytest.raises(DestinationConflictError):
        ours.apply(net(SCHEMA, [{"id": 2, "v": "ours"}]), at(4))
    assert place.rows() == [(1, "one"), (2, "theirs")]
    assert ours.standing() == at(3)
    ours.apply(net(SCHEMA, deletes=[{"id": 2}]), at(4))
    assert place.rows() == [(1, "one")]


def test_of_two_runs_that_apply_at_once_one_does(place: Place) -> None:
    tables = [place.prepared(MULTISET) for _ in range(4)]
    for table in tables:
        assert table.standing() is None
    threads = [
        threading.Thread(target=table.apply, args=(net(MULTISET, [ONE]), at(1))) for table in tables
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.rows() == [(1, "one")]


@pytest.fixture
def way(shared_target: Database) -> Iterator[Way]:
    parts = conninfo_to_dict(shared_target.dsn)
    with way_to(str(parts["host"]), int(parts["port"])) as way:
        yield way


@pytest.mark.parametrize("loss", Loss)
def test_the_outcome_of_a_commit_that_was_lost_is_learnt_3(
    place: Place, way: Way, loss: Loss
) -> None:
    """Invariant 3: applied or not, the same call again leaves it applied once."""
    place.prepared(MULTISET)
    roundabout = PostgresDestination(settings(place.database, host="127.0.0.1", port=way.port))
    table = roundabout.table(NAME, PIPELINE)
    place.opened.append(table)
    assert table.standing() is None
    table.apply(net(MULTISET, [ONE]), at(1))
    way.lose(loss)
    with pytest.raises(DestinationUnavailableError):
        table.apply(net(MULTISET, [ONE]), at(2))
    assert way.lost == 1
    expected = 1 if loss is Loss.BEFORE else 2
    assert place.rows() == [(1, "one")] * expected
    table.apply(net(MULTISET, [ONE]), at(2))
    assert place.rows() == [(1, "one")] * 2


def test_a_backend_killed_in_the_middle_leaves_nothing_behind_3(place: Place) -> None:
    """Invariant 3."""
    killed: list[int] = []

    def kill(rows: int, size: int) -> None:
        others = "select pid from pg_stat_activity where datname = current_database()"
        if not killed:
            found = f"{others} and application_name = 'headrace'"
            killed.extend(pid for (pid,) in place.rows(found))
            for pid in killed:
                place.database.execute("select pg_terminate_backend(%s::int)", [pid])
            while set(killed) & {pid for (pid,) in place.rows("select pid from pg_stat_activity")}:
                pass  # the server takes a moment

    place.prepared(SCHEMA).close()
    place.pace = kill
    table = place.table()
    with pytest.raises(DestinationUnavailableError):
        table.apply(net(SCHEMA, [ONE], [{"id": 7}]), at(1))
    assert killed
    assert place.rows() == []
    table.apply(net(SCHEMA, [ONE], [{"id": 7}]), at(1))
    assert place.rows() == [(1, "one")]


CHILD = """
import sys
import pyarrow as pa
from target_place import NAME, PIPELINE, at, net, schema_of
from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres.destination import PostgresDestination
schema = schema_of({"id": pa.int64(), "v": pa.string()}, key=[])
connection = PostgresConnection.model_validate_json(sys.argv[1])
table = PostgresDestination(connection).table(NAME, PIPELINE)
table.prepare(schema)
for commit in (1, 2):
    passing = [{"id": commit, "v": "came and went"}]
    before = [net(schema, passing), net(schema, deletes=passing)]
    table.apply(net(schema, [{"id": commit, "v": "x"}]), at(commit), before)
"""

POINTS = {"postgres.part_applied": 2, "postgres.applied": 1, "postgres.committed": 1}  # hits each


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("hit", [1, 2])
def test_killed_at_a_failpoint_it_goes_on_without_loss_or_double_3(
    place: Place, point: str, hit: int
) -> None:
    """Invariant 3."""
    parts = conninfo_to_dict(place.database.dsn)
    given = {"type": "postgres", "database": parts["dbname"]}
    given |= {name: parts[name] for name in ("host", "port", "user", "password") if name in parts}
    command = [sys.executable, "-c", CHILD, json.dumps(given)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    armed = {**environment, "HEADRACE_FAILPOINT": f"{point}=kill@{hit}"}
    assert subprocess.run(command, env=armed, check=False).returncode == -signal.SIGKILL
    done = hit if point == "postgres.committed" else (hit - 1) // POINTS[point]
    assert place.table().standing() == (at(done) if done else None)
    assert place.rows() == [(n, "x") for n in range(1, done + 1)]
    subprocess.run(command, env=environment, check=True)
    assert place.rows() == [(1, "x"), (2, "x")]


def test_one_run_of_a_pipeline_at_a_time(place: Place) -> None:
    """Two runners started at once: the second is refused, and told who the first is."""
    destination = place.destination
    with destination.claim("one"), destination.claim("another"):
        with pytest.raises(DestinationLockedError) as refused, destination.claim("one"):
            pytest.fail("claimed twice")
        context = refused.value.context
        assert str(os.getpid()) in context["application"]
        assert str(context["pid"]) in refused.value.message
        assert "pg_terminate_backend" in refused.value.hint
    with destination.claim("one"):
        pass


def test_a_run_may_begin_as_soon_as_the_one_before_has_ended(place: Place) -> None:
    """Even where the server is slow to end a session: it drops what is temporary before it lets go
    of locks."""
    first, next_one = (Claim(settings(place.database), "one") for _ in range(2))
    first.take()
    assert first._connection is not None
    many = " ".join(f"create temporary table t{n} (v text);" for n in range(100))
    first._connection.execute(many.encode())
    first.release()
    next_one.take()
    next_one.release()


def test_a_claim_ends_with_its_process(place: Place) -> None:
    destination = place.destination
    with pytest.raises(RuntimeError), destination.claim("one"):
        raise RuntimeError
    with destination.claim("one"):
        pass


def test_many_processes_make_what_headrace_keeps_at_once(place: Place) -> None:
    failed: list[BaseException] = []

    def prepare(table: PostgresTable, number: int) -> None:
        try:
            table.prepare(schema_of({"id": pa.int64()}, name=table.name))
        except BaseException as error:
            failed.append(error)

    names = [type(NAME)("new_schema", f"t{n}") for n in range(6)]
    threads = [
        threading.Thread(target=prepare, args=(place.table(name), n))
        for n, name in enumerate(names)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert place.destination.tables() == names


def test_a_reader_sees_whole_commits_only_11(place: Place) -> None:
    """Invariant 11: within one snapshot, both tables of rows move together; nothing is empty."""
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [{"id": n, "v": "0"} for n in range(20)]), at(1))
    seen: list[set[tuple[Any, ...]]] = []
    looked, stop = threading.Event(), threading.Event()

    def watch() -> None:
        query = "select v, count(*) from shop.customers group by v"
        with place.database.connect() as connection:
            while not stop.is_set():
                seen.append(set(connection.execute(query).fetchall()))
                looked.set()

    watching = threading.Thread(target=watch)
    watching.start()
    for commit in range(2, 22):
        looked.wait()
        looked.clear()
        rows = [{"id": n, "v": str(commit)} for n in range(20)]
        table.apply(net(SCHEMA, rows, truncate=commit % 2 == 0), at(commit))
    stop.set()
    watching.join()
    assert len(seen) >= 20
    assert all(len(versions) == 1 and {n for _, n in versions} == {20} for versions in seen)


def test_a_reader_of_an_older_snapshot_sees_no_truncate_11(place: Place) -> None:
    """Invariant 11: TRUNCATE itself is not transactional for snapshots taken before."""
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [ONE]), at(1))
    with place.database.connect(autocommit=False) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert reader.execute("select 1").fetchone() == (1,)
        table.apply(net(SCHEMA, truncate=True), at(2))
        assert reader.execute("select count(*) from shop.customers").fetchone() == (1,)
    assert place.rows() == []


def test_rows_that_somebody_else_took_away_are_noticed(place: Place) -> None:
    table = place.prepared(MULTISET)
    table.apply(net(MULTISET, [ONE]), at(1))
    place.database.execute("delete from shop.customers")
    with pytest.raises(DivergedError, match="lacks 1 rows that were deleted"):
        table.apply(net(MULTISET, deletes=[ONE]), at(2))
    assert table.standing() == at(1)


def test_a_table_that_is_gone_is_noticed(place: Place) -> None:
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [ONE]), at(1))
    place.database.execute("drop table shop.customers")
    table.standing()
    table._plan = None
    with pytest.raises(DivergedError, match="gone"):
        table.apply(net(SCHEMA, [ONE]), at(2))
    table.prepare(SCHEMA)
    assert table.standing() is None
