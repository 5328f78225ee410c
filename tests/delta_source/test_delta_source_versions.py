"""Versions are found as they come, without asking much, and whoever waits can be woken."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import polars as pl
import pytest
from deltalake import write_deltalake
from lakes import FEED_ON, NAME, Lake, feed, library_feed, multiset, of_table, people, read

from headrace.connectors.delta.source import DeltaSource
from headrace.errors import LogUnavailableError, SourceError, SourceUnavailableError
from headrace.log.local import LocalStorage
from headrace.model import Checkpoint, Lsn


def test_the_head_follows_the_log(lake: Lake) -> None:
    lake.write(people(1))
    source = lake.open()
    for number in range(1, 4):
        assert source.head().number == number - 1
        lake.write(people(number))
    head = source.head()
    (entry,) = lake.delta.history(1)
    assert head.number == entry["version"] == 3
    assert head.commit_ts.timestamp() * 1000 == entry["timestamp"]
    assert head.log_id == str(lake.delta.metadata().id)


def test_the_head_is_found_where_only_a_checkpoint_tells_it(lake: Lake) -> None:
    for number in range(3):
        lake.write(people(number))
    lake.delta.create_checkpoint()
    for version in range(3):
        lake.log(version).unlink()
    assert lake.open().head().number == 2


def test_in_commit_timestamps_come_first(lake: Lake) -> None:
    """PROTOCOL.md, "In-Commit Timestamps"."""
    lake.write(people(1))
    info = {"commitInfo": {"inCommitTimestamp": 1000, "timestamp": 2000, "operation": "WRITE"}}
    lake.log(1).write_text(json.dumps(info) + "\n")
    assert lake.open().head().commit_ts.timestamp() == 1.0


def test_a_commit_without_a_time_takes_that_of_its_files(lake: Lake) -> None:
    lake.write(people(1))
    lines = [json.loads(line) for line in lake.log(0).read_text().splitlines()]
    lake.log(0).write_text("".join(json.dumps(a) + "\n" for a in lines if "commitInfo" not in a))
    modified = next(a["add"]["modificationTime"] for a in lines if "add" in a)
    assert lake.open().head().commit_ts.timestamp() * 1000 == modified


def test_who_waits_sees_a_version_that_is_there_or_comes(lake: Lake) -> None:
    lake.write(people(1))
    source = lake.open()
    assert source.await_newer(-1, 0)
    assert not source.await_newer(0, 0)
    writer = threading.Thread(target=lake.write, args=(people(2),))
    writer.start()
    assert source.await_newer(0, 60)
    writer.join()


def test_who_waits_is_woken(lake: Lake) -> None:
    """Also by a wake that came first; each wake ends one wait."""
    lake.write(people(1))
    source = lake.open(poll=60)
    source.wake()
    assert not source.await_newer(0, 600)
    waiter = threading.Thread(target=source.await_newer, args=(0, 600))
    waiter.start()
    source.wake()
    waiter.join(60)
    assert not waiter.is_alive()


def test_following_a_table_reads_each_commit_once(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version costs one look for it, one reading, and one to see that the head still stands."""
    lake.write(people(1))
    source = lake.open()
    head = source.head()
    source.schema(head.number)
    asked: list[str] = []
    get = LocalStorage.get
    monkeypatch.setattr(
        LocalStorage, "get", lambda self, path: (asked.append(path), get(self, path))[1]
    )
    monkeypatch.setattr(LocalStorage, "list", lambda *_: pytest.fail("listed"))
    version = lake.write(people(2))
    assert source.await_newer(0, 1)
    assert source.head().number == version
    plan = source.plan(lake.at(0), version)
    assert feed(source, plan).total() == 1
    assert len([path for path in asked if path.endswith("1.json")]) <= 3


def test_storage_that_is_away_is_told_and_may_be_tried_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.write(people(1))
    source = lake.open()
    at = lake.at(0)

    def away(*_: object, **__: object) -> Iterator[None]:
        raise LogUnavailableError("cannot get it: timed out", hint="wait")

    for name in ("get", "list", "exists"):
        monkeypatch.setattr(LocalStorage, name, away)
    for ask in (
        source.head,
        lambda: source.await_newer(0, 1),
        lambda: source.schema(0),
        lambda: source.rows(0),
        lambda: source.plan(at, 0),
    ):
        with pytest.raises(SourceUnavailableError, match=r"crm\.customers.*timed out") as caught:
            ask()
        assert caught.value.transient


def test_a_damaged_commit_is_an_error_that_names_it(lake: Lake) -> None:
    lake.write(people(1))
    lake.log(1).write_text('{"add": {"pa')
    with pytest.raises(SourceError, match=lake.log(1).name) as caught:
        lake.open().head()
    assert caught.value.hint


def test_a_table_lives_on_an_object_store(s3_endpoint: str, s3_options: dict[str, str]) -> None:
    base = "s3://bucket/delta-source"
    url = f"{base}/crm/customers"
    write_deltalake(url, people(1, 2), storage_options=s3_options, configuration=FEED_ON)
    write_deltalake(url, people(3), storage_options=s3_options, mode="append")
    source = DeltaSource(base, s3_options, poll=0.01)
    assert source.tables() == [NAME]
    table = source.table(NAME, ("id",))
    head = table.head()
    assert head.number == 1
    assert of_table(read(table.rows(1))) == multiset(
        pl.scan_delta(url, storage_options=s3_options).collect().iter_rows()
    )
    at = Checkpoint(head.log_id, 0, Lsn(0))
    assert feed(table, table.plan(at, 1)).total() == 1
    diff = table.file_diff(at, 1)
    assert diff is not None
    assert read(diff.added).num_rows == 1
    assert not table.await_newer(1, 0)


def test_secrets_are_in_no_error(s3_endpoint: str, s3_options: dict[str, str]) -> None:
    """Invariant 14."""
    wrong = {**s3_options, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_RETRIES": "0"}
    table = DeltaSource("s3://bucket/x", {**wrong, "timeout": "2s"}).table(NAME, ("id",))
    with pytest.raises(SourceError) as caught:
        table.head()
    assert "s3cr3t-value" not in repr(caught.value) + str(caught.value) + repr(table)


def test_what_was_read_before_is_read_after_more_commits(lake: Lake) -> None:
    lake.write(people(1))
    lake.write(people(2))
    source = lake.open()
    plan = source.plan(lake.at(0), source.head().number)
    lake.write(people(3))
    assert feed(source, plan) == library_feed(lake.path, 1, 1)
