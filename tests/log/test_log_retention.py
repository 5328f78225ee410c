"""What leaves the log and what must not, whatever moment a crash picks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from log_samples import CAPTURE, ORDERS, WHEN, commit, committed_rows, data_files, rows_of

from headrace.errors import LogGapError
from headrace.log import (
    CommitDraft,
    Expired,
    LogReader,
    LogWriter,
    SnapshotEvent,
    Storage,
    expire,
)
from headrace.log.layout import Layout, manifest_number
from headrace.model import Lsn

TOMORROW = datetime.now(UTC) + timedelta(hours=25)


def _passed(*commits: int | None) -> dict[str, Any]:
    tables = {f"t{n}": {"passed": c, "applied": c} for n, c in enumerate(commits)}
    return {"log_id": "x", "tables": tables}


def _fill(log: LogWriter) -> SnapshotEvent:
    """Commits 1 to 5; the second holds a snapshot."""
    log.add_schema(ORDERS)
    commit(log, 10, [1])
    with log.stage_snapshot(ORDERS, Lsn(10), 0) as chunk:
        chunk.write(rows_of([1]))
    event = SnapshotEvent(ORDERS.table, Lsn(10), 1, (chunk.file,))
    log.commit(CommitDraft(None, snapshots=[event]))
    for lsn in (30, 40, 50):
        commit(log, lsn, [lsn])
    return event


def _manifests(storage: Storage) -> list[int]:
    entries = storage.list(Layout(CAPTURE).commits)
    return [n for e in entries if (n := manifest_number(e.path)) is not None]


def test_without_a_registered_reader_nothing_goes(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        _fill(log)
        assert expire(log, TOMORROW + timedelta(days=365)) == Expired(0, 0)
    assert _manifests(storage) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("slowest", [_passed(5, 2, 4), _passed(2), _passed(2, None), _passed()])
def test_the_slowest_table_of_the_slowest_reader_decides(
    storage: Storage, slowest: dict[str, Any]
) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        _fill(log)
        reader = LogReader.open(storage, CAPTURE)
        reader.record_position("fast", _passed(5, 5))
        reader.record_position("slow/one", slowest)
        expire(log, TOMORROW)
        known = [table["passed"] for table in slowest["tables"].values()]
        gone = 2 if known and None not in known else 0
        assert _manifests(storage) == [1, 2, 3, 4, 5][gone:]
        assert reader.floor == gone
        assert [lsn for lsn, _ in committed_after(storage, gone)] == [10, 30, 40, 50][
            min(gone, 1) :
        ]


def committed_after(storage: Storage, after: int) -> list[tuple[int, int]]:
    reader = LogReader.open(storage, CAPTURE)
    return [
        (row["_commit_lsn"], row["id"])
        for manifest in reader.manifests(after)
        for file in manifest.files
        for row in reader.read(file)[0].data.to_pylist()
    ]


def test_within_the_replay_window_only_snapshot_files_go(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        event = _fill(log)
        reader = LogReader.open(storage, CAPTURE)
        reader.record_position("one", _passed(1))
        assert expire(log, datetime.now(UTC)) == Expired(0, 0)
        assert len(reader.snapshot_files(event)) == 1
        reader.record_position("one", _passed(5))
        assert expire(log, datetime.now(UTC)) == Expired(0, 1)
        assert expire(log, datetime.now(UTC)) == Expired(0, 0)
        with pytest.raises(LogGapError, match="retention"):
            reader.snapshot_files(event)
    assert [lsn for lsn, _ in committed_rows(storage)] == [10, 30, 40, 50]


def test_a_reader_that_asks_for_what_went_is_told_of_the_gap(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        _fill(log)
        reader = LogReader.open(storage, CAPTURE)
        old = next(reader.manifests(0)).files[0]
        reader.record_position("one", _passed(3))
        assert expire(log, TOMORROW) == Expired(3, 1)
    with pytest.raises(LogGapError, match="begins after 3"):
        list(reader.manifests(1))
    with pytest.raises(LogGapError):
        reader.read(old)
    assert reader.head() == 5
    assert [m.commit for m in reader.manifests(3)] == [4, 5]
    assert len(data_files(storage)) == 2


def test_the_head_stays_and_numbers_go_on_after_everything_was_passed(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        _fill(log)
        LogReader.open(storage, CAPTURE).record_position("one", _passed(5))
        expire(log, TOMORROW)
    with LogWriter.open(storage, CAPTURE) as log:
        assert log.position == Lsn(50)
        commit(log, 60, [6])
    assert _manifests(storage) == [5, 6]


def test_a_forgotten_reader_holds_nothing_back(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        _fill(log)
        reader = LogReader.open(storage, CAPTURE)
        reader.record_position("gone", _passed(0))
        reader.record_position("here", {**_passed(4), "note": "its own"})
        assert expire(log, TOMORROW).commits == 0
        reader.forget_position("gone")
        assert reader.position("gone") is None
        assert (reader.position("here") or {})["note"] == "its own"
        assert expire(log, TOMORROW, limit=3).commits == 3
        assert expire(log, TOMORROW, limit=3).commits == 1


class _PowerCut(BaseException):
    pass


class _Failing:
    """A storage whose power is cut after so many changes."""

    def __init__(self, storage: Storage, changes: int) -> None:
        self._storage, self._left = storage, changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def _change(self) -> None:
        if self._left == 0:
            raise _PowerCut
        self._left -= 1

    def put(self, path: str, data: bytes, *, create: bool = False) -> None:
        self._change()
        self._storage.put(path, data, create=create)

    def delete(self, paths: Any) -> None:
        for path in paths:
            self._change()
            self._storage.delete([path])


def test_a_crash_at_any_step_of_expiry_is_finished_by_the_next_start(storage: Storage) -> None:
    """After each step the commits above the floor are whole, and a restart sweeps the rest."""
    for step in range(12):
        capture_files = Layout(CAPTURE)
        storage.delete([entry.path for entry in storage.list(capture_files.root)])
        with LogWriter.open(storage, CAPTURE) as log:
            _fill(log)
            LogReader.open(storage, CAPTURE).record_position("one", _passed(4))
            log.storage = _Failing(storage, step)
            try:
                finished = expire(log, TOMORROW).commits == 4
            except _PowerCut:
                finished = False
        reader = LogReader.open(storage, CAPTURE)
        assert reader.floor == (4 if step else 0)
        expected = [50] if step else [10, 30, 40, 50]
        assert [lsn for lsn, _ in committed_after(storage, reader.floor)] == expected
        with LogWriter.open(storage, CAPTURE):
            assert _manifests(storage) == ([5] if step else [1, 2, 3, 4, 5])
            assert len(data_files(storage)) == (1 if step else 5)
    assert finished


def test_expiry_never_takes_a_spilled_file_that_a_later_commit_names(storage: Storage) -> None:
    from dataclasses import replace

    from log_samples import batch, change

    from headrace.model import TransactionEnd

    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        spilled = log.stage(batch([change(7, None)]))
        for lsn in (10, 20, 30):
            commit(log, lsn, [lsn])
        end = TransactionEnd(Lsn(40), WHEN, 9)
        log.commit(CommitDraft(Lsn(40), WHEN, [replace(spilled, transaction=end)]))
        commit(log, 50, [50])
        LogReader.open(storage, CAPTURE).record_position("one", _passed(3))
        expire(log, TOMORROW)
    with LogWriter.open(storage, CAPTURE):
        assert committed_after(storage, 3) == [(40, 7), (50, 50)]
