"""Many tables cost memory and time, but neither descriptors nor threads, of which there are few."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import limited_child
import psycopg
from harness import PIPELINE, Shop

TABLES = 60
DESCRIPTORS = 56  # fewer than one for each table
THREADS = 30


def caught_up(shop: Shop) -> int:
    """Runs in a process of its own; gives the most threads that it had."""
    command = [sys.executable, limited_child.__file__, str(shop.file), str(DESCRIPTORS)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_10_more_tables_than_descriptors_and_threads_are_carried(shop: Shop) -> None:
    with psycopg.connect(shop.database.dsn) as session:
        for n in range(TABLES):
            session.execute(f"create table t{n} (id int primary key, v int)")
            session.execute(f"insert into t{n} select i, 0 from generate_series(1, 5) i")
    shop.carry("public.*")
    assert caught_up(shop) < THREADS
    for _ in range(2):  # the second run finds what the first one left of each table
        with psycopg.connect(shop.database.dsn) as session:  # one commit of a file for each table
            for n in range(TABLES):
                session.execute(f"update t{n} set v = v + %s where id <> 3", [n])
        assert caught_up(shop) < THREADS
    for n in range(TABLES):
        shop.assert_equal(f"public.t{n}", readers=["deltalake"])
    assert {s.phase.value for s in shop.project.status().tables} == {"streaming"}
    assert len(list(Path(shop.state, "index", PIPELINE, "public").iterdir())) == TABLES
