"""Random lives of a change log against a model: whatever happens, readers find what was committed.

A crash leaves the writer as it is and opens a new one over the same files, as a restart does.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from log_samples import CAPTURE, ORDERS, WHEN, batch, change, data_files, inserts, rows_of

from headrace.errors import LogGapError
from headrace.log import (
    CommitDraft,
    LogFile,
    LogReader,
    LogWriter,
    SnapshotEvent,
    SnapshotFile,
    expire,
    open_storage,
)
from headrace.model import Lsn, TransactionEnd

Rows = list[tuple[int, int]]


class LogMachine(RuleBasedStateMachine):
    """Model: for each commit its rows, as (LSN, id), and its snapshot's rows, if it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.storage = open_storage(self.folder.name)
        self.log = LogWriter.open(self.storage, CAPTURE)
        self.log.add_schema(ORDERS)
        self.commits: list[Rows] = []
        self.staged: list[tuple[LogFile, list[int]]] = []
        self.chunks: list[SnapshotFile] = []
        self.lsn = self.row = self.floor = self.passed = 0

    def _ids(self, count: int) -> list[int]:
        self.row += count
        return list(range(self.row - count, self.row))

    @rule(count=st.integers(1, 3))
    def commit(self, count: int) -> None:
        self.lsn += 10
        ids = self._ids(count)
        self.log.commit(CommitDraft(Lsn(self.lsn), WHEN, [self.log.stage(inserts(self.lsn, ids))]))
        self.commits.append([(self.lsn, i) for i in ids])

    @rule()
    def spill(self) -> None:
        [row] = self._ids(1)
        self.staged.append((self.log.stage(batch([change(row, None)])), [row]))

    @precondition(lambda self: self.staged)
    @rule(data=st.data())
    def commit_spilled(self, data: st.DataObject) -> None:
        file, ids = self.staged.pop(data.draw(st.integers(0, len(self.staged) - 1)))
        self.lsn += 10
        end = TransactionEnd(Lsn(self.lsn - 3), WHEN, 5)
        self.log.commit(CommitDraft(Lsn(self.lsn), WHEN, [replace(file, transaction=end)]))
        self.commits.append([(self.lsn - 3, i) for i in ids])

    @precondition(lambda self: self.staged)
    @rule()
    def abort(self) -> None:
        self.log.discard([self.staged.pop()[0]])

    @rule()
    def copy_chunk(self) -> None:
        with self.log.stage_snapshot(ORDERS, Lsn(self.lsn), len(self.chunks)) as chunk:
            chunk.write(rows_of([1]))
        self.chunks.append(chunk.file)

    @rule()
    def commit_snapshot(self) -> None:
        event = SnapshotEvent(ORDERS.table, Lsn(self.lsn), 1, tuple(self.chunks))
        self.log.commit(CommitDraft(None, snapshots=[event]))
        self.commits.append([])
        self.chunks = []

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        if crash:
            self.log._lock.release()  # as the kernel does
        else:
            self.log.close()
        self.log = LogWriter.open(self.storage, CAPTURE)
        self.staged, self.chunks = [], []
        named = {p for m in self._reader().manifests(self.floor) for p in m.paths}
        assert set(data_files(self.storage)) <= named  # every orphan is gone

    @rule(passed=st.integers(0, 40), old=st.booleans())
    def expire(self, passed: int, old: bool) -> None:
        passed = max(self.passed, min(passed, len(self.commits)))
        self._reader().record_position("one", {"tables": {"t": {"passed": passed}}})
        self.passed = passed
        now = datetime.now(UTC) + timedelta(hours=25 if old else 1)
        expire(self.log, now)
        if old:
            self.floor = max(self.floor, min(passed, len(self.commits) - 1))

    def _reader(self) -> LogReader:
        return LogReader.open(self.storage, CAPTURE)

    @invariant()
    def a_fresh_reader_finds_every_commit_above_the_floor(self) -> None:
        reader = self._reader()
        found = [self._read(reader, number) for number in range(self.floor + 1, reader.head() + 1)]
        assert found == self.commits[self.floor :]
        assert reader.floor == self.floor
        assert self.log.position == (Lsn(self.lsn) if self.lsn else None)

    def _read(self, reader: LogReader, number: int) -> Rows:
        [manifest] = reader.manifests(number - 1, number)
        for event in manifest.snapshots:
            self._check_snapshot(reader, number, event)
        return [
            (row["_commit_lsn"], row["id"])
            for file in manifest.files
            for part in reader.read(file)
            for row in part.data.to_pylist()
        ]

    def _check_snapshot(self, reader: LogReader, commit: int, event: SnapshotEvent) -> None:
        try:
            assert len(reader.snapshot_files(event)) == len(event.files)
        except LogGapError:
            assert commit <= self.passed

    def teardown(self) -> None:
        self.log.close()
        self.folder.cleanup()


LogMachine.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRandomLives = LogMachine.TestCase
