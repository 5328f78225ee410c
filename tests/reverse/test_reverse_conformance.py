"""The conformance cases of a change feed, each on a whole pipeline into Postgres.

The table at the destination must equal its source whatever became of the feed, and what was done
out of the ordinary must be told.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from headrace.connectors.delta.destination import DeltaDestination
from headrace.errors import ConfigError, HistoryLostError
from headrace.model import (
    ChangeFeed,
    Checkpoint,
    Column,
    Lsn,
    NetChanges,
    TableFormat,
    TableId,
    TableSchema,
)
from lakeside import FEED_ON, Lakeside, Source, by_deltalake, by_polars, people


def delete_then_insert_of_the_same_key_in_the_same_range(t: Source) -> None:
    t.delete("id = 1")
    t.write(people(1, name="again"))


def insert_then_delete_then_insert_of_the_same_key(t: Source) -> None:
    t.write(people(50))
    t.delete("id = 50")
    t.write(people(50, name="again"))


def insert_then_delete_of_the_same_key(t: Source) -> None:
    t.write(people(50))
    t.delete("id = 50")


def key_changing_update(t: Source) -> None:
    t.update("id = 2", id="200")


def keys_swapped_in_one_version(t: Source) -> None:
    t.update("id < 3", id="3 - id")


def key_that_moves_on_to_a_key_that_just_became_free(t: Source) -> None:
    t.update("id > 1", id="id - 1", name="concat(name, '!')")
    t.delete("id = 1")


def two_changes_in_one_version_by_overwrite(t: Source) -> None:
    t.write(people(1, 2, 50, name="over"), mode="overwrite")


def overwrite_of_a_part(t: Source) -> None:
    t.write(people(1, name="over"), mode="overwrite", predicate="id = 1")


def no_op_merge(t: Source) -> None:
    t.merge(people(*range(1, 9)))


def merge_of_all_kinds(t: Source) -> None:
    merged = t.delta.merge(people(1, 60), "s.id = t.id", source_alias="s", target_alias="t")
    merged = merged.when_matched_delete().when_not_matched_insert_all()
    merged.when_not_matched_by_source_update({"name": "'left'"}, "t.id > 6").execute()


def everything_deleted(t: Source) -> None:
    t.delete()


def compaction_beside_a_change(t: Source) -> None:
    t.write(people(70))
    t.delta.optimize.compact()


@pytest.mark.parametrize(
    "change",
    [
        delete_then_insert_of_the_same_key_in_the_same_range,
        insert_then_delete_then_insert_of_the_same_key,
        insert_then_delete_of_the_same_key,
        key_changing_update,
        keys_swapped_in_one_version,
        key_that_moves_on_to_a_key_that_just_became_free,
        two_changes_in_one_version_by_overwrite,
        overwrite_of_a_part,
        no_op_merge,
        merge_of_all_kinds,
        everything_deleted,
        compaction_beside_a_change,
    ],
)
def test_invariant_4_after_any_change_the_table_equals_its_source(
    lakeside: Lakeside, crm: Source, change: Callable[[Source], None]
) -> None:
    change(crm)
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.notice("crm.people") == ""  # the feed told it all


# -- a feed that does not tell it all --------------------------------------------------------------


def change_some(t: Source) -> None:
    """A version of each kind of change."""
    t.write(people(20, 21))
    t.update("id = 2", name="'changed'")
    t.delete("id = 3 OR id = 20")
    t.update("id = 4", id="40")


def test_feed_toggled_off_and_on(lakeside: Lakeside, crm: Source) -> None:
    crm.delta.alter.set_table_properties({"delta.enableChangeDataFeed": "false"})
    change_some(crm)
    crm.delta.alter.set_table_properties({"delta.enableChangeDataFeed": "true"})
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert "by comparing files" in lakeside.notice("crm.people")
    crm.write(people(99))
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.notice("crm.people") == ""


def test_vacuumed_change_file(lakeside: Lakeside, crm: Source) -> None:
    change_some(crm)
    files = list((crm.path / "_change_data").glob("*.parquet"))
    assert files
    for file in files:
        file.unlink()
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert "by comparing files" in lakeside.notice("crm.people")


def test_vacuumed_data_files(lakeside: Lakeside, crm: Source) -> None:
    change_some(crm)
    crm.delta.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.notice("crm.people")


def test_missing_middle_commit(lakeside: Lakeside, crm: Source) -> None:
    """Nothing reads such a log, we neither: the table stops, and says why."""
    change_some(crm)
    before = lakeside.rows("crm.people", ["id", "name"])
    missing = crm.log(2).read_bytes()
    crm.log(2).unlink()
    (failure,) = lakeside.run()
    assert isinstance(failure.error, HistoryLostError)
    assert lakeside.rows("crm.people", ["id", "name"]) == before
    crm.log(2).write_bytes(missing)
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")


def test_missing_middle_commit_below_a_checkpoint(lakeside: Lakeside, crm: Source) -> None:
    change_some(crm)
    crm.delta.create_checkpoint()
    crm.log(2).unlink()
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.notice("crm.people")


def test_missing_trailing_commit(lakeside: Lakeside, crm: Source) -> None:
    change_some(crm)
    lakeside.catch_up()
    crm.log(crm.version).unlink()
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert "built anew" in lakeside.notice("crm.people")


def test_cleaned_log(lakeside: Lakeside, crm: Source) -> None:
    change_some(crm)
    crm.delta.create_checkpoint()
    for version in range(4):
        crm.log(version).unlink()
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.notice("crm.people")


def test_table_made_anew_under_the_same_name(lakeside: Lakeside, crm: Source) -> None:
    for path in sorted(crm.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    crm.path.rmdir()
    crm.write(people(1, 5, name="new"))
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.notice("crm.people")


# -- deletion vectors ------------------------------------------------------------------------------

_SCHEMA = TableSchema(
    TableId("crm", "people"),
    1,
    (Column("id", pa.int64(), "bigint", 1), Column("name", pa.string(), "text", 2)),
    ("id",),
)
_WRITER = "5d0d2f0e-54a0-4f7c-8a92-1f4a1c8a0001"


def test_deletion_vectors_deletes_and_restore(lakeside: Lakeside) -> None:
    source = lakeside.source("crm.people")
    path = lakeside.root / "snapshot.parquet"
    pq.write_table(people(1, 2, 3, 4, 5), path)
    table = DeltaDestination(str(lakeside.lake)).table(
        _SCHEMA.table, "p", layout=TableFormat(change_feed=ChangeFeed.ROWS)
    )
    at = [Checkpoint(_WRITER, n, Lsn(n)) for n in range(1, 5)]
    table.load(_SCHEMA, [str(path)], at[0])
    lakeside.carry("crm.people")
    lakeside.catch_up()
    table.apply(NetChanges(_SCHEMA, people(2, name="u"), people(3).select(["id"])), at[1])
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    table.apply(NetChanges(_SCHEMA, people(), people(1, 2).select(["id"])), at[2])
    table.apply(NetChanges(_SCHEMA, people(4, 9, name="v"), people().select(["id"])), at[3])
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.notice("crm.people") == ""
    source.delta.restore(1)
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.sql("select id from crm.people order by 1") == [(1,), (2,), (4,), (5,)]


def test_restore(lakeside: Lakeside, crm: Source) -> None:
    change_some(crm)
    lakeside.catch_up()
    crm.delta.restore(0)
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.notice("crm.people")


# -- columns and keys ------------------------------------------------------------------------------


def test_column_rename_with_mapping(lakeside: Lakeside) -> None:
    """As another writer renames it: in the log alone, for deltalake cannot."""
    source = lakeside.source("crm.people")
    source.write(people(1, 2), configuration={"delta.columnMapping.mode": "name", **FEED_ON})
    lakeside.carry("crm.people")
    lakeside.catch_up()
    source.write(people(3))
    first = map(json.loads, source.log(0).read_text().splitlines())
    metadata = next(line["metaData"] for line in first if "metaData" in line)
    renamed = metadata["schemaString"].replace('"name":"name"', '"name":"full_name"')
    source.log(2).write_text(json.dumps({"metaData": {**metadata, "schemaString": renamed}}))
    source.delete("id = 1")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people", readers=(by_deltalake,))
    assert lakeside.columns("crm.people") == ["id", "full_name"]
    assert lakeside.sql("select * from crm.people order by 1") == [(2, "n2"), (3, "n3")]


def test_duplicate_key_in_source(lakeside: Lakeside, crm: Source) -> None:
    """Neither row is right: both wait in quarantine, until one version tells one of them."""
    crm.write(pa.concat_tables([people(1, name="one"), people(1, 9, name="another")]))
    lakeside.catch_up()
    found = lakeside.project.quarantine()
    assert {row.code for row in found} == {"duplicate_key"}
    assert lakeside.status("crm.people").quarantined == len(found) > 0
    assert lakeside.sql("select count(*) from crm.people where id <> 1") == [(8,)]
    crm.delete("id = 1")
    crm.write(people(1, name="right"))
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.project.quarantine() == []


def test_duplicate_keys_in_source_from_the_beginning(lakeside: Lakeside) -> None:
    source = lakeside.source("crm.people")
    source.write(people(1, 2, 2, 3))
    lakeside.carry("crm.people")
    lakeside.catch_up()
    assert lakeside.sql("select id from crm.people where id <> 2 order by 1") == [(1,), (3,)]
    assert {row.code for row in lakeside.project.quarantine()} == {"duplicate_key"}
    source.write(people(1, 2, 3), mode="overwrite")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.project.quarantine() == []


def test_null_byte_in_text(lakeside: Lakeside, crm: Source) -> None:
    """Only its row waits in quarantine."""
    bad = pa.table({"id": pa.array([100], pa.int64()), "name": ["a\0b"]})
    crm.write(pa.concat_tables([bad, people(101)]))
    lakeside.catch_up()
    assert lakeside.sql("select id from crm.people where id > 50") == [(101,)]
    (row,) = lakeside.project.quarantine()
    assert row.key == ("100",)
    crm.update("id = 100", name="'clean'")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.project.quarantine() == []


def test_null_key_in_source(lakeside: Lakeside, crm: Source) -> None:
    crm.write(pa.table({"id": pa.array([None], pa.int64()), "name": ["nobody"]}))
    crm.write(people(9))
    lakeside.catch_up()
    assert lakeside.sql("select max(id), count(*) from crm.people") == [(9, 9)]
    assert [row.code for row in lakeside.project.quarantine()] == ["null_key"]


def test_mixed_case_and_quoted_names_in_two_schemas(lakeside: Lakeside) -> None:
    """Equal names in two schemas, a column that is a keyword and one that quotes itself."""

    def rows(*ids: int) -> pa.Table:
        return people(*ids).rename_columns(['Order "Id"', "select"])

    names = ("Sales.Orders", "sales.Orders", "sales.orders")
    for n, name in enumerate(names):
        lakeside.source(name).write(rows(*range(n + 2)))
    lakeside.carry(*({"source": name, "key": ['Order "Id"']} for name in names))
    lakeside.catch_up()
    for name in names:
        lakeside.assert_equal(name)
        lakeside.source(name).write(rows(7, 8))
        lakeside.source(name).delete('"Order ""Id""" = 0')
    lakeside.catch_up()
    for name in names:
        lakeside.assert_equal(name)


