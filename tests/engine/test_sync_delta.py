"""Real Delta tables, read through our source, kept in a destination in memory.

The conformance cases of a change feed, each by name; deltalake writes, and its rows are the oracle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from change_samples import content
from deltalake import DeltaTable, write_deltalake
from simulated_lake import Shop

from headrace.connectors.delta.source import DeltaSource
from headrace.engine.sync_state import Limits, SyncState, SyncTarget
from headrace.engine.sync_table import TableSync
from headrace.errors import HistoryLostError
from headrace.model import Mode, RowRules, TableId

NAME = TableId("crm", "people")
FEED_ON = {"delta.enableChangeDataFeed": "true"}


def people(*keys: int, name: str = "n") -> pa.Table:
    names = [f"{name}{key}" for key in keys]
    return pa.table({"id": pa.array(keys, pa.int64()), "name": pa.array(names, pa.string())})


class Synced:
    """A Delta table in a folder, and a destination that a new process catches up each time."""

    def __init__(self, root: Path, **target: Any) -> None:
        self.root, self.shop, self.options = root, Shop(), target
        self.path = root / NAME.schema / NAME.name
        self.path.parent.mkdir(parents=True)
        self.write(people(*range(1, 9)), configuration=FEED_ON)

    def write(self, rows: pa.Table, mode: Any = "append", **more: Any) -> None:
        write_deltalake(self.path, rows, mode=mode, **more)

    @property
    def delta(self) -> DeltaTable:
        return DeltaTable(self.path)

    def catch_up(self) -> SyncState:
        source = DeltaSource(str(self.root)).table(NAME, ("id",))
        self.state = SyncState(SyncTarget(source, self.shop, **self.options))
        TableSync(self.state, Limits(rebuild_rows=1000), threading.Event()).catch_up()
        return self.state

    def assert_equal(self) -> None:
        assert self.shop.content == content(self.delta.to_pyarrow_table().to_pylist())
        assert self.shop.at is not None
        assert self.shop.at.commit == self.delta.version()

    @property
    def ways(self) -> list[str]:
        return [how for how, *_ in self.shop.commits]

    def change_some(self) -> None:
        """One version of each kind of change."""
        self.write(people(20, 21))
        self.delta.update(predicate="id = 2", updates={"name": "'changed'"})
        self.delta.delete("id = 3 OR id = 20")
        self.delta.update(predicate="id = 4", updates={"id": "40"})

    def forget(self, version: int) -> None:
        """Lose a version of the log."""
        (self.path / "_delta_log" / f"{version:020d}.json").unlink()


@pytest.fixture
def synced(tmp_path: Path) -> Synced:
    made = Synced(tmp_path)
    made.catch_up()
    return made


def delete_and_insert_again(t: Synced) -> None:
    t.delta.delete("id = 1")
    t.write(people(1, name="again"))


def change_a_key(t: Synced) -> None:
    t.delta.update(predicate="id = 1", updates={"id": "100"})


def swap_keys(t: Synced) -> None:
    t.delta.update(predicate="id < 3", updates={"id": "3 - id"})


def overwrite_all(t: Synced) -> None:
    t.write(people(1, 2, 50, name="over"), mode="overwrite")


def overwrite_some(t: Synced) -> None:
    t.write(people(1, name="over"), mode="overwrite", predicate="id = 1")


def merge_the_same(t: Synced) -> None:
    same = t.delta.to_pyarrow_table()
    merged = t.delta.merge(same, "s.id = t.id", source_alias="s", target_alias="t")
    merged.when_matched_update_all().execute()


def merge_all_kinds(t: Synced) -> None:
    merged = t.delta.merge(people(1, 60), "s.id = t.id", source_alias="s", target_alias="t")
    merged = merged.when_matched_delete().when_not_matched_insert_all()
    merged.when_not_matched_by_source_update({"name": "'left'"}, "t.id > 6").execute()


def compact_and_vacuum_nothing(t: Synced) -> None:
    t.write(people(70))
    t.delta.optimize.compact()


@pytest.mark.parametrize(
    "change",
    [
        delete_and_insert_again,
        change_a_key,
        swap_keys,
        overwrite_all,
        overwrite_some,
        merge_the_same,
        merge_all_kinds,
        compact_and_vacuum_nothing,
        Synced.change_some,
    ],
)
def test_any_change_arrives_by_the_feed(synced: Synced, change: Callable[[Synced], None]) -> None:
    """Bugs 4 and 5 of the usual recipe among them. DESIGN §13, invariant 4."""
    change(synced)
    synced.catch_up()
    synced.assert_equal()
    assert synced.ways == ["replace", "apply"]
    assert synced.state.notice is None


def test_a_merge_that_changed_nothing_gives_the_destination_nothing_to_do(synced: Synced) -> None:
    merge_the_same(synced)
    before = synced.state.applied_rows
    assert synced.catch_up().applied_rows == 0
    assert before == 8


def test_a_feed_toggled_off_and_on_is_healed_and_told(synced: Synced) -> None:
    feed = "delta.enableChangeDataFeed"
    synced.delta.alter.set_table_properties({feed: "false"})
    synced.change_some()
    synced.delta.alter.set_table_properties({feed: "true"})
    state = synced.catch_up()
    synced.assert_equal()
    assert "by comparing files" in (state.notice or "")
    synced.write(people(99))
    assert synced.catch_up().notice is None
    synced.assert_equal()


def test_a_vacuumed_change_file_is_healed(synced: Synced) -> None:
    synced.change_some()
    for part in (synced.path / "_change_data").glob("*.parquet"):
        part.unlink()
    assert "by comparing files" in (synced.catch_up().notice or "")
    synced.assert_equal()


def test_vacuumed_data_files_are_healed_by_what_there_is(synced: Synced) -> None:
    synced.change_some()
    synced.delta.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    synced.catch_up()
    synced.assert_equal()
    assert synced.state.notice


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_missing_middle_commit_is_healed_or_told(synced: Synced, checkpointed: bool) -> None:
    synced.change_some()
    if checkpointed:
        synced.delta.create_checkpoint()
        synced.forget(2)
        synced.catch_up()
        synced.assert_equal()
        assert synced.state.notice
    else:
        synced.forget(2)
        before = synced.shop.content
        with pytest.raises(HistoryLostError):
            synced.catch_up()
        assert synced.shop.content == before


def test_a_missing_trailing_commit_is_not_read_over(synced: Synced) -> None:
    synced.change_some()
    synced.catch_up()
    synced.forget(synced.delta.version())
    state = synced.catch_up()
    synced.assert_equal()
    assert "built anew" in (state.notice or "")


def test_a_cleaned_log_is_healed(synced: Synced) -> None:
    synced.change_some()
    synced.delta.create_checkpoint()
    for version in range(4):
        synced.forget(version)
    synced.catch_up()
    synced.assert_equal()
    assert synced.state.notice


def test_a_restored_table_is_healed(synced: Synced) -> None:
    synced.delta.delete("id > 4")
    synced.catch_up()
    synced.delta.restore(0)
    synced.catch_up()
    synced.assert_equal()
    assert synced.shop.content == content(people(*range(1, 9)).to_pylist())


def test_a_table_made_anew_is_healed(synced: Synced) -> None:
    for path in sorted(synced.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    synced.write(people(1, 5, name="new"), configuration=FEED_ON)
    synced.catch_up()
    synced.assert_equal()
    assert synced.state.notice


def test_a_duplicate_key_in_source_is_parked_and_later_cleared(synced: Synced) -> None:
    synced.write(pa.concat_tables([people(30, name="a"), people(30, name="b"), people(31)]))
    synced.catch_up()
    assert [r.code for r in synced.shop.parked] == ["duplicate_key"]
    synced.delta.delete("name = 'b30'")
    synced.delta.update(predicate="id = 30", updates={"name": "'only'"})
    synced.catch_up()
    synced.assert_equal()


def test_newest_by_decides_between_duplicates(tmp_path: Path) -> None:
    synced = Synced(tmp_path, rules=RowRules(newest_by="name"))
    synced.write(pa.concat_tables([people(1, name="z"), people(50, name="b"), people(50)]))
    synced.catch_up()
    names = {row["id"]: row["name"] for row in synced.shop.rows.values()}
    assert (names[1], names[50]) == ("z1", "n50")


def test_a_column_that_comes_in_the_middle_is_followed_between_the_versions(
    synced: Synced,
) -> None:
    """DESIGN §13, invariant 8."""
    synced.write(people(30))
    wider = people(31).append_column("city", pa.array(["x"], pa.string()))
    synced.write(wider, schema_mode="merge")
    synced.delta.delete("id = 1")
    synced.catch_up()
    synced.assert_equal()
    assert [c for c in synced.shop.calls if c in ("evolve", "apply")] == [
        "apply",
        "evolve",
        "apply",
    ]


def test_append_keeps_every_change(tmp_path: Path) -> None:
    synced = Synced(tmp_path, mode=Mode.APPEND)
    synced.catch_up()
    synced.change_some()
    synced.catch_up()
    told = [(r["_commit_version"], r["_change_type"]) for r in synced.shop.rows.values()]
    assert told == [
        *[(0, "insert")] * 8,
        *[(1, "insert")] * 2,
        (2, "update_preimage"),
        (2, "update_postimage"),
        *[(3, "delete")] * 2,
        (4, "update_preimage"),
        (4, "update_postimage"),
    ]


def test_append_stops_where_history_is_lost(tmp_path: Path) -> None:
    synced = Synced(tmp_path, mode=Mode.APPEND)
    synced.catch_up()
    synced.change_some()
    for part in (synced.path / "_change_data").glob("*.parquet"):
        part.unlink()
    with pytest.raises(HistoryLostError, match=r"crm\.people"):
        synced.catch_up()
    assert synced.ways == ["replace"]
