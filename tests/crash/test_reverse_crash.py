"""Runs from Delta to Postgres that are killed at each durable step: nothing is lost, nothing twice.

The kill strikes a process of its own. Then the source changes further, a run of this process
catches up, and whole tables are compared, those with every change as a row among them.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from reverse_lives import DEATHS, PEOPLE, Life

from headrace.testing.database import Database
from lakeside import Lakeside

SEEDS = [int(seed) for seed in os.environ.get("HEADRACE_CRASH_SEEDS", "1").split(",")]


def begin(database: Database, root: Path, chance: random.Random) -> Life:
    life = Life(Lakeside(database, root), chance)
    life.begin()
    return life


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(DEATHS))
def test_invariants_3_4_11_killed_at_a_failpoint_it_goes_on_exactly_once(
    database: Database, tmp_path: Path, name: str, seed: int
) -> None:
    """No change is lost nor applied twice (3), tables equal their source (4), and stand at one
    version as a whole at any time (11)."""
    death, chance = DEATHS[name], random.Random(f"{name} {seed}")
    life = begin(database, tmp_path, chance)
    command = death.scene(life)
    life.die(f"{name}=kill@{chance.randint(1, death.last)}", *command)
    assert death.leaves(life)
    life.assert_whole()
    life.change()
    life.catch_up()
    life.change()
    life.catch_up()


@pytest.mark.parametrize("name", ["postgres.load", "postgres.built", "postgres.swap"])
def test_invariant_11_a_resync_that_is_killed_leaves_the_rows_that_were(
    database: Database, tmp_path: Path, name: str
) -> None:
    life = begin(database, tmp_path, random.Random(name))
    life.catch_up()
    before = life.lakeside.rows(PEOPLE, ["id", "name"])
    life.change()
    life.die(f"{name}=kill@1", "resync", PEOPLE)
    assert life.lakeside.rows(PEOPLE, ["id", "name"]) == before
    life.catch_up()


@pytest.mark.parametrize("seed", SEEDS)
def test_invariants_3_4_11_killed_at_any_instruction_again_and_again(
    database: Database, tmp_path: Path, seed: int
) -> None:
    """The kill comes from outside, some versions after the start, wherever it finds the run."""
    chance = random.Random(seed)
    life = begin(database, tmp_path, chance)
    for _ in range(4):
        goal = sum(life.versions().values()) + chance.randint(1, 12)
        with life.child("", []) as child:
            while sum(life.versions().values()) < goal:
                assert child.poll() is None, life.said.read_text()
                life.change()
        life.await_release()
        life.assert_whole()
    life.catch_up()
