"""From Postgres to Postgres: runs that are killed lose nothing and apply nothing twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from mirror import Mirror

import run_project
from workload import TABLES, Workload, create_tables

SEEDS = [int(seed) for seed in os.environ.get("HEADRACE_CRASH_SEEDS", "1").split(",")]
PATIENCE = 60  # seconds, of which a child lives one or two

# Which hits may be the deadly one: loads pass once for each of the four tables, changes often.
FAILPOINTS = {
    "log.manifest_put": (6, 14),
    "materialize.checkpoint": (1, 3),
    "postgres.load": (1, 4),
    "postgres.built": (1, 4),
    "postgres.swap": (1, 4),
    "postgres.swapped": (1, 4),
    "postgres.reconciled": (1, 4),
    "postgres.applied": (1, 20),
    "postgres.committed": (1, 20),
    "postgres.evolved": (1, 3),
}

# A column of the user's own, as every load is then made in place.
OWN = "alter table {0} add own_note text"
ADDED = "alter table {0} add extra int default 7"

LEFT = """
select c.relname from pg_class c
 where c.relkind = 'r' and c.relnamespace = to_regnamespace('headrace_work')
"""


@contextmanager
def running_child(mirror: Mirror, failpoint: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that replicates until it dies; what it says is beside the project."""
    with (mirror.root / "child.log").open("ab") as said:
        child = subprocess.Popen(
            [sys.executable, run_project.__file__, mirror.file],
            env={**os.environ, "HEADRACE_FAILPOINT": failpoint},
            stdout=said,
            stderr=said,
        )
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def await_release(mirror: Mirror) -> None:
    """Wait until the source has let the dead process's slot go."""
    ours = "where database = current_database() and active"
    while mirror.sql(f"select pg_sleep(0.01) from pg_replication_slots {ours}"):
        pass


def run_until_killed(mirror: Mirror, failpoint: str, load: Workload) -> None:
    with running_child(mirror, failpoint) as child:
        deadline = time.monotonic() + PATIENCE
        while child.poll() is None and time.monotonic() < deadline:
            load.transaction()
        ended = child.poll()
    assert ended == -signal.SIGKILL, f"{failpoint}\n{(mirror.root / 'child.log').read_text()}"
    await_release(mirror)


def prepare(mirror: Mirror, seed: int, name: str) -> None:
    """The tables, as far as they must be carried before the failpoint can be passed."""
    create_tables(mirror.source, seed)
    mirror.carry("public.*")
    if name == "postgres.reconciled":
        mirror.catch_up()
        for table in TABLES:
            mirror.at_target(OWN.format(table))
        mirror.project.destroy()
        mirror.carry(*({"source": f"public.{table}", "take_over": True} for table in TABLES))
    if name == "postgres.evolved":
        mirror.catch_up()
        for table in TABLES:
            mirror.sql(ADDED.format(table))


def compare(mirror: Mirror, name: str) -> None:
    mirror.catch_up()
    if name == "postgres.reconciled":
        for table in TABLES:
            mirror.at_target(f"alter table {table} drop column own_note")
    mirror.assert_equal(*TABLES)
    assert mirror.at_target(LEFT) == []
    assert mirror.project.quarantine() == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAILPOINTS)
def test_invariants_3_4_6_killed_at_a_failpoint_under_load_it_goes_on_exactly_once(
    mirror: Mirror, name: str, seed: int
) -> None:
    """Invariants 3, 4 and 6."""
    hit = random.Random(f"{name} {seed}").randint(*FAILPOINTS[name])
    prepare(mirror, seed, name)
    with mirror.source.connect(autocommit=False) as connection:
        load = Workload(connection, seed)
        run_until_killed(mirror, f"{name}=kill@{hit}", load)
        load.run(20)
        mirror.catch_up()
        load.run(20)
    compare(mirror, name)


@pytest.mark.parametrize("seed", SEEDS)
def test_invariants_3_4_6_killed_at_any_instruction_again_and_again_it_goes_on_exactly_once(
    mirror: Mirror, seed: int
) -> None:
    """Invariants 3, 4 and 6: the kill comes from outside, wherever it finds the run."""
    prepare(mirror, seed, "")
    chance = random.Random(seed)
    with mirror.source.connect(autocommit=False) as connection:
        load = Workload(connection, seed)
        for _ in range(4):
            enough = load.commits + chance.randint(30, 300)
            with running_child(mirror) as child:
                while load.commits < enough:
                    assert child.poll() is None, (mirror.root / "child.log").read_text()
                    load.transaction()
            await_release(mirror)
    compare(mirror, "")
