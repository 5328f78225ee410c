"""No room for the change log: nothing acknowledged that is not durable; it goes on when there is.

Invariant 1 where it is hardest to keep, and 12: the run says what is wrong meanwhile.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import SEED, Shop

import headrace
from headrace import failpoints
from headrace.errors import LogFullError
from live_run import LiveRun
from replicated import assert_acknowledged_is_durable, assert_equal
from workload import Load

BALLAST = 1 << 20  # bytes that are given back at last, and hold what comes until then


def test_invariant_1_a_disk_that_is_full_for_a_while_costs_nothing_but_time(shop: Shop) -> None:
    assert headrace.load(shop.project).run(once=True) == []
    failpoints.arm("log.file_written=enospc@2-5")
    with LiveRun(shop.project) as run:
        with Load(shop.database, SEED) as load:
            error = run.wait_for_error(LogFullError)
            assert_acknowledged_is_durable(shop.database, shop.folder)
            load.wait_for(10)
        run.catch_up(shop.database)
        run.wait_for(lambda view: view.capture.progress.error is None)
    assert "df -h" in error.hint
    assert_acknowledged_is_durable(shop.database, shop.folder)
    assert_equal(shop.database, shop.folder)


def test_invariant_1_a_disk_that_fills_up_during_the_first_snapshot_is_survived(
    shop: Shop,
) -> None:
    failpoints.arm("log.file_written=enospc@1-3")
    with LiveRun(shop.project) as run:
        with Load(shop.database, SEED) as load:
            run.wait_for_error(LogFullError)
            load.wait_for(10)
        run.catch_up(shop.database)
        run.wait_for(lambda view: all(p.done for p in view.copier.progress.values()))
        run.catch_up(shop.database)
    assert_equal(shop.database, shop.folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB where the project keeps its state."""
    state = tmp_path / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", state]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is root's")
    try:
        yield state
    finally:
        subprocess.run(["umount", state], check=True)


def fill(disk: Path) -> list[Path]:
    """Take all room that is left, in files of BALLAST bytes and a last, smaller one."""
    made = []
    while True:
        made.append(disk / f"ballast-{len(made)}")
        try:
            made[-1].write_bytes(bytes(BALLAST))
        except OSError:
            return made


def test_invariants_1_12_a_file_system_without_room_is_told_and_the_run_goes_on_with_room(
    small_disk: Path, shop: Shop
) -> None:
    with LiveRun(shop.project) as run:
        run.catch_up(shop.database)
        ballast = fill(small_disk)
        with Load(shop.database, SEED) as load:
            error = run.wait_for_error(LogFullError)
            load.wait_for(10)
            run.wait_for(lambda _: len(run.errors) > 4)  # for longer than positions go unrecorded
            assert_acknowledged_is_durable(shop.database, shop.folder)
        for file in ballast:
            file.unlink()
        run.catch_up(shop.database)
    assert str(small_disk) in error.message
    assert_acknowledged_is_durable(shop.database, shop.folder)
    assert_equal(shop.database, shop.folder)
