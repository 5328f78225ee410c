"""What two versions differ by, file by file: applied to the older one it gives the newer one."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pytest
from lakes import Lake, Row, of_table, ours, people, read
from test_delta_source_feed import all_kinds_of_change, merge_on_read

from headrace.errors import SourceUnavailableError
from headrace.model import FileDiff, RowPart


def keys(parts: tuple[RowPart, ...]) -> set[object]:
    found = read(parts)
    return set(found.column("id").to_pylist()) if found.num_columns else set()


def rows(parts: tuple[RowPart, ...]) -> Counter[Row]:
    found = read(parts)
    return of_table(found) if found.num_columns else Counter()


def applied(old: Counter[Row], diff: FileDiff) -> dict[object, Row]:
    """By the rule of `FileDiff`: what may have gone goes, unless it is among the added."""
    held = {row[0]: row for row in old}
    if diff.removed is None:
        held = {key: row for key, row in held.items() if key in keys(diff.keys)}
    else:
        gone = keys(diff.removed)
        held = {key: row for key, row in held.items() if key not in gone}
    return held | {row[0]: row for row in rows(diff.added)}


def assert_leads(lake: Lake, after: int, to: int) -> FileDiff:
    source = lake.open()
    diff = source.file_diff(lake.at(after), to)
    assert diff is not None
    wanted = {row[0]: row for row in ours(source, to)}
    assert applied(ours(source, after), diff) == wanted
    assert keys(diff.keys) == set(wanted)
    return diff


def test_any_two_versions_are_told_apart_by_their_files(lake: Lake) -> None:
    last = all_kinds_of_change(lake)
    for after in range(last + 1):
        for to in range(after, last + 1):
            assert_leads(lake, after, to)


def test_only_the_files_that_differ_are_read(lake: Lake) -> None:
    lake.write(people(*range(100)))
    lake.write(people(200, 201))
    diff = assert_leads(lake, 0, 1)
    assert diff.rows == 2
    assert diff.removed == ()
    assert rows(diff.added).total() == 2


def test_deletion_vectors_are_told_apart_by_rows(lake: Lake) -> None:
    """Conformance: DV delete, where the feed is lost."""
    merge_on_read(lake)
    for after in range(4):
        for to in range(after, 4):
            assert_leads(lake, after, to)
    diff = assert_leads(lake, 0, 1)
    assert (rows(diff.added), keys(diff.removed or ())) == (Counter({(2, "u2"): 1}), {2, 3})


def test_a_restored_table_is_told_apart(lake: Lake) -> None:
    """Conformance: DV delete and RESTORE."""
    merge_on_read(lake)
    lake.delta.restore(1)
    for after in range(4):
        assert_leads(lake, after, 4)


def test_without_the_removed_files_the_keys_tell_what_is_gone(lake: Lake) -> None:
    """Conformance: VACUUMed files."""
    last = all_kinds_of_change(lake)
    before = {after: ours(lake.open(), after) for after in range(last)}
    lake.delta.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    source = lake.open()
    newest = {row[0]: row for row in ours(source, last)}
    for after, held in before.items():
        diff = source.file_diff(lake.at(after), last)
        assert diff is not None
        assert diff.removed is None or diff.removed == ()
        assert applied(held, diff) == newest


def test_a_key_that_older_files_do_not_hold_is_not_read_from_them(lake: Lake) -> None:
    lake.write(people(1).rename_columns(["other", "name"]))
    lake.write(people(2), mode="overwrite", schema_mode="overwrite")
    diff = lake.open().file_diff(lake.at(0), 1)
    assert diff is not None
    assert diff.removed is None
    assert keys(diff.keys) == {2}


def test_a_renamed_key_is_read_from_the_files_of_before(lake: Lake) -> None:
    """Conformance: column rename with mapping."""
    lake.write(people(1, 2), configuration={"delta.columnMapping.mode": "name"})
    lines = [json.loads(line) for line in lake.log(0).read_text().splitlines()]
    metadata = next(line["metaData"] for line in lines if "metaData" in line)
    renamed = metadata["schemaString"].replace('"name":"id"', '"name":"customer"')
    lake.log(1).write_text(json.dumps({"metaData": {**metadata, "schemaString": renamed}}) + "\n")
    lake.delta.delete("customer = 1")
    diff = lake.open("customer").file_diff(lake.at(0), 2)
    assert diff is not None
    assert diff.removed is not None
    assert read(diff.removed).to_pydict() == {"customer": [1, 2]}
    assert read(diff.added).to_pydict() == {"customer": [2], "name": ["n2"]}


def test_a_table_without_a_key_has_no_diff(lake: Lake) -> None:
    lake.write(people(1))
    lake.write(people(2))
    table = lake.open()
    table._key = ()
    assert table.file_diff(lake.at(0), 1) is None


def test_an_added_file_that_is_gone_is_an_error_when_it_is_read(lake: Lake) -> None:
    lake.write(people(1))
    lake.write(people(2))
    diff = lake.open().file_diff(lake.at(0), 1)
    assert diff is not None
    for file in lake.path.glob("*.parquet"):
        file.unlink()
    with pytest.raises(SourceUnavailableError):
        rows(diff.added)


def test_rows_are_an_estimate_of_what_is_read(lake: Lake) -> None:
    lake.write(people(1, 2, 3))
    lake.write(people(7, 8), mode="overwrite")
    assert assert_leads(lake, 0, 1).rows == 5


def test_columns_of_the_diff_are_those_of_the_newer_version(lake: Lake) -> None:
    lake.write(people(1))
    lake.write(people(2).append_column("extra", pa.array(["e"])), schema_mode="merge")
    diff = lake.open().file_diff(lake.at(0), 1)
    assert diff is not None
    assert read(diff.added).column_names == ["id", "name", "extra"]
