"""The contract of Storage, on every kind of it."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import (
    LogError,
    LogFullError,
    LogLockedError,
    LogUnavailableError,
    ObjectExistsError,
    ObjectMissingError,
)
from headrace.log import Storage, open_storage


def _paths(storage: Storage, prefix: str = "") -> list[str]:
    return [entry.path for entry in storage.list(prefix)]


def test_what_was_put_is_what_is_got(storage: Storage) -> None:
    storage.put("a/b.bin", b"\x00\xff one")
    assert storage.get("a/b.bin") == b"\x00\xff one"
    storage.put("a/b.bin", b"two")
    assert storage.get("a/b.bin") == b"two"


def test_put_if_absent_never_replaces(storage: Storage) -> None:
    storage.put("a/1", b"first", create=True)
    with pytest.raises(ObjectExistsError):
        storage.put("a/1", b"second", create=True)
    assert storage.get("a/1") == b"first"
    assert _paths(storage, "a") == ["a/1"]


def test_of_many_who_put_if_absent_exactly_one_wins(storage: Storage) -> None:
    def attempt(number: int) -> bool:
        try:
            storage.put("race", b"%d" % number, create=True)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [n for n, success in enumerate(pool.map(attempt, range(8))) if success]
    assert storage.get("race") == b"%d" % won[0]
    assert len(won) == 1


def test_what_is_missing_is_told_apart(storage: Storage) -> None:
    assert not storage.exists("no/such")
    with pytest.raises(ObjectMissingError, match="no/such"):
        storage.get("no/such")
    with pytest.raises(ObjectMissingError, match="no/such"):
        storage.size("no/such")
    with pytest.raises(ObjectMissingError, match="no/such"), storage.open("no/such"):
        pass
    assert storage.list("no") == []
    storage.delete(["no/such", "neither"])


def test_delete_removes_exactly_what_it_is_told(storage: Storage) -> None:
    for name in ("a/1", "a/2", "b"):
        storage.put(name, b"x")
    storage.delete(["a/1", "a/gone", "b"])
    assert _paths(storage) == ["a/2"]


def test_listing_is_sorted_deep_and_by_whole_folders(storage: Storage) -> None:
    for name in ("a/z", "a/b/c", "ab/x", "a/10"):
        storage.put(name, b"12345")
    assert _paths(storage, "a") == ["a/10", "a/b/c", "a/z"]
    assert {entry.size for entry in storage.list("a")} == {5}


def test_encoded_names_stay_as_they_are(storage: Storage) -> None:
    storage.put("a%46b/%C3%A9~x.json", b"x")
    assert _paths(storage) == ["a%46b/%C3%A9~x.json"]
    assert storage.get("a%46b/%C3%A9~x.json") == b"x"


def test_a_file_is_read_by_ranges(storage: Storage) -> None:
    storage.put("a/b", b"0123456789")
    assert storage.size("a/b") == 10
    assert storage.get_range("a/b", 3, 4) == b"3456"
    with storage.open("a/b") as file:
        file.seek(-3, os.SEEK_END)
        assert (file.read(2), file.tell()) == (b"78", 9)
        file.seek(0)
        assert file.read(100) == b"0123456789"


def test_parquet_reads_from_an_open_file(storage: Storage) -> None:
    rows = pa.table({"n": range(1000)})
    with storage.write() as group:
        pq.write_table(rows, group.open("t.parquet"))
    with storage.open("t.parquet") as source, pq.ParquetFile(source) as file:
        assert file.read() == rows


def test_folders_are_told_and_files_are_none(storage: Storage) -> None:
    for path in ("a/b/c", "a/d/e", "a/f", "g"):
        storage.put(path, b"x")
    assert sorted(storage.folders("a")) == ["b", "d"]
    assert [*storage.folders("")] == ["a"]
    assert [*storage.folders("no/such")] == []


def test_local_files_from_elsewhere_are_taken_over_whole(
    local_storage: Storage, tmp_path: Path
) -> None:
    _take_over(local_storage, open_storage(f"file://{tmp_path}/else%20where"))


def test_objects_from_elsewhere_in_a_bucket_are_taken_over_whole(
    s3_storage: Storage, s3_options: dict[str, str]
) -> None:
    _take_over(s3_storage, open_storage(f"{s3_storage.url}-beside", s3_options))


def _take_over(storage: Storage, elsewhere: Storage) -> None:
    elsewhere.put("one", b"first")
    elsewhere.put("two", b"second")
    sources = {"a/1": elsewhere.location("one"), "b/2": elsewhere.location("two")}
    assert [*storage.take_over(sources)] == []
    elsewhere.delete(["one", "two"])
    assert (storage.get("a/1"), storage.get("b/2")) == (b"first", b"second")


def test_what_is_on_another_kind_of_storage_is_not_taken_over(
    local_storage: Storage, s3_storage: Storage
) -> None:
    local_storage.put("x", b"local")
    s3_storage.put("x", b"remote")
    assert [*s3_storage.take_over({"y": local_storage.location("x")})] == ["y"]
    assert [*local_storage.take_over({"y": s3_storage.location("x")})] == ["y"]
    assert not local_storage.exists("y")


def test_local_files_across_file_systems_are_not_taken_over(
    local_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another file system")

    local_storage.put("x", b"x")
    monkeypatch.setattr(Path, "hardlink_to", refused)
    assert [*local_storage.take_over({"y": local_storage.location("x")})] == ["y"]


def test_files_of_a_group_appear_together_at_its_end(storage: Storage) -> None:
    with storage.write() as group:
        for name in ("a/1", "a/2", "b/1"):
            group.open(name).write(name.encode() * 1000)
        assert _paths(storage) == []
    assert _paths(storage) == ["a/1", "a/2", "b/1"]
    assert storage.get("b/1") == b"b/1" * 1000


def test_a_failed_group_leaves_nothing(storage: Storage) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), storage.write(fail) as group:
        group.open("a/1").write(b"x" * 500_000)
    assert _paths(storage) == []


def test_no_room_is_told_as_such_and_leaves_nothing(storage: Storage) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(LogFullError) as caught, storage.write(full) as group:
        group.open("a/1").write(b"x")
    assert caught.value.transient
    assert _paths(storage) == []


def test_the_lock_has_one_holder_who_is_named(storage: Storage) -> None:
    lock = storage.lock("l/writer.lock")
    with pytest.raises(LogLockedError, match=f"process {os.getpid()}") as caught:
        storage.lock("l/writer.lock")
    assert caught.value.hint
    lock.release()
    lock.release()
    again = storage.lock("l/writer.lock")
    assert not again.took_over
    again.check()
    again.release()


# -- the local disk --------------------------------------------------------------------------------


def test_local_bytes_are_durable_before_the_name_and_the_name_before_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that DESIGN.md §6 asks for, seen at the system calls."""
    storage = open_storage(tmp_path)
    (tmp_path / "d").mkdir()
    calls: list[str] = []
    fsync, rename, link = os.fsync, os.rename, os.link

    def spy_fsync(fd: int) -> None:
        calls.append("fsync " + Path(f"/proc/self/fd/{fd}").readlink().name.split(".")[-1])
        fsync(fd)

    def spy_rename(a: object, b: object) -> None:
        calls.append("rename")
        rename(a, b)  # type: ignore[arg-type]

    def spy_link(a: object, b: object) -> None:
        calls.append("link")
        link(a, b)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    monkeypatch.setattr(os, "link", spy_link)
    storage.put("d/x", b"1")
    assert calls == ["fsync tmp", "rename", "fsync d"]
    calls.clear()
    storage.put("d/y", b"1", create=True)
    assert calls == ["fsync tmp", "link", "fsync d"]
    for count in (3, 20):  # so many are synced side by side
        calls.clear()
        with storage.write() as group:
            for number in range(count):
                group.open(f"d/{number}").write(b"x")
        assert calls == ["fsync tmp"] * count + ["rename"] * count + ["fsync d"]


