"""Staged files that are not committed: gone at once, but never where a manifest may name them.

A put of a manifest that fails may have succeeded all the same (a lost answer, a folder that could
not be synced), and what it names is then part of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
from log_samples import (
    CAPTURE,
    ORDERS,
    WHEN,
    batch,
    change,
    commit,
    committed_rows,
    data_files,
    inserts,
)

from headrace import failpoints
from headrace.engine.capture import Capture
from headrace.engine.spills import Spills, files_of
from headrace.errors import LogError, LogFullError, LogUnavailableError
from headrace.log import CommitDraft, LogWriter, Storage
from headrace.log.documents import read_manifest
from headrace.model import ChangeBatch, DecodedChanges, Finished, Lsn, TableId, TransactionEnd

ITEMS = replace(ORDERS, table=TableId("public", "items"))
XID = 9
END = [Finished(XID, TransactionEnd(Lsn(30), WHEN, XID))]
ANSWER_LOST = "log.manifest_put=enospc@{}"


@dataclass(frozen=True)
class Stretch:
    """A stretch of a stream (engine.protocols.Taken) that ends at `to_lsn`."""

    to_lsn: Lsn
    batches: Sequence[ChangeBatch] = ()
    unfinished: Sequence[ChangeBatch] = ()
    finished: Sequence[Finished] = ()
    commit_ts: datetime = WHEN
    transactions: int = 1

    def decode(self) -> Iterator[DecodedChanges]:
        yield DecodedChanges(self.batches, [(XID, b) for b in self.unfinished], self.finished)


@contextmanager
def capturing(storage: Storage) -> Iterator[tuple[Capture, LogWriter]]:
    """A capture whose stream is played by the test."""
    with LogWriter.open(storage, CAPTURE) as log:
        capture = Capture(cast(Any, None), log)
        try:
            yield capture, log
        finally:
            capture.close()


def unfinished(row: int) -> ChangeBatch:
    """Of a transaction that has not committed yet."""
    return batch([change(row, None)])


def spill(capture: Capture, row: int) -> Spills:
    return capture.submit(Stretch(Lsn(0), (), [unfinished(row)]), {}).result().spills


def named(log: LogWriter) -> set[str]:
    assert log.head is not None
    numbers = range(1, log.head.commit + 1)
    manifests = (read_manifest(log.storage, log.layout, number) for number in numbers)
    return {path for manifest in manifests for path in manifest.paths}


def test_a_full_disk_half_way_through_a_commit_leaves_no_file_of_it(storage: Storage) -> None:
    whole = inserts(20, [1])
    with capturing(storage) as (capture, log):
        failpoints.arm("log.file_written=enospc@2")
        with pytest.raises(LogFullError):
            capture.submit(Stretch(Lsn(20), [whole], [unfinished(7)]), {}).result()
        assert data_files(storage) == []
        committed = capture.submit(Stretch(Lsn(20), [whole], [unfinished(7)]), {}).result()
        end = Stretch(Lsn(30), finished=END)
        capture.submit(end, committed.spills).result()
        assert set(data_files(storage)) == named(log)
    assert committed_rows(storage) == [(20, 1), (30, 7)]


def test_a_table_whose_file_cannot_be_written_takes_the_other_tables_files_along(
    local_storage: Storage, tmp_path: Path
) -> None:
    both = [inserts(20, [1]), inserts(20, [2], ITEMS)]
    with capturing(local_storage) as (capture, log):
        in_the_way = tmp_path / "state" / log.layout.changes(ITEMS.table, 1, 0)
        in_the_way.parent.parent.mkdir(parents=True)
        in_the_way.parent.write_text("not a folder")
        with pytest.raises(LogError, match="items"):
            capture.submit(Stretch(Lsn(20), both), {}).result()
        with pytest.raises(LogError, match="items"):
            capture.submit(Stretch(Lsn(20), [both[0]], [both[1]]), {}).result()
        assert data_files(local_storage) == []
        in_the_way.parent.unlink()
        capture.submit(Stretch(Lsn(20), both), {}).result()
        assert set(data_files(local_storage)) == named(log)
    assert committed_rows(local_storage) == [(20, 1), (20, 2)]


def test_a_draft_that_is_refused_before_the_put_leaves_nothing(storage: Storage) -> None:
    with capturing(storage) as (capture, log):
        capture.submit(Stretch(Lsn(20), [inserts(20, [1])]), {}).result()
        with pytest.raises(LogError, match="go back"):
            capture.submit(Stretch(Lsn(10), [inserts(10, [2])]), {}).result()
        assert set(data_files(storage)) == named(log)


def test_invariants_1_2_a_commit_whose_answer_was_lost_keeps_its_files_and_counts_once(
    storage: Storage,
) -> None:
    """Its session ends, the next one receives the same again, and learns that it is in the log."""
    end = Stretch(Lsn(40), [inserts(40, [1])], finished=END)
    with capturing(storage) as (capture, log):
        spilled = spill(capture, 7)
        failpoints.arm(ANSWER_LOST.format(1))
        with pytest.raises(OSError, match="failpoint"):
            capture.submit(end, spilled).result()
        capture.discard(files_of(spilled))  # as a session that ends does
        assert log.position is None
        assert len(data_files(storage)) == 2

        again = spill(capture, 7)
        with pytest.raises(LogUnavailableError, match="made after all"):
            capture.submit(end, again).result()
        capture.discard(files_of(again))
        assert log.position == Lsn(40)
        assert set(data_files(storage)) == named(log)
        capture.submit(Stretch(Lsn(50), [inserts(50, [2])]), {}).result()
        assert set(data_files(storage)) == named(log)
    assert committed_rows(storage) == [(30, 7), (40, 1), (50, 2)]


def test_files_that_were_committed_meanwhile_are_not_discarded(storage: Storage) -> None:
    """A snapshot's commit beside may learn the outcome before the stream's session ends."""
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        file = log.stage(inserts(10, [1]))
        failpoints.arm(ANSWER_LOST.format(1))
        with pytest.raises(OSError, match="failpoint"):
            log.commit(CommitDraft(Lsn(10), WHEN, [file]))
        with pytest.raises(LogUnavailableError):
            log.commit(CommitDraft(None))
        log.discard([file])
        commit(log, 20, [2])
    assert committed_rows(storage) == [(10, 1), (20, 2)]


@pytest.fixture
def away(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to make the next put fail without an effect."""
    put = type(storage).put

    def failing(self: Storage, path: str, data: bytes, *, create: bool = False) -> None:
        monkeypatch.setattr(type(storage), "put", put)
        raise LogUnavailableError("no answer", path=path)

    return lambda: monkeypatch.setattr(type(storage), "put", failing)


def test_what_a_put_without_effect_named_is_removed_when_the_next_commit_shows_it(
    storage: Storage, away: Callable[[], None]
) -> None:
    with capturing(storage) as (capture, log):
        capture.learn(ORDERS)
        for _ in range(2):
            away()
            with pytest.raises(LogUnavailableError, match="no answer"):
                capture.submit(Stretch(Lsn(20), [inserts(20, [1])]), {}).result()
        assert len(data_files(storage)) == 2
        capture.submit(Stretch(Lsn(20), [inserts(20, [1])]), {}).result()
        assert set(data_files(storage)) == named(log)
    assert committed_rows(storage) == [(20, 1)]


def test_a_draft_in_doubt_may_still_be_committed_after_another(
    storage: Storage, away: Callable[[], None]
) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        draft = CommitDraft(Lsn(10), WHEN, [log.stage(inserts(10, [1]))])
        away()
        with pytest.raises(LogUnavailableError):
            log.commit(draft)
        log.commit(CommitDraft(None))
        log.commit(draft)
    assert committed_rows(storage) == [(10, 1)]
