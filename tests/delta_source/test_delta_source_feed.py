"""The feed of a range is what deltalake's own reader gives, or its loss is told beforehand."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from lakes import FEED, FEED_ON, NAME, Lake, every_type, feed, library_feed, ours, people

from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.source import DeltaSourceTable
from headrace.errors import SourceUnavailableError
from headrace.model import (
    ChangeFeed,
    Checkpoint,
    Column,
    FeedPlan,
    LossKind,
    Lsn,
    NetChanges,
    TableFormat,
    TableSchema,
)


def all_kinds_of_change(lake: Lake) -> int:
    """One version each: load, append, update, delete, merge, compaction, overwrite, and a delete
    of everything."""
    lake.write(people(1, 2, 3, 4))
    lake.write(people(5, 6))
    lake.delta.update(updates={"name": "'x'"}, predicate="id < 3")
    lake.delta.delete("id = 4")
    (
        lake.delta.merge(
            people(1, 5, 9, name="m"), "t.id = s.id", source_alias="s", target_alias="t"
        )
        .when_matched_delete("s.id = 5")
        .when_matched_update({"name": "s.name"})
        .when_not_matched_insert({"id": "s.id", "name": "s.name"})
        .execute()
    )
    lake.delta.optimize.compact()
    lake.write(people(1, 20), mode="overwrite")
    lake.delta.delete()
    return lake.delta.version()


def set_feed(lake: Lake, on: str) -> int:
    lake.delta.alter.set_table_properties({FEED: on})
    return lake.delta.version()


def loss(plan: FeedPlan) -> tuple[LossKind, str]:
    assert plan.loss is not None
    assert plan.segments == ()
    return plan.loss.kind, plan.loss.reason


def test_every_kind_of_change_is_told_as_deltalake_tells_it(lake: Lake) -> None:
    last = all_kinds_of_change(lake)
    source = lake.open()
    for after in range(last):
        plan = source.plan(lake.at(after), last)
        assert feed(source, plan) == library_feed(lake.path, after + 1, last), after


def test_a_plan_tells_each_version_with_its_time_and_its_rows(lake: Lake) -> None:
    last = all_kinds_of_change(lake)
    source = lake.open()
    (segment,) = source.plan(lake.at(0), last).segments
    assert [version.number for version in segment.versions] == list(range(1, last + 1))
    assert segment.last == last
    times = {entry["version"]: entry["timestamp"] for entry in lake.delta.history()}
    for version in segment.versions:
        (own,) = source.plan(lake.at(version.number - 1), version.number).segments
        rows = sum(b.num_rows for b in source.changes(own.schema, version.number, version.number))
        assert version.rows == rows
        assert version.commit_ts.timestamp() * 1000 == times[version.number]


def test_nothing_new_is_an_empty_plan(lake: Lake) -> None:
    lake.write(people(1))
    assert lake.open().plan(lake.at(0), 0) == FeedPlan()


def test_compaction_gives_no_rows(lake: Lake) -> None:
    """Conformance: OPTIMIZE yields nothing."""
    lake.write(people(1))
    lake.write(people(2))
    lake.delta.optimize.compact()
    source = lake.open()
    plan = source.plan(lake.at(1), 2)
    assert [v.rows for s in plan.segments for v in s.versions] == [0]
    assert feed(source, plan) == Counter()


def test_every_type_comes_through_the_feed_exactly(lake: Lake) -> None:
    table = every_type()
    lake.write(table.slice(0, 0))
    lake.write(table)
    lake.delta.delete("id < 3")
    source = lake.open()
    plan = source.plan(lake.at(0), 2)
    assert feed(source, plan) == library_feed(lake.path, 1, 2)
    (segment,) = plan.segments
    for batch in source.changes(segment.schema, 1, 2):
        assert batch.schema.names[-3:] == ["_change_type", "_commit_version", "_commit_timestamp"]
        assert [str(kind) for kind in batch.schema.types[-3:]] == [
            "string",
            "int64",
            "timestamp[us, tz=UTC]",
        ]


def test_partitions_come_through_the_feed_also_where_paths_escape_them(lake: Lake) -> None:
    texts = ["a b", "50%", "x/y", "é=ü", None]
    table = pa.table({"id": pa.array(range(5), pa.int64()), "p": pa.array(texts, pa.string())})
    lake.write(table, partition_by=["p"])
    lake.write(table)
    lake.delta.update(updates={"id": "id + 100"}, predicate="p = '50%'")
    lake.delta.delete("p = 'x/y'")
    source = lake.open()
    changes = feed(source, source.plan(lake.at(0), 3))
    inserted = [("id", 0), ("p", "a b"), ("_change_type", "insert"), ("_commit_version", 1)]
    updated = [("id", 101), ("p", "50%"), ("_change_type", "update_postimage")]
    deleted = [("id", 2), ("p", "x/y"), ("_change_type", "delete"), ("_commit_version", 3)]
    assert changes[(tuple(inserted),)] == 1
    assert changes[((*updated, ("_commit_version", 2)),)] == 2
    assert changes[(tuple(deleted),)] == 2
    assert changes.total() == 5 + 4 + 2


# -- deletion vectors ------------------------------------------------------------------------------

_SCHEMA = TableSchema(
    NAME,
    1,
    (Column("id", pa.int64(), "bigint", 1), Column("name", pa.string(), "text", 2)),
    ("id",),
)


def merge_on_read(lake: Lake) -> None:
    """Versions 0 to 3 by deletion vectors: load, update and delete, delete, insert and update."""
    path = lake.root.parent / "snapshot.parquet"
    pq.write_table(people(1, 2, 3, 4, 5), path)
    destination = DeltaDestination(str(lake.root))
    table = destination.table(NAME, "p", layout=TableFormat(change_feed=ChangeFeed.ROWS))
    log_id = "5d0d2f0e-54a0-4f7c-8a92-1f4a1c8a0001"
    at = [Checkpoint(log_id, n, Lsn(n)) for n in range(1, 5)]
    table.load(_SCHEMA, [str(path)], at[0])
    table.apply(NetChanges(_SCHEMA, people(2, name="u"), people(3).select(["id"])), at[1])
    table.apply(NetChanges(_SCHEMA, people(), people(1, 2).select(["id"])), at[2])
    table.apply(NetChanges(_SCHEMA, people(4, 9, name="v"), people().select(["id"])), at[3])


def test_deletion_vectors_give_exactly_the_rows_that_they_take(lake: Lake) -> None:
    """Conformance: DV delete."""
    merge_on_read(lake)
    source = lake.open()
    plan = source.plan(lake.at(0), 3)
    assert feed(source, plan) == library_feed(lake.path, 1, 3)
    assert [v.rows for s in plan.segments for v in s.versions] == [3, 2, 3]
    for version in range(4):
        assert ours(source, version).total() == [5, 4, 2, 3][version]


def test_a_deletion_vector_that_shrank_brings_rows_back(lake: Lake) -> None:
    """By a commit that is not called RESTORE, made by hand."""
    merge_on_read(lake)
    by_kind = [
        {kind: [a[kind] for a in map(json.loads, lake.log(v).read_text().splitlines()) if kind in a]
         for kind in ("add", "remove")}
        for v in range(4)
    ]  # fmt: skip
    path = by_kind[0]["add"][0]["path"]
    full = next(add for add in by_kind[3]["add"] if add["path"] == path)
    part = next(add for add in by_kind[1]["add"] if add["path"] == path)
    gone = {**full, "deletionTimestamp": 1}
    lake.log(4).write_text(json.dumps({"remove": gone}) + "\n" + json.dumps({"add": part}) + "\n")
    source = lake.open()
    plan = source.plan(lake.at(3), 4)
    changes = feed(source, plan)
    assert {row[0][0][1] for row in changes} == {1, 4}
    assert {row[0][2][1] for row in changes} == {"insert"}
    assert changes == library_feed(lake.path, 4, 4)


# -- schemas ---------------------------------------------------------------------------------------


def test_a_range_is_split_where_the_schema_changes(lake: Lake) -> None:
    """Conformance: schema change in the middle of a range."""
    lake.write(people(1))
    lake.write(people(2))
    lake.write(people(3).append_column("extra", pa.array(["e"])), schema_mode="merge")
    lake.delta.alter.set_table_properties({"delta.logRetentionDuration": "interval 40 days"})
    lake.write(people(4).append_column("extra", pa.array(["f"])))
    source = lake.open()
    plan = source.plan(lake.at(0), 4)
    assert [s.schema.names for s in plan.segments] == [
        ("id", "name"),
        ("id", "name", "extra"),
    ]
    assert [[v.number for v in s.versions] for s in plan.segments] == [[1], [2, 3, 4]]
    assert feed(source, plan) == library_feed(lake.path, 1, 4)


def test_an_overwrite_with_new_columns_is_followed_where_the_key_stays(lake: Lake) -> None:
    lake.write(people(1, 2))
    other = pa.table({"id": pa.array([2, 3], pa.int64()), "mail": ["a", "b"]})
    lake.write(other, mode="overwrite", schema_mode="overwrite")
    source = lake.open()
    plan = source.plan(lake.at(0), 1)
    assert [s.schema.names for s in plan.segments] == [("id", "mail")]
    assert {(row[0][0][1], dict(row[0])["_change_type"]) for row in feed(source, plan)} == {
        (1, "delete"),
        (2, "delete"),
        (2, "insert"),
        (3, "insert"),
    }


def test_an_overwrite_that_changes_a_type_is_told_as_lost(lake: Lake) -> None:
    lake.write(people(1))
    other = pa.table({"id": pa.array(["1"]), "name": pa.array(["a"])})
    lake.write(other, mode="overwrite", schema_mode="overwrite")
    kind, reason = loss(lake.open().plan(lake.at(0), 1))
    assert kind is LossKind.UNSUPPORTED
    assert "the columns id" in reason


def test_a_key_that_older_files_lack_is_told_as_lost(lake: Lake) -> None:
    """Its deletes would have null for a key and delete nothing."""
    lake.write(people(1).rename_columns(["old_id", "name"]))
    lake.write(people(1), mode="overwrite", schema_mode="overwrite")
    assert loss(lake.open().plan(lake.at(0), 1))[0] is LossKind.UNSUPPORTED


def test_a_version_without_the_key_is_told_as_lost(lake: Lake) -> None:
    lake.write(people(1))
    only = pa.table({"name": ["x"]})
    lake.write(only, mode="overwrite", schema_mode="overwrite")
    lake.write(people(1), mode="overwrite", schema_mode="overwrite")
    kind, reason = loss(lake.open().plan(lake.at(0), 2))
    assert (kind, reason) == (LossKind.UNSUPPORTED, "version 1 has no column id")


def test_mapped_columns_are_followed_through_the_feed(lake: Lake) -> None:
    """Conformance: column rename with mapping. deltalake reads no feed of such a table."""
    mapping = {"delta.columnMapping.mode": "name", **FEED_ON}
    lake.write(people(1, 2), configuration=mapping)
    lake.write(people(3))
    metadata = next(
        a["metaData"]
        for a in map(json.loads, lake.log(0).read_text().splitlines())
        if "metaData" in a
    )
    renamed = metadata["schemaString"].replace('"name":"name"', '"name":"full_name"')
    lake.log(2).write_text(json.dumps({"metaData": {**metadata, "schemaString": renamed}}) + "\n")
    lake.delta.delete("id = 3")
    source = lake.open()
    plan = source.plan(lake.at(0), 3)
    assert [s.schema.names for s in plan.segments] == [("id", "name"), ("id", "full_name")]
    assert {row[0] for row in feed(source, plan)} == {
        (("id", 3), ("name", "n3"), ("_change_type", "insert"), ("_commit_version", 1)),
        (("id", 3), ("full_name", "n3"), ("_change_type", "delete"), ("_commit_version", 3)),
    }


# -- what is lost is told before anything is read --------------------------------------------------


def test_a_feed_that_was_never_on_is_told_though_deltalake_reads_it(lake: Lake) -> None:
    """Facts §4.7: no metadata in the range, so that the library's reader does not notice."""
    lake.write(people(1), configuration={})
    lake.write(people(2))
    plan = lake.open().plan(lake.at(0), 1)
    assert library_feed(lake.path, 1, 1).total() == 1
    assert loss(plan)[0] is LossKind.FEED_OFF
    assert plan.loss is not None
    assert plan.loss.hint.startswith("ALTER TABLE crm.customers SET TBLPROPERTIES")


