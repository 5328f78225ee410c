"""Processes that die at each step of a commit: what was acknowledged stays, nothing half shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from log_crash_child import transaction
from log_samples import CAPTURE, committed_rows, data_files

from headrace.log import LogReader, LogWriter, open_storage
from headrace.log.layout import Layout

CHILD = Path(__file__).with_name("log_crash_child.py")


def run_child(state: Path, failpoint: str) -> list[int]:
    """Run until the failpoint kills it; the LSNs that it acknowledged."""
    environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    ended = subprocess.run(
        [sys.executable, str(CHILD), str(state)], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr  # the fault did fire
    return [int(line) for line in ended.stdout.split()]


def expected(lsns: list[int]) -> list[tuple[int, int]]:
    return [
        (lsn, row["id"])
        for lsn in lsns
        for part in transaction(lsn)
        for row in part.data.to_pylist()
    ]


# (failpoint, commits acknowledged before it fires, commits that must be found afterwards)
@pytest.mark.parametrize(
    ("failpoint", "acknowledged", "durable"),
    [
        ("log.file_written=kill@3", 2, 2),
        ("log.file_renamed=kill@3", 2, 2),
        ("log.manifest_put=kill@3", 2, 3),
        ("snapshot.chunk_written=kill@1", 1, 1),
        ("log.file_written=kill@1", 0, 0),
        ("log.manifest_put=kill@1", 0, 1),
    ],
)
def test_invariants_1_2_3_a_killed_writer_loses_nothing_acknowledged_and_shows_nothing_half(
    tmp_path: Path, failpoint: str, acknowledged: int, durable: int
) -> None:
    acks = run_child(tmp_path, failpoint)
    assert len(acks) == acknowledged
    storage = open_storage(tmp_path)
    survived = [10 * n for n in range(1, durable + 1)]
    assert committed_rows(storage) == expected(survived)  # before anybody has cleaned up

    with LogWriter.open(storage, CAPTURE) as log:
        assert (log.position or 0) == (survived[-1] if survived else 0)
        named = {p for m in LogReader.open(storage, CAPTURE).manifests(0) for p in m.paths}
        assert set(data_files(storage)) == named  # orphans are swept, committed files are not
    assert not list(tmp_path.rglob("*.tmp"))

    again = run_child(tmp_path, "log.manifest_put=kill@4")
    everything = [10 * n for n in range(1, durable + 5)]
    assert again == everything[durable:-1]
    assert committed_rows(storage) == expected(everything)


def test_a_crash_while_beginning_a_log_leaves_one_that_begins(tmp_path: Path) -> None:
    run_child(tmp_path, "log.file_written=kill@1")
    identity = open_storage(tmp_path).get(Layout(CAPTURE).identity)
    run_child(tmp_path, "log.file_written=kill@1")
    assert open_storage(tmp_path).get(Layout(CAPTURE).identity) == identity


def test_the_lock_of_a_killed_holder_is_free_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from headrace.log import *;"
            f"w = LogWriter.open(open_storage(sys.argv[1]), {CAPTURE!r});"
            "print('held', flush=True); sys.stdin.read()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Exception, match=f"process {holder.pid}"):
            LogWriter.open(open_storage(tmp_path), CAPTURE)
        holder.kill()
        holder.wait()
        LogWriter.open(open_storage(tmp_path), CAPTURE).close()


def test_what_a_killed_writer_left_visible_is_made_durable_before_it_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after link(2) and before fsync, a manifest can be seen and yet be lost by a power cut;
    whoever acknowledges its LSN after a restart must have fsynced its folder first (invariant 1).
    """
    run_child(tmp_path, "log.manifest_put=kill@2")
    synced: list[str] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    storage = open_storage(tmp_path)
    with LogWriter.open(storage, CAPTURE):
        assert storage.location(Layout(CAPTURE).commits) in synced
