"""A run that is killed at each durable step, under load: nothing is lost, nothing comes twice.

Each failpoint is armed in a process that replicates while this one changes the source. After the
kill the changes go on, a second run catches up, and whole tables are compared.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from reverse_lives import DEATHS

import headrace
import run_project
from headrace.failpoints import FAILPOINTS
from headrace.model import Lsn
from headrace.testing.database import Database
from replicated import (
    SLOT,
    acknowledged_lsn,
    assert_acknowledged_is_durable,
    assert_equal,
    durable_lsn,
    manifests,
    unnamed_in_lake,
    unnamed_in_log,
    write_project,
)
from workload import LargeTransactions, PreparedTransactions, Workload, create_tables

SEEDS = [int(seed) for seed in os.environ.get("HEADRACE_CRASH_SEEDS", "1").split(",")]
PATIENCE = 60  # seconds, of which a child lives one or two


@dataclass(frozen=True)
class Killed:
    """What a kill left."""

    database: Database
    folder: Path


def _is_unknown_to_the_source(killed: Killed) -> bool:
    """What was not durable is sent again, what was durable need not be acknowledged."""
    acknowledged = acknowledged_lsn(killed.database)
    beside = manifests(killed.folder)[-1]["snapshots"]  # which do not move the position
    return bool(beside) or (acknowledged or Lsn(0)) < durable_lsn(killed.folder)


def _is_received_again(killed: Killed) -> bool:
    """The slot still stands before what the source has."""
    now = "select pg_current_wal_lsn() > confirmed_flush_lsn from pg_replication_slots"
    return killed.database.execute(f"{now} where slot_name = '{SLOT}'") == [(True,)]


def _is_a_temporary_file_of_the_log(killed: Killed) -> bool:
    return any(path.suffix == ".tmp" for path in unnamed_in_log(killed.folder))


def _is_a_file_of_the_log_without_a_manifest(killed: Killed) -> bool:
    return any(
        "changes" in p.parts and p.suffix == ".parquet" for p in unnamed_in_log(killed.folder)
    )


def _is_a_chunk_without_a_manifest(killed: Killed) -> bool:
    return any("snapshots" in path.parts for path in unnamed_in_log(killed.folder))


def _is_a_data_file_without_a_version(killed: Killed) -> bool:
    return any(path.suffix == ".parquet" for path in unnamed_in_lake(killed.folder))


def _is_a_deletion_vector_without_a_version(killed: Killed) -> bool:
    return any(path.suffix == ".bin" for path in unnamed_in_lake(killed.folder))


def _is_a_table_without_a_version(killed: Killed) -> bool:
    tables = (killed.folder / "lake" / "public").glob("*")
    return any(not any(table.glob("_delta_log/*.json")) for table in tables)


def _is_a_table_beyond_the_recorded_position(killed: Killed) -> bool:
    """Some table has a version; whether it was recorded beside the log must not matter."""
    return any((killed.folder / "lake" / "public").glob("*/_delta_log/*.json"))


def _is_a_recorded_position(killed: Killed) -> bool:
    return any((killed.folder / "state" / "log" / "shop" / "readers").glob("*.json"))


@dataclass(frozen=True)
class Outcome:
    """What a kill at a failpoint leaves behind, and which of its hits may be the deadly one."""

    leaves: Callable[[Killed], bool]
    first: int
    last: int


# Every failpoint of a capture has its outcome here, those from Delta to Postgres have theirs in
# `reverse_lives`; those of the snapshot and the load pass once for each table.
OUTCOMES = {
    "capture.received": Outcome(_is_received_again, 2, 9),
    "log.file_written": Outcome(_is_a_temporary_file_of_the_log, 2, 9),
    "log.file_renamed": Outcome(_is_a_file_of_the_log_without_a_manifest, 2, 9),
    "log.manifest_put": Outcome(_is_unknown_to_the_source, 6, 14),
    "capture.acknowledged": Outcome(_is_received_again, 2, 9),
    "snapshot.chunk_written": Outcome(_is_a_chunk_without_a_manifest, 1, 4),
    "delta.load_linked": Outcome(_is_a_table_without_a_version, 1, 4),
    "delta.dv_written": Outcome(_is_a_deletion_vector_without_a_version, 1, 8),
    "delta.data_written": Outcome(_is_a_data_file_without_a_version, 1, 15),
    "delta.log_put": Outcome(_is_a_table_beyond_the_recorded_position, 1, 16),
    "materialize.checkpoint": Outcome(_is_a_recorded_position, 1, 3),
}


# Those of transactions that the server sends while they are in progress.
IN_PROGRESS = {
    "capture.spilled": Outcome(_is_a_file_of_the_log_without_a_manifest, 2, 9),
    "capture.rolled_back": Outcome(_is_a_file_of_the_log_without_a_manifest, 1, 4),
}


DOCUMENTS = "log.document_put"  # a beginning puts one after the other


# Where a run seldom comes by, by who kills at it instead.
ELSEWHERE = {
    "crash/test_slot_start_crash.py": ("slot.created",),
    "crash/test_range_crash.py": ("snapshot.range_kept", "snapshot.range_advanced"),
    "delta/test_delta_crash.py": (
        *("delta.compaction_written", "delta.compacted", "delta.part_written"),
        *("delta.file_rewritten", "delta.changes_written"),
    ),
    "delta/evolving_child.py": ("delta.columns_rewritten",),
    "delta/delta_history_child.py": ("delta.versions_closed",),
    "delta/test_delta_saved_index.py": ("index.leaves_written", "index.saved"),
    "postgres_destination/test_applied_exactly_once.py": ("postgres.part_applied",),
}


def test_every_failpoint_has_a_declared_outcome() -> None:
    elsewhere = [name for names in ELSEWHERE.values() for name in names]
    declared = sorted([*OUTCOMES, *IN_PROGRESS, DOCUMENTS, *DEATHS, *elsewhere])
    assert declared == sorted(FAILPOINTS)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_failpoint_that_others_kill_at_is_killed_at_there(place: str) -> None:
    told = (Path(__file__).parents[1] / place).read_text()
    assert [name for name in ELSEWHERE[place] if not re.search(rf'"{name}\b', told)] == []


def test_every_failpoint_is_passed_somewhere_and_none_that_cannot_be_armed() -> None:
    sources = Path(headrace.__file__).parent.rglob("*.py")
    passing = re.compile(r'\bhit(?:\(|, )"([^"]+)"\)')
    passed = {name for source in sources for name in passing.findall(source.read_text())}
    assert passed == FAILPOINTS.keys()


@contextmanager
def running_child(project: Path, failpoint: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that replicates until it dies; what it says is beside the project."""
    environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    with project.with_name("child.log").open("ab") as said:
        child = subprocess.Popen(
            [sys.executable, run_project.__file__, project],
            env=environment,
            stdout=said,
            stderr=said,
        )
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def await_release(database: Database) -> None:
    """Wait until the server has read all that the dead process sent it, and let its slot go."""
    holder = "select pg_sleep(0.01) from pg_replication_slots where slot_name = %s and active"
    while database.execute(holder, [SLOT]):
        pass