def test_a_feed_that_was_off_for_a_while_is_told(lake: Lake) -> None:
    """Conformance: CDF toggled off and on."""
    lake.write(people(1))
    off = set_feed(lake, "false")
    lake.write(people(2))
    on = set_feed(lake, "true")
    last = lake.write(people(3))
    source = lake.open()
    assert loss(source.plan(lake.at(0), last))[0] is LossKind.FEED_OFF
    assert loss(source.plan(lake.at(off), last))[0] is LossKind.FEED_OFF
    assert feed(source, source.plan(lake.at(on - 1), last)).total() == 1


def test_the_version_that_switches_the_feed_on_can_be_read_from(lake: Lake) -> None:
    lake.write(people(1), configuration={})
    assert set_feed(lake, "true") == 1
    lake.write(people(2))
    source = lake.open()
    assert feed(source, source.plan(lake.at(0), 2)).total() == 1


def appended(lake: Lake, versions: int) -> DeltaSourceTable:
    for number in range(versions):
        lake.write(people(number))
    return lake.open()


def test_a_cleaned_log_is_told(lake: Lake) -> None:
    """Conformance: log cleaned."""
    source = appended(lake, 6)
    at = lake.at(1)
    lake.delta.create_checkpoint()
    for version in range(4):
        lake.log(version).unlink()
    kind, reason = loss(lake.open().plan(at, 5))
    assert kind is LossKind.LOG_CLEANED
    assert "version 2" in reason
    assert source.file_diff(at, 5) is None
    assert lake.open().file_diff(at, 5) is None