def test_deferrable_primary_key(lakeside: Lakeside) -> None:
    """ON CONFLICT takes no deferrable constraint; rows are upserted all the same."""
    lakeside.sql(
        "create schema crm; create table crm.people"
        " (id bigint primary key deferrable initially deferred, name text)"
    )
    source = lakeside.source("crm.people")
    source.write(people(*range(1, 9)))
    lakeside.carry("crm.people")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    change_some(source)
    keys_swapped_in_one_version(source)
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")


def test_key_that_is_generated_always_as_identity(lakeside: Lakeside) -> None:
    lakeside.sql(
        "create schema crm; create table crm.people"
        " (id bigint generated always as identity primary key, name text)"
    )
    source = lakeside.source("crm.people")
    source.write(people(*range(1, 9)))
    lakeside.carry("crm.people")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    change_some(source)
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")


def test_table_without_a_key(lakeside: Lakeside) -> None:
    """Nothing tells which of equal rows changed: it can be appended to, and is refused else."""
    source = lakeside.source("crm.events")
    source.write(people(1, 1, 1, 2))
    lakeside.carry({"source": "crm.events"})
    with pytest.raises(ConfigError, match=r"crm\.events needs a key"):
        lakeside.catch_up()
    lakeside.carry({"source": "crm.events", "mode": "append"})
    lakeside.catch_up()
    source.write(people(1, 2, 2))
    lakeside.catch_up()
    ids = lakeside.sql("select id from crm.events order by id")
    assert [row[0] for row in ids] == [1, 1, 1, 1, 2, 2, 2]


def test_schema_change_in_the_middle_of_a_range(lakeside: Lakeside, crm: Source) -> None:
    crm.write(people(9))
    more = people(10, 11).append_column("extra", pa.array(["e", None]))
    write_deltalake(crm.path, more, mode="append", schema_mode="merge")
    crm.delete("id = 9")
    crm.update("id = 11", extra="'later'")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    assert lakeside.notice("crm.people") == ""


def test_a_table_that_is_partitioned_at_its_source(lakeside: Lakeside) -> None:
    source = lakeside.source("crm.people")
    source.write(people(1, 2, 3), partition_by=["name"])
    lakeside.carry("crm.people")
    lakeside.catch_up()
    source.write(people(4, 4 + 1), mode="append")
    source.delete("name = 'n2'")
    source.update("id = 3", name="'n1'")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people", readers=(by_deltalake, by_polars))
