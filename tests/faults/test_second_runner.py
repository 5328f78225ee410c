"""Two runs of one capture: the second is refused and told who is first, which goes on."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from shop import SEED, Shop

import headrace
import run_project
from headrace.errors import LogLockedError
from live_run import LiveRun
from replicated import assert_equal, manifests
from workload import Workload


def test_a_second_run_is_refused_by_the_name_of_the_first_which_goes_on(shop: Shop) -> None:
    command = [sys.executable, run_project.__file__, shop.project]
    with (
        subprocess.Popen(command) as first,
        shop.database.connect(autocommit=False) as connection,
    ):
        load = Workload(connection, SEED)
        while len(manifests(shop.folder)) < 6:  # it is at work
            load.transaction()
        with pytest.raises(LogLockedError, match=f"process {first.pid},") as refused:
            headrace.load(shop.project).run(once=True)
        assert f"kill {first.pid}" in refused.value.hint
        (capture,) = headrace.load(shop.project).status().captures
        assert capture.running is not None
        assert f"process {first.pid}" in capture.running
        at = len(manifests(shop.folder))
        while len(manifests(shop.folder)) < at + 3:
            load.transaction()
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
    assert headrace.load(shop.project).run(once=True) == []
    assert_equal(shop.database, shop.folder)


def test_a_second_run_in_the_same_process_is_refused_too(shop: Shop) -> None:
    with LiveRun(shop.project) as run:
        run.wait_for(lambda view: view.capture.progress.connected)
        with pytest.raises(LogLockedError):
            headrace.load(shop.project).run(once=True)
        run.catch_up(shop.database)
    assert_equal(shop.database, shop.folder)