def test_a_log_cleaned_up_to_what_was_applied_is_read_on(lake: Lake) -> None:
    """The log tells the range, though no longer what the table was before it."""
    appended(lake, 6)
    at = lake.at(3)
    lake.delta.create_checkpoint()
    for version in range(4):
        lake.log(version).unlink()
    source = lake.open()
    assert feed(source, source.plan(at, 5)).total() == 2


def test_a_missing_commit_in_the_middle_is_told(lake: Lake) -> None:
    """Conformance: missing middle commit."""
    appended(lake, 4)
    lake.delta.create_checkpoint()
    at = lake.at(0)
    lake.log(2).unlink()
    kind, reason = loss(lake.open().plan(at, 3))
    assert kind is LossKind.LOG_CLEANED
    assert "version 2" in reason


def test_a_newest_commit_that_disappears_is_told_not_read_over(lake: Lake) -> None:
    """Conformance: missing trailing commit; deltalake would clamp the range silently."""
    appended(lake, 3)
    planning = lake.open()
    plan = planning.plan(lake.at(0), 2)
    lake.log(2).unlink()
    (segment,) = plan.segments
    with pytest.raises(SourceUnavailableError, match="version 2"):
        list(lake.open().changes(segment.schema, 1, 2))


def test_a_vacuumed_change_file_is_told(lake: Lake) -> None:
    """Conformance: VACUUMed change file."""
    lake.write(people(1, 2))
    lake.delta.update(updates={"name": "'x'"}, predicate="id = 1")
    shutil.rmtree(lake.path / "_change_data")
    kind, reason = loss(lake.open().plan(lake.at(0), 1))
    assert kind is LossKind.FILES_GONE
    assert "_change_data/" in reason