def run_until_killed(database: Database, project: Path, failpoint: str, load: Workload) -> None:
    """Change the source while a child replicates it, until its failpoint has killed the child."""
    with running_child(project, failpoint) as child:
        deadline = time.monotonic() + PATIENCE
        while child.poll() is None and time.monotonic() < deadline:
            load.transaction()
        ended = child.poll()
    said = project.with_name("child.log").read_text()
    assert ended == -signal.SIGKILL, f"{failpoint} did not fire\n{said}"
    await_release(database)


def catch_up(database: Database, project: Path) -> None:
    """Run again, to where the source is, and find everything there once."""
    assert headrace.load(project).run(once=True) == []
    assert_acknowledged_is_durable(database, project.parent)
    assert_equal(database, project.parent)
    assert unnamed_in_log(project.parent) == set()  # the leavings of the dead are swept


def die_and_catch_up(database: Database, folder: Path, name: str, seed: int) -> None:
    """Kill a run at a failpoint while the source changes, let it go on, and compare."""
    outcome = OUTCOMES[name]
    hit = random.Random(f"{name} {seed}").randint(outcome.first, outcome.last)
    create_tables(database, seed)
    project = write_project(folder, database.dsn)
    with database.connect(autocommit=False) as connection:
        load = Workload(connection, seed)
        run_until_killed(database, project, f"{name}=kill@{hit}", load)
        assert_acknowledged_is_durable(database, folder)
        assert outcome.leaves(Killed(database, folder))
        load.run(20)
        catch_up(database, project)
        load.run(20)
        catch_up(database, project)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_invariants_1_2_3_4_6_killed_at_a_failpoint_under_load_it_goes_on_exactly_once(
    database: Database, tmp_path: Path, name: str, seed: int
) -> None:
    """Acknowledged is durable (1), transactions are whole and come once (2, 3), tables equal their
    source (4) with the TOASTed values that were not sent (6)."""
    die_and_catch_up(database, tmp_path, name, seed)


