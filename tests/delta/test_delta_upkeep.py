"""Checkpoints, merging of small files and sweeping, while the table lives on."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from delta_samples import LOG_ID, Lake, Model, Row, assert_holds, at, changes, row_of, schema_of
from deltalake import DeltaTable

from headrace.connectors.delta import actions, maintenance
from headrace.connectors.delta.maintenance import choose_merge, retention_ms
from headrace.connectors.delta.state import load_state
from headrace.connectors.delta.table import ATTEMPTS
from headrace.errors import DestinationConflictError, DestinationError
from headrace.log import open_storage

SCHEMA = schema_of("int64")


def rows(keys: range, value: int = 1) -> list[Row]:
    return [row_of("int64", key, value) for key in keys]


def live(lake: Lake, commits: int) -> Model:
    """A table that took so many commits, and what it must hold."""
    model = Model(SCHEMA)
    table = lake.open()
    table.load(SCHEMA, lake.snapshot(SCHEMA, rows(range(30)), rows(range(30, 60))), at(1))
    model.apply(rows(range(60)), [])
    for number in range(2, commits + 1):
        upserts = rows(range(number % 50, number % 50 + 2), number)
        deletes = rows(range(55 + number % 5, 56 + number % 5))
        table.apply(changes(SCHEMA, upserts, deletes), at(number))
        model.apply(upserts, deletes)
    return model


def test_a_long_life_is_reopened_from_its_checkpoint(lake: Lake) -> None:
    """The checkpoint holds deletion vectors and positions: the log before it may go."""
    model = live(lake, 120)
    state = load_state(open_storage(lake.path))
    assert state is not None
    assert state.checkpoint_version >= 99
    for version in range(state.checkpoint_version):
        lake.log(version).unlink()
    for pointer in (True, False):
        if not pointer:
            (lake.path / "_delta_log" / "_last_checkpoint").unlink()
        table = lake.open()
        assert table.checkpoint(LOG_ID) == at(120 + (not pointer))
        table.apply(changes(SCHEMA, rows(range(3), 121 + (not pointer))), at(121 + (not pointer)))
    model.apply(rows(range(3), 122), [])
    assert_holds(lake.path, model)


def test_small_files_are_merged_and_no_row_is_called_changed(lake: Lake) -> None:
    model = live(lake, 90)
    assert len(DeltaTable(lake.path).file_uris()) <= 60
    assert_holds(lake.path, model)
    merges = 0
    for path in sorted((lake.path / "_delta_log").glob("*.json")):
        commit = [json.loads(line) for line in path.read_text().splitlines()]
        if commit[0]["commitInfo"]["operation"] == "OPTIMIZE":
            merges += 1
            files = [a.get("add") or a.get("remove") for a in commit[1:]]
            assert not any(file["dataChange"] for file in files)
    assert merges


def _file(size: int, deleted: int = 0) -> dict[str, Any]:
    vector = {"deletionVector": {"cardinality": deleted}} if deleted else {}
    return {"size": size, "stats": '{"numRecords": 100}', **vector}


def test_files_of_like_size_are_merged_together() -> None:
    files = {f"s{i}": _file(10_000) for i in range(60)} | {f"l{i}": _file(2**24) for i in range(9)}
    assert sorted(choose_merge(files)) == sorted(f"s{i}" for i in range(60))


def test_a_merge_is_bounded() -> None:
    files = {f"s{i}": _file(30 << 20) for i in range(60)}
    chosen = choose_merge(files)
    assert 1 < len(chosen) <= 4


def test_a_file_worn_out_by_deletions_is_rewritten() -> None:
    assert choose_merge({"a": _file(2**28, 51), "b": _file(2**28, 49)}) == ["a"]


def test_few_files_are_left_alone() -> None:
    assert choose_merge({f"s{i}": _file(1) for i in range(50)}) == []


def test_a_sweep_takes_what_no_retained_version_names_and_nothing_else(lake: Lake) -> None:
    model = live(lake, 40)
    (lake.path / f"deletion_vector_{uuid.uuid4()}.bin").write_bytes(b"of another writer")
    stray = lake.path / "part-00000-of-another-writer.parquet"
    stray.write_bytes(b"")
    storage = open_storage(lake.path)
    state = load_state(storage)
    assert state is not None
    named = state.named_paths()
    now = actions.now_ms()
    assert maintenance.sweep(storage, state, now) == []
    gone = maintenance.sweep(storage, state, now + 86_400_000 + 60_000)
    assert any(path.endswith(".bin") for path in gone)
    assert any(path.endswith(".parquet") for path in gone)
    assert not set(gone) & named
    assert stray.exists()
    assert_holds(lake.path, model)


@pytest.mark.parametrize(
    ("text", "hours"),
    [("interval 1 day", 24), ("interval 2 weeks", 336), ("12 hours", 12), (None, 168)],
)
def test_the_tables_own_retention_is_kept(text: str | None, hours: int) -> None:
    held = {} if text is None else {"delta.deletedFileRetentionDuration": text}
    assert retention_ms(held) == hours * 3_600_000


def test_a_retention_that_nobody_understands_keeps_everything() -> None:
    held = {"delta.deletedFileRetentionDuration": "a while"}
    assert retention_ms(held) > actions.now_ms()


def test_files_of_a_commit_that_never_was_are_swept(lake: Lake) -> None:
    live(lake, 3)
    table = lake.open()
    (orphan,) = lake.snapshot(SCHEMA, rows(range(3)))
    name = f"part-{uuid.UUID(int=0x7 << 76 | 0x2 << 62)}-headrace.parquet"
    (lake.path / name).hardlink_to(Path(orphan))
    state = load_state(table.storage)
    assert state is not None
    assert maintenance.sweep(table.storage, state, actions.now_ms()) == [name]


def test_v2_checkpoints_are_refused(lake: Lake) -> None:
    live(lake, 3)
    log = lake.path / "_delta_log"
    lake.log(0).unlink()
    (log / f"{1:020d}.checkpoint.{uuid.uuid4()}.parquet").write_bytes(b"")
    with pytest.raises(DestinationError, match="v2 checkpoints") as caught:
        lake.open().checkpoint(LOG_ID)
    assert caught.value.hint


def test_a_log_without_its_beginning_is_refused(lake: Lake) -> None:
    live(lake, 3)
    lake.log(0).unlink()
    with pytest.raises(DestinationError, match="without a checkpoint") as caught:
        lake.open().checkpoint(LOG_ID)
    assert caught.value.hint


def test_a_writer_that_always_comes_first_makes_a_conflict(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(lake, 2)
    table = lake.open()
    table.checkpoint(LOG_ID)
    put = table.storage.put
    lost: list[str] = []

    def late(path: str, data: bytes, *, create: bool = False) -> None:
        if create:
            lost.append(path)
            put(path, actions.encode([actions.commit_info("OTHER")]))
        put(path, data, create=create)

    monkeypatch.setattr(table.storage, "put", late)
    with pytest.raises(DestinationConflictError) as caught:
        table.apply(changes(SCHEMA, rows(range(3), 9)), at(3))
    assert caught.value.transient
    assert len(lost) == ATTEMPTS
    monkeypatch.undo()
    table.apply(changes(SCHEMA, rows(range(3), 9)), at(3))
    assert table.checkpoint(LOG_ID) == at(3)
