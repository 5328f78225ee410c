"""A table copied in ranges by several snapshots comes to what it was at one LSN."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from change_samples import TRUNCATE, delete, insert, update
from ranged_source import FIRST_LSN, RANGES, TABLE, Ranged, rows_in

from headrace.engine.capture import Capture
from headrace.engine.copying import Copier
from headrace.engine.range_files import RangeFiles
from headrace.errors import HeadraceError, SourceUnavailableError
from headrace.log import LogReader, LogWriter, SnapshotEvent, Storage, expire, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path)


@contextmanager
def running(storage: Storage, source: Ranged | None = None) -> Iterator[Ranged]:
    """A process that has the log open; the source lives on from one to the next."""
    with LogWriter.open(storage, "shop") as log:
        source = source or Ranged(log)
        source.log = log
        if source.lsn == FIRST_LSN:
            source.transaction(*(insert(id=i, n=0, body=f"first {i}") for i in range(-50, 100, 3)))
            source.stream()
        yield source


def attempt(source: Ranged) -> tuple[Copier, HeadraceError | None]:
    """One try at copying the table; what went wrong, if something did."""
    capture = Capture(cast(Any, source), source.log)
    copier = Copier(cast(Any, source), source.log, capture, threading.Event())
    try:
        copier.copy([TABLE])
    except HeadraceError as error:
        return copier, error
    finally:
        capture.close()
    return copier, copier.progress[TABLE].error


def cut_short(source: Ranged, after: int) -> None:
    source.fails_after = after
    _, error = attempt(source)
    assert error is not None
    source.fails_after = 1000


def snapshots(storage: Storage) -> list[SnapshotEvent]:
    reader = LogReader.open(storage, "shop")
    return [event for manifest in reader.manifests(reader.floor) for event in manifest.snapshots]


def assert_exact(storage: Storage, source: Ranged) -> SnapshotEvent:
    """The log holds one snapshot, of what the table was at its LSN, and no other file."""
    (event,) = snapshots(storage)
    assert rows_in_log(storage, event) == source.history[event.lsn]
    reader = LogReader.open(storage, "shop")
    named = {path for m in reader.manifests(reader.floor) for path in m.paths}
    files = {e.path for e in storage.list("log") if e.path.endswith(".parquet")}
    assert files == named
    assert not storage.list("log/shop/unfinished")
    return event


@pytest.mark.parametrize("seed", range(12))
def test_7_any_ranges_of_any_lsns_under_any_changes_come_to_one_lsn(
    storage: Storage, seed: int
) -> None:
    """Invariant 7: keys move, values are not sent, rows go and come, the table is truncated."""
    chance = random.Random(seed)
    source, done = None, False
    while not done:
        with running(storage, source) as source:
            source.chance, source.unsent_moves = chance, bool(seed % 3)
            source.meanwhile = source.anything
            for _ in range(chance.randint(1, 2)):  # attempts of one process
                source.anything()
                source.fails_after = chance.choice([1, 2, 3, 5, 1000])
                if chance.random() < 0.5:
                    source.stream()
                copier, _ = attempt(source)
                if done := copier.progress[TABLE].done:
                    break
    assert_exact(storage, source)


def test_ranges_that_are_finished_are_not_read_again(storage: Storage) -> None:
    with running(storage) as source:
        cut_short(source, 4)
        kept = {f.path for f in source.log.unfinished[TABLE].files}
        read = list(source.read_ranges)
    with running(storage, source):
        source.transaction(update(id=-50, n=7, unsent=("body",)))
        _, error = attempt(source)
        assert error is None
    event = assert_exact(storage, source)
    assert len(source.read_ranges) == len(set(source.read_ranges)) == len(RANGES)
    assert len(read) == 4
    assert len(kept & {f.path for f in event.files}) == 3  # all but the one with the changed row


def test_a_run_that_commits_nothing_first_writes_over_nothing_that_an_earlier_one_kept(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files begin with the next commit's number, which is the same for both runs."""
    with running(storage) as source:
        cut_short(source, 2)
    with running(storage, source):  # at the same LSN
        cut_short(source, 2)
        source.transaction(update(id=-50, n=7, body="late"))
        source.stream()
        with monkeypatch.context() as patch:
            patch.setattr(RangeFiles, "apply", Mock(side_effect=SourceUnavailableError("killed")))
            _, error = attempt(source)
            assert error is not None
    kept = {f.path: storage.get(f.path) for f in source.log.unfinished[TABLE].files}
    assert len(kept) == len(RANGES)
    with running(storage, source):
        with monkeypatch.context() as patch:
            patch.setattr(LogWriter, "discard", lambda *_: None)
            _, error = attempt(source)
            assert error is None
        assert kept == {path: storage.get(path) for path in kept}
    (event,) = snapshots(storage)
    assert rows_in_log(storage, event) == source.history[event.lsn]


