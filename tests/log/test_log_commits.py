"""Commits and their readers, on a local disk and on S3."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import numpy as np
import pyarrow as pa
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
    rows_of,
)

from headrace import failpoints
from headrace.errors import LogCorruptError, LogError, LogFullError, LogLockedError
from headrace.log import (
    CommitDraft,
    LogFeed,
    LogReader,
    LogWriter,
    SchemaChange,
    SnapshotEvent,
    SnapshotFile,
    Storage,
)
from headrace.log.layout import Layout
from headrace.log.lock import Lease
from headrace.log.objects import ObjectStorage, _LeaseObject
from headrace.model import Column, Lsn, TableId, TableSchema, TransactionEnd

LAYOUT = Layout(CAPTURE)


def test_a_fresh_reader_finds_exactly_what_was_committed(storage: Storage) -> None:
    sent = batch([change(1, 20), change(1, 20, "u", 1), change(2, 20, "d", 2)])
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        assert log.position is None
        manifest = log.commit(CommitDraft(Lsn(20), WHEN, [log.stage(sent)]))
        assert log.position == Lsn(20)
    reader = LogReader.open(storage, CAPTURE)
    [found] = reader.manifests(0)
    assert found == manifest
    assert (found.from_lsn, found.to_lsn, found.commit_ts) == (Lsn(0), Lsn(20), WHEN)
    assert found.schemas == (SchemaChange(ORDERS.table, 1),)
    [file] = found.files
    assert (file.rows, file.ops) == (3, {"i": 1, "u": 1, "d": 1})
    [received] = reader.read(file)
    assert received.schema == ORDERS
    assert received.data.equals(sent.data)
    assert reader.read_columns(file, ["id"]).to_pydict() == {"id": [1, 1, 2]}


def test_what_is_staged_is_invisible_and_swept_what_is_committed_stays(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        commit(log, 10, [1])
        log.stage(inserts(20, [2]))
        with log.stage_snapshot(ORDERS, Lsn(10), 0) as chunk:
            chunk.write(rows_of([1]))
        assert committed_rows(storage) == [(10, 1)]
        assert len(data_files(storage)) == 3
    with LogWriter.open(storage, CAPTURE) as log:
        assert len(data_files(storage)) == 1
        commit(log, 20, [3])
    assert committed_rows(storage) == [(10, 1), (20, 3)]


def test_a_file_spilled_long_before_its_commit_is_kept_and_gets_its_transaction(
    storage: Storage,
) -> None:
    """Invariant 2: rows of an open transaction show when it commits, under its LSN."""
    end = TransactionEnd(Lsn(35), WHEN + timedelta(seconds=1), 9)
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        spilled = log.stage(batch([change(7, None)]))
        commit(log, 10, [1])
        commit(log, 20, [2])
        with pytest.raises(LogError, match="has not committed"):
            log.commit(CommitDraft(Lsn(40), WHEN, [spilled]))
        log.commit(CommitDraft(Lsn(40), WHEN, [replace(spilled, transaction=end)]))
        commit(log, 50, [3])
        log.stage(inserts(60, [99]))
    with LogWriter.open(storage, CAPTURE):
        assert committed_rows(storage) == [(10, 1), (20, 2), (35, 7), (50, 3)]
    reader = LogReader.open(storage, CAPTURE)
    [manifest] = reader.manifests(2, 3)
    [row] = reader.read(manifest.files[0])[0].data.to_pylist()
    assert (row["_commit_lsn"], row["_xid"], row["_commit_ts"]) == (35, 9, end.commit_ts)


def test_2_what_a_subtransaction_wrote_is_taken_out_of_a_file_when_it_was_rolled_back(
    storage: Storage,
) -> None:
    """Invariant 2; a file of nothing else is not written anew."""
    end = TransactionEnd(Lsn(35), WHEN, 9)
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        rows = [{**change(n, None, ordinal=n), "_xid": xid} for n, xid in enumerate([9, 10, 11])]
        spilled = log.stage(batch(rows))
        assert log.without(spilled, np.array([9, 10, 11], np.uint32)) is None
        rest = log.without(spilled, np.array([10, 12], np.uint32))
        assert rest is not None
        assert (rest.rows, rest.ops) == (2, {"i": 2})
        log.discard([spilled])
        log.commit(CommitDraft(Lsn(40), WHEN, [replace(rest, transaction=end)]))
        assert len(data_files(storage)) == 1
    assert committed_rows(storage) == [(35, 0), (35, 2)]


def test_an_aborted_transactions_files_are_deleted(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        spilled = log.stage(batch([change(7, None)]))
        log.discard([spilled])
        assert data_files(storage) == []
        end = TransactionEnd(Lsn(5), WHEN, 9)
        with pytest.raises(LogError, match="not staged"):
            log.commit(CommitDraft(Lsn(10), WHEN, [replace(spilled, transaction=end)]))


def test_invariant_2_nothing_is_committed_twice_or_out_of_order(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        first = commit(log, 20, [1])
        with pytest.raises(LogError, match="outside of the commit's range"):
            log.commit(CommitDraft(Lsn(20), WHEN, first.files))
        end = TransactionEnd(Lsn(30), WHEN, 9)
        with pytest.raises(LogError, match="committed already"):
            log.commit(CommitDraft(Lsn(30), WHEN, [replace(first.files[0], transaction=end)]))
        with pytest.raises(LogError, match="outside of the commit's range"):
            commit(log, 20, [1])
        with pytest.raises(LogError, match="go back"):
            log.commit(CommitDraft(Lsn(19)))
        beyond = log.stage(inserts(40, [2]))
        with pytest.raises(LogError, match="outside of the commit's range"):
            log.commit(CommitDraft(Lsn(30), WHEN, [beyond]))
        log.commit(CommitDraft(Lsn(40), WHEN, [beyond]))
    assert committed_rows(storage) == [(20, 1), (40, 2)]


def test_progress_alone_is_a_commit(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        assert log.commit(CommitDraft(Lsn(77))).files == ()
        log.commit(CommitDraft(None))
    with LogWriter.open(storage, CAPTURE) as log:
        assert log.position == Lsn(77)
        assert log.head is not None
        assert log.head.commit == 2


def test_a_snapshot_is_whole_or_absent_and_two_at_one_lsn_do_not_mix(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        events = []
        for ids in ([1, 2], [3, 4, 5]):
            files = []
            for number, row in enumerate(ids):
                with log.stage_snapshot(ORDERS, Lsn(30), number) as chunk:
                    chunk.write(rows_of([row]))
                files.append(chunk.file)
            events.append(SnapshotEvent(ORDERS.table, Lsn(30), 1, tuple(files)))
        for event in events:
            log.commit(CommitDraft(None, snapshots=[event]))
        with pytest.raises(LogError, match="columns"), log.stage_snapshot(ORDERS, Lsn(30), 0) as c:
            c.write(pa.record_batch({"id": [1]}))
        with pytest.raises(LogError, match="not complete"):
            _ = c.file
    assert len(data_files(storage)) == 5
    reader = LogReader.open(storage, CAPTURE)
    assert [m.snapshots for m in reader.manifests(0)] == [(events[0],), (events[1],)]
    assert len(set(reader.snapshot_files(events[1]))) == 3


def test_full_storage_leaves_nothing_and_the_same_draft_commits_later(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        failpoints.arm("log.file_written=enospc@1-2,log.manifest_put=enospc@1")
        for _ in range(2):
            with pytest.raises(LogFullError):
                log.stage(inserts(10, [1]))
        assert data_files(storage) == []
        draft = CommitDraft(Lsn(10), WHEN, [log.stage(inserts(10, [1]))])
        with pytest.raises(OSError, match="failpoint"):  # the put's answer is lost
            log.commit(draft)
        log.commit(draft)
        commit(log, 20, [2])
    assert committed_rows(storage) == [(10, 1), (20, 2)]


def test_a_second_writer_is_refused_and_told_who_writes(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE):
        with pytest.raises(LogLockedError, match=r"held by another writer: host .*, process"):
            LogWriter.open(storage, CAPTURE)
        LogWriter.open(storage, "another capture").close()
    LogWriter.open(storage, CAPTURE).close()


def test_a_manifest_put_by_somebody_else_stops_the_writer(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        first = commit(log, 10, [1])
        foreign = storage.get(LAYOUT.manifest(1)).replace(b'"commit":1', b'"commit":2')
        storage.put(LAYOUT.manifest(2), foreign.replace(first.writer.encode(), b"somebody else"))
        with pytest.raises(LogLockedError, match="another writer"):
            commit(log, 20, [2])
        assert log.head == first


# -- damage ----------------------------------------------------------------------------------------


def test_threads_stage_and_commit_at_once_and_nothing_is_lost_or_swept(storage: Storage) -> None:
    """Snapshots are copied by threads of their own beside the stream's commits."""

    def copy(log: LogWriter, number: int) -> list[SnapshotFile]:
        files = []
        for chunk in range(3):
            with log.stage_snapshot(ORDERS, Lsn(5), 3 * number + chunk) as writer:
                writer.write(rows_of([number, chunk]))
            files.append(writer.file)
        return files

    with LogWriter.open(storage, CAPTURE) as log, ThreadPoolExecutor(4) as pool:
        log.add_schema(ORDERS)
        copies = [pool.submit(copy, log, number) for number in range(3)]
        for lsn in range(10, 110, 10):
            commit(log, lsn, [lsn])
        files = tuple(file for each in copies for file in each.result())
        log.commit(CommitDraft(None, snapshots=[SnapshotEvent(ORDERS.table, Lsn(5), 1, files)]))
    with LogWriter.open(storage, CAPTURE):
        reader = LogReader.open(storage, CAPTURE)
        [*changes, last] = reader.manifests(0)
        assert len(set(reader.snapshot_files(last.snapshots[0]))) == 9
    batches = reader.read_all([file for manifest in changes for file in manifest.files])
    assert [b.data.column("id")[0].as_py() for b in batches] == list(range(10, 110, 10))