@pytest.mark.parametrize("mode", ["overwrite", "append"])
def test_a_vacuumed_data_file_of_the_range_is_told(lake: Lake, mode: str) -> None:
    lake.write(people(1))
    lake.write(people(2), mode=mode)
    lake.write(people(3), mode="overwrite")
    lake.delta.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert loss(lake.open().plan(lake.at(0), 2))[0] is LossKind.FILES_GONE


def test_a_missing_deletion_vector_is_told(lake: Lake) -> None:
    merge_on_read(lake)
    for file in lake.path.glob("deletion_vector_*"):
        file.unlink()
    assert loss(lake.open().plan(lake.at(0), 3))[0] is LossKind.FILES_GONE


def test_a_file_that_vanishes_while_it_is_read_is_an_error_not_fewer_rows(lake: Lake) -> None:
    lake.write(people(1, 2))
    lake.delta.update(updates={"name": "'x'"}, predicate="id = 1")
    source = lake.open()
    (segment,) = source.plan(lake.at(0), 1).segments
    shutil.rmtree(lake.path / "_change_data")
    with pytest.raises(SourceUnavailableError, match="vanished"):
        list(source.changes(segment.schema, 1, 1))
    assert loss(source.plan(lake.at(0), 1))[0] is LossKind.FILES_GONE