def test_local_new_folders_are_durable_in_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    open_storage(tmp_path / "state").put("a/b/c", b"x")
    for folder in (tmp_path, tmp_path / "state", tmp_path / "state/a", tmp_path / "state/a/b"):
        assert str(folder) in synced


def test_local_temporary_files_are_hidden_and_recovered(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.put("a/b/kept", b"x")
    (tmp_path / "a/b/.kept.0123.tmp").write_bytes(b"half")
    assert _paths(storage) == ["a/b/kept"]
    storage.recover("a")
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["kept"]


def test_local_refusals_name_the_path_and_the_operation(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LogError, match=r"cannot create .*/file/below: Not a directory") as caught:
        open_storage(tmp_path).put("file/below", b"x")
    assert not isinstance(caught.value, LogFullError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_local_disk_that_is_really_full_is_told_and_recovers(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        storage = open_storage(disk)
        with pytest.raises(LogFullError, match="No space left"):
            storage.put("a/big", b"x" * 1_000_000)
        assert [p.name for p in (disk / "a").iterdir()] == []
        storage.put("a/small", b"x" * 30_000)
        assert len(storage.get("a/small")) == 30_000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_urls_are_local_paths(tmp_path: Path) -> None:
    open_storage(f"file://{tmp_path}/with%20space").put("x", b"1")
    assert (tmp_path / "with space/x").read_bytes() == b"1"


# -- object stores ---------------------------------------------------------------------------------


def test_large_objects_arrive_whole(s3_storage: Storage) -> None:
    block = os.urandom(1 << 20)
    with s3_storage.write() as group:
        file = group.open("big")
        for _ in range(40):  # more than is kept in memory
            file.write(block)
    assert s3_storage.get("big") == block * 40


def test_a_store_that_is_away_is_transient_and_tells_no_secret() -> None:
    options = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t-value",
        "AWS_REGION": "us-east-1",
        "allow_http": "true",
    }
    storage = open_storage("s3://bucket/prefix", options)
    with pytest.raises(LogUnavailableError) as caught:
        storage.get("x")
    assert caught.value.transient
    assert "s3cr3t" not in repr(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("url", "options"), [("nfs://x/y", {}), ("s3://bucket", {"no_such_option": "1"})]
)
def test_a_wrong_location_is_refused_at_once(url: str, options: dict[str, str]) -> None:
    with pytest.raises(LogError) as caught:
        open_storage(url, options)
    assert not caught.value.transient
    assert caught.value.hint
