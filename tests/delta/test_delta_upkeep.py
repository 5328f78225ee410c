"""Checkpoints, merging of small files and sweeping, while the table lives on."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from delta_samples import (
    LOG_ID,
    AtOnce,
    Lake,
    Model,
    Row,
    assert_holds,
    at,
    changes,
    row_of,
    schema_of,
)
from deltalake import DeltaTable

from headrace.connectors.delta import actions
from headrace.connectors.delta.live import ATTEMPTS
from headrace.connectors.delta.maintenance import Policy, Sweep, choose, retention_ms
from headrace.connectors.delta.state import load_state
from headrace.errors import DestinationConflictError, DestinationError
from headrace.log import open_storage

SCHEMA = schema_of("int64")


def rows(keys: range, value: int = 1) -> list[Row]:
    return [row_of("int64", key, value) for key in keys]


def live(lake: Lake, commits: int) -> Model:
    """A table that took so many commits, and what it must hold."""
    model = Model(SCHEMA)
    table = lake.open(beside=AtOnce())
    table.load(SCHEMA, lake.snapshot(SCHEMA, rows(range(30)), rows(range(30, 60))), at(1))
    model.apply(rows(range(60)), [])
    for number in range(2, commits + 1):
        upserts = rows(range(number % 50, number % 50 + 2), number)
        deletes = rows(range(55 + number % 5, 56 + number % 5))
        table.apply(changes(SCHEMA, upserts, deletes), at(number))
        model.apply(upserts, deletes)
    table.settle()
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


def _file(size: int, deleted: int = 0, rows: int = 100, **more: Any) -> dict[str, Any]:
    vector = {"deletionVector": {"cardinality": deleted}} if deleted else {}
    return {"size": size, "stats": json.dumps({"numRecords": rows}), **vector, **more}


def _spanning(low: Any, high: Any) -> dict[str, Any]:
    stats = {"numRecords": 100, "minValues": {"c": low}, "maxValues": {"c": high}}
    return {"size": 16 << 20, "stats": json.dumps(stats)}


def test_files_of_like_size_are_merged_together() -> None:
    small = [_file(10_000) for _ in range(60)]
    assert choose([*small, *(_file(2**24) for _ in range(9))], Policy()) == [small]


def test_a_merge_is_bounded() -> None:
    (by_bytes,) = choose([_file(30 << 20) for _ in range(60)], Policy())
    assert 1 < len(by_bytes) <= 4
    (by_rows,) = choose([_file(1 << 20, rows=300_000) for _ in range(60)], Policy())
    assert 1 < len(by_rows) <= 4


def test_no_file_is_merged_with_one_of_another_partition() -> None:
    files = [_file(10_000, partitionValues={"p": p}) for p in ("a", None) for _ in range(20)]
    assert choose(files, Policy()) == [files[:20], files[20:]]
    assert choose([_file(10_000, partitionValues={"p": str(n)}) for n in range(60)], Policy()) == []


def test_a_file_worn_out_by_deletions_is_rewritten() -> None:
    worn = _file(2**27, 31)
    assert choose([worn, _file(2**27, 29), _file(1000, 90)], Policy()) == [[worn]]


def test_few_files_are_left_alone() -> None:
    assert choose([_file(1) for _ in range(15)], Policy()) == []


def test_files_that_overlap_are_put_in_order_until_they_only_touch() -> None:
    policy = Policy.of(["c"])
    over = [_spanning(n, 10 + n) for n in range(4)]
    others = [_spanning(20, 30), _spanning(30, 40), _spanning(40, 50), _spanning(40, 40)]
    assert choose([*others, *over], policy, ["c"]) == [over]
    assert choose([_spanning(n, n + 1) for n in range(9)], policy, ["c"]) == []
    assert choose([*others, *over], Policy()) == []


def test_bounds_that_were_cut_prove_no_overlap() -> None:
    cut = [_spanning("a" * 32, "a" * 31 + "b") for _ in range(9)]
    assert choose(cut, Policy.of(["c"]), ["c"]) == []


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
    assert Sweep.of(state, now).run(storage) == []
    gone = Sweep.of(state, now + 86_400_000 + 60_000).run(storage)
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
    assert Sweep.of(state, actions.now_ms()).run(table.storage) == [name]


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