def test_a_table_made_anew_is_told_with_as_many_or_fewer_versions(lake: Lake) -> None:
    """Conformance: table replaced."""
    source = appended(lake, 3)
    at = lake.at(1)
    assert source.head().number == 2
    for versions in (4, 3, 1):
        shutil.rmtree(lake.path)
        appended(lake, versions)
        for reader in (source, lake.open()):
            assert reader.head().number == versions - 1
            assert reader.head().log_id == str(lake.delta.metadata().id)
            to = max(versions - 1, at.commit)
            assert loss(reader.plan(at, to))[0] is LossKind.REPLACED


def test_a_metadata_id_that_changes_in_the_range_is_told(lake: Lake) -> None:
    lake.write(people(1))
    at = lake.at(0)
    metadata = next(
        a["metaData"]
        for a in map(json.loads, lake.log(0).read_text().splitlines())
        if "metaData" in a
    )
    other = {**metadata, "id": "7f7b2d5c-0000-4000-8000-000000000000"}
    lake.log(1).write_text(json.dumps({"metaData": other}) + "\n")
    assert loss(lake.open().plan(at, 1))[0] is LossKind.REPLACED
    assert lake.open().file_diff(at, 1) is None


def test_a_restored_table_is_told(lake: Lake) -> None:
    """Conformance: RESTORE."""
    lake.write(people(1))
    lake.write(people(2))
    lake.delta.restore(0)
    kind, reason = loss(lake.open().plan(lake.at(1), 2))
    assert kind is LossKind.RESTORED
    assert "version 2" in reason


def test_a_feature_that_we_cannot_read_is_told(lake: Lake) -> None:
    lake.write(people(1))
    features = {"readerFeatures": ["nobodyKnowsThis"], "writerFeatures": ["nobodyKnowsThis"]}
    at = lake.at(0)
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
    lake.log(1).write_text(json.dumps({"protocol": protocol}) + "\n")
    kind, reason = loss(lake.open().plan(at, 1))
    assert kind is LossKind.UNSUPPORTED
    assert "nobodyKnowsThis" in reason


def test_removed_files_of_an_untold_partition_are_told_as_lost(lake: Lake) -> None:
    """PROTOCOL.md, "Add File and Remove File": a remove may leave its partition out."""
    table = people(1, 2).append_column("p", pa.array(["a", "b"]))
    lake.write(table, partition_by=["p"])
    lake.write(table, mode="overwrite")
    text = lake.log(1).read_text().splitlines()
    actions = [json.loads(line) for line in text]
    for action in actions:
        action.get("remove", {}).pop("partitionValues", None)
    lake.log(1).write_text("\n".join(map(json.dumps, actions)) + "\n")
    assert loss(lake.open().plan(lake.at(0), 1))[0] is LossKind.UNSUPPORTED


def test_a_range_longer_than_what_is_held_in_memory_is_planned_whole(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 10."""
    for name in ("feed.AT_ONCE", "history._COMMITS", "history._HEADERS"):
        monkeypatch.setattr(f"headrace.connectors.delta.{name}", 2)
    source = appended(lake, 9)
    plan = source.plan(lake.at(0), 8)
    assert [v.number for s in plan.segments for v in s.versions] == list(range(1, 9))
    assert feed(source, plan) == library_feed(lake.path, 1, 8)


def test_the_table_in_another_place_is_not_mixed_up(lake: Lake, tmp_path: Path) -> None:
    appended(lake, 2)
    shutil.copytree(lake.root, tmp_path / "copy")
    copy = Lake(tmp_path / "copy")
    copy.write(people(7))
    assert lake.open().head().number == 1
    assert DeltaTable(copy.path).version() == copy.open().head().number == 2