def test_a_row_that_moves_between_ranges_of_two_snapshots_is_there_once(storage: Storage) -> None:
    """Out of one that is behind into one that is not, the other way round, and within each."""
    with running(storage) as source:
        cut_short(source, 3)
        behind = {p.keys for p in source.log.unfinished[TABLE].done}
        assert {RANGES[0], RANGES[1]} <= behind
        for old, new in ((-50, 111), (-47, -3), (97, -49), (94, 112)):
            source.transaction(update({"id": old}, id=new, n=1, body="moved"))
        source.transaction(delete(id=-44), insert(id=-44, n=5, body="again"))
        _, error = attempt(source)
        assert error is None
    assert_exact(storage, source)


def test_a_value_that_no_range_holds_has_the_table_copied_anew_and_says_so(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """The row left its range before that was copied, for one that had been copied already."""
    with running(storage) as source:
        cut_short(source, 3)
        assert RANGES[-1] not in {p.keys for p in source.log.unfinished[TABLE].done}
        source.transaction(update({"id": 97}, ("body",), id=-51, n=1))
        copier, error = attempt(source)
        assert error is not None
        assert "did not tell its body" in caplog.text
        assert not copier.progress[TABLE].ended
        _, error = attempt(source)
        assert error is None
    assert_exact(storage, source)


@pytest.mark.parametrize(
    ("schema_version", "identity"),
    [(2, "16384"), (1, "16999")],
    ids=["a column was added", "the table was recreated"],
)
def test_ranges_of_another_definition_are_given_up(
    storage: Storage, schema_version: int, identity: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(storage) as source:
        cut_short(source, 3)
        source.schema_version, source.identity_now = schema_version, identity
        _, error = attempt(source)
        assert error is not None
        assert error.transient
        assert "definition changed" in caplog.text
        _, error = attempt(source)
        assert error is None
    assert_exact(storage, source)


def test_a_truncate_empties_the_ranges_that_are_behind(storage: Storage) -> None:
    with running(storage) as source:
        cut_short(source, 3)
        source.transaction(TRUNCATE, insert(id=-50, n=1, body="after"))
        _, error = attempt(source)
        assert error is None
    assert rows_in_log(storage, assert_exact(storage, source)) == {-50: (1, "after")}


def rows_in_log(storage: Storage, event: SnapshotEvent) -> dict[int, tuple[int, str]]:
    return rows_in(LogReader.open(storage, "shop").snapshot_rows(event))


def test_a_table_that_the_stream_stopped_following_is_copied_anew(storage: Storage) -> None:
    """Changes between two of its ranges may be missing in the log."""
    with running(storage) as source:
        cut_short(source, 3)
    with running(storage, source):
        capture = Capture(cast(Any, source), source.log)
        capture.commit_stop(TABLE, HeadraceError("a value cannot be represented"))
        capture.close()
        source.transaction(update(id=-50, n=7, unsent=("body",)))
        _, error = attempt(source)
        assert error is not None
        _, error = attempt(source)
        assert error is None
    assert_exact(storage, source)


def test_a_crash_between_the_commit_and_the_end_of_its_document_loses_nothing(
    storage: Storage,
) -> None:
    """The document names files that are part of the log by then: they are not to be swept."""
    with running(storage) as source:
        cut_short(source, 3)
        (entry,) = storage.list("log/shop/unfinished")
        document = storage.get(entry.path)
        _, error = attempt(source)
        assert error is None
    storage.put(entry.path, document)
    with running(storage, source):
        assert not source.log.unfinished
    with running(storage, source):
        pass
    assert_exact(storage, source)


def test_retention_keeps_what_came_after_the_oldest_range(storage: Storage) -> None:
    """Also where every reader has passed it: the ranges are brought up by it."""
    with running(storage) as source:
        cut_short(source, 3)
        for n in range(3):
            source.transaction(update(id=-50, n=n, unsent=("body",)))
            source.stream()
        head = source.log.head
        assert head is not None
        LogReader.open(storage, "shop").record_position(
            "lake", {"tables": {str(TABLE): {"passed": head.commit}}}
        )
        assert expire(source.log, datetime.now(UTC), timedelta(0)).commits <= 2
        _, error = attempt(source)
        assert error is None
        assert_exact(storage, source)
        assert expire(source.log, datetime.now(UTC), timedelta(0)).commits > 0


def test_what_nobody_carries_any_more_holds_neither_files_nor_the_log(storage: Storage) -> None:
    with running(storage) as source:
        cut_short(source, 3)
        capture = Capture(cast(Any, source), source.log)
        copier = Copier(cast(Any, source), source.log, capture, threading.Event())
        copier.keep_only(())
        capture.close()
        assert not source.log.unfinished
    assert not storage.list("log/shop/unfinished")
    assert not storage.list("log/shop/snapshots")