@pytest.mark.versions(newest=False)
def test_invariants_1_2_3_4_6_killed_at_a_failpoint_on_an_older_version(
    database: Database, tmp_path: Path
) -> None:
    """Where the log's commit is durable and the source does not know it yet."""
    die_and_catch_up(database, tmp_path, "log.manifest_put", SEEDS[0])


@pytest.mark.since(14)  # which sends them before they end
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(IN_PROGRESS))
def test_invariants_1_2_3_4_killed_with_transactions_in_progress_it_goes_on_exactly_once(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, seed: int
) -> None:
    """What was staged of them is swept, and sent again."""
    outcome = IN_PROGRESS[name]
    hit = random.Random(f"{name} {seed}").randint(outcome.first, outcome.last)
    monkeypatch.setenv(run_project.COMMIT_BYTES, "20000")
    database.execute(f"alter database {database.name} set logical_decoding_work_mem = '64kB'")
    create_tables(database, seed)
    project = write_project(tmp_path, database.dsn)
    with database.connect(autocommit=False) as connection:
        killed = Killed(database, tmp_path)
        load = LargeTransactions(connection, seed, lambda: unnamed_in_log(tmp_path))
        run_until_killed(database, project, f"{name}=kill@{hit}", load)
        assert_acknowledged_is_durable(database, tmp_path)
        assert outcome.leaves(killed)
        load.transaction()
        catch_up(database, project)


def test_invariants_1_3_4_killed_after_each_document_of_a_beginning_it_goes_on(
    database: Database, tmp_path: Path
) -> None:
    """What is ours at the source, what covers its tables, who they are: each is noted once."""
    create_tables(database, SEEDS[0])
    project = write_project(tmp_path, database.dsn)
    with database.connect(autocommit=False) as connection:
        load = Workload(connection, SEEDS[0])
        for hit in (1, 1, 2, 2, 3, 4):  # what is there already is not written again
            run_until_killed(database, project, f"{DOCUMENTS}=kill@{hit}", load)
            assert_acknowledged_is_durable(database, tmp_path)
        catch_up(database, project)


@pytest.mark.since(15)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["capture.spilled", "capture.acknowledged"])
def test_invariants_1_2_3_4_killed_while_transactions_are_prepared_it_goes_on_exactly_once(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, seed: int
) -> None:
    """What follows them in the log is sent once more with them, and committed once."""
    hit = random.Random(f"{name} prepared {seed}").randint(2, 5)
    monkeypatch.setenv(run_project.COMMIT_BYTES, "20000")
    database.execute(f"alter database {database.name} set logical_decoding_work_mem = '64kB'")
    create_tables(database, seed)
    project = write_project(tmp_path, database.dsn, two_phase=True)
    with database.connect(autocommit=False) as connection:
        catch_up(database, project)  # a snapshot would wait for what is prepared
        load = PreparedTransactions(database, connection, seed)
        run_until_killed(database, project, f"{name}=kill@{hit}", load)
        assert_acknowledged_is_durable(database, tmp_path)
        catch_up(database, project)
        load.transaction()
        load.end_all()
        catch_up(database, project)


@pytest.mark.parametrize("seed", SEEDS)
def test_invariants_1_3_4_6_killed_at_any_instruction_again_and_again_it_goes_on_exactly_once(
    database: Database, tmp_path: Path, seed: int
) -> None:
    """The kill comes from outside, after a random number of commits, wherever it finds the run."""
    create_tables(database, seed)
    project = write_project(tmp_path, database.dsn)
    chance = random.Random(seed)
    with database.connect(autocommit=False) as connection:
        load = Workload(connection, seed)
        for _ in range(3):
            before, enough = len(manifests(tmp_path)), chance.randint(3, 30)
            with running_child(project) as child:
                while len(manifests(tmp_path)) < before + enough:
                    assert child.poll() is None, project.with_name("child.log").read_text()
                    load.transaction()
            await_release(database)
            assert_acknowledged_is_durable(database, tmp_path)
        catch_up(database, project)