@pytest.mark.parametrize("left", [0, 1, 100])
def test_a_torn_manifest_is_told(storage: Storage, left: int) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        commit(log, 10, [1])
    storage.put(LAYOUT.manifest(1), storage.get(LAYOUT.manifest(1))[:left])
    with pytest.raises(LogCorruptError, match=r"00001\.json"):
        committed_rows(storage)
    with pytest.raises(LogCorruptError):
        LogWriter.open(storage, CAPTURE)
    with pytest.raises(LogCorruptError):  # and the lock was let go
        LogWriter.open(storage, CAPTURE)


def test_a_hole_in_the_numbers_is_told_to_writers_and_readers(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        for lsn in (10, 20, 30):
            commit(log, lsn, [lsn])
    storage.delete([LAYOUT.manifest(2)])
    with pytest.raises(LogCorruptError, match="commit 2 is missing"):
        LogWriter.open(storage, CAPTURE)
    reader = LogReader.open(storage, CAPTURE)
    with pytest.raises(LogCorruptError, match="commit 2 is missing"):
        reader.head()
    with pytest.raises(LogCorruptError, match=r"00002\.json is missing"):
        list(reader.manifests(0))


def test_missing_damaged_and_wrong_data_files_are_told(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        file = commit(log, 10, list(range(1000))).files[0]
        other = commit(log, 20, [1]).files[0]
    reader = LogReader.open(storage, CAPTURE)
    whole = storage.get(file.path)
    flipped = bytearray(whole)
    flipped[len(whole) // 4] ^= 0xFF
    for content in (whole[:-9], b"", bytes(flipped), storage.get(other.path)):
        storage.put(file.path, content)
        with pytest.raises(LogCorruptError):
            reader.read(file)
    storage.delete([file.path])
    with pytest.raises(LogCorruptError, match="missing"):
        reader.read(file)


def test_a_log_that_lost_its_identity_is_not_begun_anew(storage: Storage) -> None:
    with pytest.raises(LogError, match="there is no change log"):
        LogReader.open(storage, CAPTURE)
    with LogWriter.open(storage, CAPTURE) as log:
        commit(log, 10, [1])
    storage.delete([LAYOUT.identity])
    with pytest.raises(LogCorruptError, match=r"log\.json is missing"):
        LogWriter.open(storage, CAPTURE)


def test_a_log_begun_anew_has_another_id(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        first = log.log_id
    with LogWriter.open(storage, CAPTURE) as log:
        assert log.log_id == first
    storage.delete([LAYOUT.identity])
    with LogWriter.open(storage, CAPTURE) as log:
        assert log.log_id != first


# -- schemas ---------------------------------------------------------------------------------------


def test_schema_versions_are_kept_and_never_change(storage: Storage) -> None:
    wider = replace(
        ORDERS,
        version=2,
        columns=(*ORDERS.columns, Column("n", pa.decimal128(10, 2), "numeric(10,2)", 3)),
        missing={"n": pa.scalar(None, pa.decimal128(10, 2))},
    )
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        log.add_schema(wider)
        log.add_schema(wider)
        with pytest.raises(LogError, match="new number"):
            log.add_schema(replace(wider, key=("id", "n")))
    with LogWriter.open(storage, CAPTURE) as log:
        assert log.latest_schemas() == {ORDERS.table: wider}
    reader = LogReader.open(storage, CAPTURE)
    assert reader.schema(ORDERS.table, 1) == ORDERS
    assert reader.schema(ORDERS.table, 2) == wider
    with pytest.raises(LogCorruptError, match=r"3\.json is missing"):
        reader.schema(ORDERS.table, 3)


def test_schemas_of_many_tables_are_recorded_whether_or_not_some_were_there(
    storage: Storage,
) -> None:
    schemas = [replace(ORDERS, table=TableId("public", f"t{n}")) for n in range(12)]
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schemas(schemas[3:5])
        log.add_schemas(schemas)
        manifest = log.commit(CommitDraft(Lsn(1)))
        assert len(manifest.schemas) == len(schemas)
    with LogWriter.open(storage, CAPTURE) as log:
        assert log.latest_schemas() == {schema.table: schema for schema in schemas}


NAMES = [("a.b", "c"), ("a", "b.c"), ("Tab", "x"), ("tab", "X"), ("tab", "x"), ("é/..", '"q" %2F')]


def test_any_table_name_has_a_place_of_its_own(storage: Storage) -> None:
    tables = [TableId(*name) for name in [*NAMES, ("日" * 21, "本" * 21), ("日" * 21, "本" * 20)]]
    with LogWriter.open(storage, CAPTURE) as log:
        files = []
        for number, table in enumerate(tables):
            schema = replace(ORDERS, table=table)
            log.add_schema(schema)
            files.append(log.stage(inserts(10, [number], schema)))
        log.commit(CommitDraft(Lsn(10), WHEN, files))
        assert {s.table for s in log.latest_schemas().values()} == set(tables)
    folders = {path.rsplit("/", 1)[0].casefold() for path in data_files(storage)}
    assert len(folders) == len(tables)
    assert all(len(folder.rsplit("/", 1)[1]) <= 255 for folder in folders)
    assert committed_rows(storage) == [(10, n) for n in range(len(tables))]


def test_a_table_without_columns_and_wide_types_pass(storage: Storage) -> None:
    bare = TableSchema(TableId("public", "bare"), 1, ())
    row = {**change(0, 10), "_op": "i"}
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(bare)
        sent = batch([row], bare)
        log.commit(CommitDraft(Lsn(10), WHEN, [log.stage(sent)]))
    reader = LogReader.open(storage, CAPTURE)
    [manifest] = reader.manifests(0)
    assert reader.read(manifest.files[0])[0].data.equals(sent.data)


# -- tailing ---------------------------------------------------------------------------------------


def test_a_reader_elsewhere_sees_commits_by_polling(storage: Storage) -> None:
    with LogWriter.open(storage, CAPTURE) as log:
        log.add_schema(ORDERS)
        reader = LogReader.open(storage, CAPTURE)
        assert reader.head() == 0
        assert not reader.wait(0, 0.01)
        later = threading.Timer(0.05, commit, [log, 10, [1]])
        later.start()
        assert reader.wait(0, 30)
        later.join()
        commit(log, 20, [2])
        commit(log, 30, [3])
        assert reader.head() == 3
        assert [m.commit for m in reader.manifests(1)] == [2, 3]
        assert [m.commit for m in reader.manifests(1, 2)] == [2]
        assert list(reader.manifests(3)) == []
        with pytest.raises(LogCorruptError):
            list(reader.manifests(3, 4))


def test_a_reader_beside_the_writer_is_woken_and_reads_nothing_back(storage: Storage) -> None:
    feed = LogFeed()
    with LogWriter.open(storage, CAPTURE, feed=feed) as log:
        log.add_schema(ORDERS)
        reader = LogReader.open(storage, CAPTURE, feed=feed)
        later = threading.Timer(0.05, commit, [log, 10, [1, 2]])
        later.start()
        assert reader.wait(0, 30)
        later.join()
        assert not reader.wait(1, 0.01)
        # With the files gone, only memory can answer.
        storage.delete([*data_files(storage), LAYOUT.manifest(1)])
        reader.storage = None  # type: ignore[assignment]  # any request fails
        [manifest] = reader.manifests(0)
        assert list(reader.manifests(1)) == []
        [part] = reader.read(manifest.files[0])
        assert part.data.column("id").to_pylist() == [1, 2]
    assert feed.head is None


def test_invariant_10_recent_commits_in_memory_are_bounded(storage: Storage) -> None:
    feed = LogFeed(limit=100_000)
    with LogWriter.open(storage, CAPTURE, feed=feed) as log:
        log.add_schema(ORDERS)
        for lsn in range(10, 310, 10):
            commit(log, lsn, range(lsn * 1000, lsn * 1000 + 100))
        kept = [n for n in range(1, 31) if feed.manifest(n)]
        assert 2 <= len(kept) < 30
        assert kept == list(range(kept[0], 31))  # the newest ones
        reader = LogReader.open(storage, CAPTURE, feed=feed)
        assert sum(f.rows for m in reader.manifests(0) for f in m.files) == 3000
        assert all(len(reader.read(f)[0].data) == 100 for m in reader.manifests(0) for f in m.files)


# -- the lease on object stores --------------------------------------------------------------------


def test_a_writer_whose_lease_ran_out_can_commit_no_more(s3_storage: Storage) -> None:
    """Its staged files were swept by the next one, so its commit would name what is gone."""
    paused = LogWriter.open(s3_storage, CAPTURE)
    paused.add_schema(ORDERS)
    commit(paused, 10, [1])
    staged = paused.stage(inserts(20, [2]))
    lease = json.loads(s3_storage.get(LAYOUT.lock))
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    s3_storage.put(LAYOUT.lock, json.dumps({**lease, "expires": past}).encode())
    with LogWriter.open(s3_storage, CAPTURE) as log:
        assert len(data_files(s3_storage)) == 1
        with pytest.raises(LogLockedError):
            paused.commit(CommitDraft(Lsn(20), WHEN, [staged]))
        commit(log, 20, [3])
        assert committed_rows(s3_storage) == [(10, 1), (20, 3)]
        paused.close()
        with pytest.raises(LogLockedError):  # the old one did not take the new one's lease away
            LogWriter.open(s3_storage, CAPTURE)


def _until(happened: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not happened():  # the runner's own timeout ends a wait in vain
        pause.wait(0.02)


def test_a_lease_is_renewed_while_it_is_held_and_its_loss_is_noticed(s3_storage: Storage) -> None:
    path = "l/writer.lock"
    store = _LeaseObject(cast(ObjectStorage, s3_storage), path)
    lease = Lease(path, store, timedelta(seconds=0.6))
    first = s3_storage.get(path)
    _until(lambda: s3_storage.get(path) != first)
    lease.check()
    s3_storage.put(path, json.dumps({"holder": "somebody", "host": "elsewhere"}).encode())

    def lost() -> bool:
        try:
            lease.check()
        except LogLockedError as error:
            return "host elsewhere" in str(error)
        return False

    _until(lost)
    lease.release()
    assert b"somebody" in s3_storage.get(path)
