"""A table as of one version is read whole and exactly, whatever its files are like."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder
from lakes import (
    EVERY_TYPE,
    NAME,
    Lake,
    by_deltalake,
    by_polars,
    every_type,
    of_table,
    ours,
    people,
    read,
)

from headrace.connectors.delta import scan
from headrace.connectors.delta.source import DeltaSource
from headrace.errors import (
    HistoryLostError,
    SourceError,
    SourceUnavailableError,
    TableNotFoundError,
    UnusableKeyError,
)
from headrace.model import TableId


def test_tables_below_a_location_are_found(lake: Lake) -> None:
    lake.write(people(1))
    (lake.root / "crm" / "not_a_table").mkdir()
    assert DeltaSource(str(lake.root)).tables() == [NAME]


def test_every_type_arrives_exactly(lake: Lake) -> None:
    table = every_type()
    lake.write(table)
    source = lake.open()
    assert ours(source, 0) == of_table(table)
    assert ours(source, 0) == by_deltalake(lake.path, 0)
    columns = {column.name: column for column in source.schema(0).columns}
    for name, (kind, text, _) in EVERY_TYPE.items():
        assert columns[name].type.equals(kind) or pa.types.is_nested(kind)
        assert columns[name].source_type == text or json.loads(columns[name].source_type)["type"]
        assert columns[name].attnum == 0


def test_each_version_stays_what_it_was(lake: Lake) -> None:
    lake.write(people(1, 2))
    lake.write(people(3))
    lake.delta.update(updates={"name": "'x'"}, predicate="id = 1")
    lake.delta.delete("id = 2")
    lake.delta.optimize.compact()
    lake.write(people(7), mode="overwrite")
    source = lake.open()
    for version in range(source.head().number + 1):
        assert ours(source, version) == by_deltalake(lake.path, version), version
        assert ours(source, version) == by_polars(lake.path, version), version


def test_an_empty_table_has_no_rows_but_a_schema(lake: Lake) -> None:
    lake.write(people())
    source = lake.open()
    assert ours(source, 0) == Counter()
    assert source.schema(0).names == ("id", "name")
    assert source.head().number == 0


PARTITIONED = tuple(name for name, (kind, *_) in EVERY_TYPE.items() if not pa.types.is_nested(kind))


@pytest.mark.parametrize(
    "column", sorted(set(PARTITIONED) - {"raw", "f32", "f64", "text", "large"})
)
def test_a_partition_of_any_type_arrives_exactly(lake: Lake, column: str) -> None:
    table = every_type().select(["id", column])
    lake.write(table, partition_by=[column])
    assert ours(lake.open(), 0) == of_table(table)


def test_partitions_with_characters_that_paths_escape_arrive_exactly(lake: Lake) -> None:
    texts = ["a b", "50%", "x/y", "é=ü", "c:d", "%20", "#?&", None]
    table = pa.table({"id": pa.array(range(8), pa.int64()), "p": pa.array(texts, pa.string())})
    lake.write(table, partition_by=["p"])
    source = lake.open()
    assert ours(source, 0) == of_table(table) == by_polars(lake.path, 0)


def test_a_column_added_later_is_null_in_older_rows(lake: Lake) -> None:
    lake.write(people(1))
    lake.write(people(2).append_column("extra", pa.array(["e"])), schema_mode="merge")
    source = lake.open()
    assert ours(source, 1) == Counter({(1, "n1", None): 1, (2, "n2", "e"): 1})
    assert source.schema(0).names == ("id", "name")
    assert source.schema(1).version == 1


def test_a_struct_that_grew_is_read_from_older_files(lake: Lake) -> None:
    def rows(number: int, value: dict[str, object], kind: pa.StructType) -> pa.Table:
        return pa.table({"id": [number], "s": pa.array([value], kind)})

    lake.write(rows(1, {"a": 1}, pa.struct([("a", pa.int32())])))
    wide = pa.struct([("a", pa.int32()), ("b", pa.string())])
    lake.write(rows(2, {"a": 2, "b": "x"}, wide), schema_mode="merge")
    assert read(lake.open().rows(1)).sort_by("id").column("s").to_pylist() == [
        {"a": 1, "b": None},
        {"a": 2, "b": "x"},
    ]


def test_big_files_are_cut_and_small_ones_gathered(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 10: a part is bounded by bytes, a batch by the width of its rows."""
    for number in range(6):
        lake.write(people(*range(number * 10, number * 10 + 10)))
    big = pa.table({"id": range(100, 5100), "name": [f"n{i}" * 20 for i in range(100, 5100)]})
    add = json.loads(lake.log(0).read_text().splitlines()[-1])["add"]
    assert DeltaTable(lake.path).version() == 5
    pq.write_table(big, lake.path / "big.parquet", row_group_size=1000)
    size = (lake.path / "big.parquet").stat().st_size
    stats = json.dumps({"numRecords": 5000})
    more = {**add, "path": "big.parquet", "size": size, "stats": stats}
    lake.log(6).write_text(json.dumps({"add": more}) + "\n")
    monkeypatch.setattr(scan, "PART_BYTES", size // 4)
    monkeypatch.setattr(scan, "BATCH_BYTES", 1 << 14)
    source = lake.open()
    parts = source.rows(6)
    assert 5 <= len(parts) <= 8
    found = ours(source, 6)
    assert found == by_deltalake(lake.path, 6)
    assert found.total() == 5060
    assert max(batch.num_rows for part in parts for batch in part.read()) < 500


def test_parts_can_be_read_again(lake: Lake) -> None:
    lake.write(people(1, 2, 3))
    (part,) = lake.open().rows(0)
    assert [b.num_rows for b in part.read()] == [b.num_rows for b in part.read()] == [3]


def mapped(lake: Lake) -> pa.Table:
    kind = pa.struct([("x", pa.int32()), ("y", pa.list_(pa.struct([("z", pa.string())])))])
    values = [{"x": 1, "y": [{"z": "q"}, None]}, None, {"x": None, "y": []}]
    table = people(1, 2, 3).append_column("s", pa.array(values, kind))
    lake.write(table, configuration={"delta.columnMapping.mode": "name"})
    return table


def change_metadata(lake: Lake, version: int, **fields: str) -> None:
    """Rename columns of a mapped table, as no writer at hand can: in the log alone."""
    lines = [json.loads(line) for line in lake.log(0).read_text().splitlines()]
    metadata = next(line["metaData"] for line in lines if "metaData" in line)
    schema = json.loads(metadata["schemaString"])
    for field in schema["fields"]:
        field["name"] = fields.get(field["name"], field["name"])
        for inner in field["type"]["fields"] if isinstance(field["type"], dict) else ():
            inner["name"] = fields.get(inner["name"], inner["name"])
    metadata["schemaString"] = json.dumps(schema)
    lake.log(version).write_text(json.dumps({"metaData": metadata}) + "\n")


def test_mapped_columns_are_read_by_their_physical_names_nested_ones_too(lake: Lake) -> None:
    table = mapped(lake)
    assert ours(lake.open(), 0) == of_table(table) == by_deltalake(lake.path, 0)


def test_a_renamed_column_keeps_its_number_and_its_values(lake: Lake) -> None:
    """Conformance: column rename with mapping."""
    table = mapped(lake)
    change_metadata(lake, 1, name="full_name", x="ex")
    source = lake.open()
    old, new = source.schema(0), source.schema(1)
    assert new.names == ("id", "full_name", "s")
    assert [c.attnum for c in new.columns] == [c.attnum for c in old.columns] == [1, 2, 3]
    names = read(source.rows(1)).column("full_name").to_pylist()
    assert sorted(names) == sorted(table.column("name").to_pylist())
    assert {"ex", "y"} == set(read(source.rows(1)).sort_by("id").column("s")[0].as_py())
    assert ours(source, 1) == by_deltalake(lake.path, 1)


def test_columns_mapped_by_id_are_found_whatever_their_names_in_the_file(lake: Lake) -> None:
    table = mapped(lake)
    text = lake.log(0).read_text().replace('Mapping.mode":"name"', 'Mapping.mode":"id"')
    assert '"id"' in text
    lake.log(0).write_text(text)
    (file,) = lake.path.rglob("*.parquet")
    stored = pq.read_table(file)
    fields = [field.with_name(f"c{n}") for n, field in enumerate(stored.schema)]
    pq.write_table(_renamed(stored, fields), file)
    found = read(lake.open().rows(0))
    assert of_table(found.select(["id", "name"])) == of_table(table.select(["id", "name"]))


def _renamed(table: pa.Table, fields: list[pa.Field]) -> pa.Table:
    return pa.table(table.columns, schema=pa.schema(fields))


def test_widened_columns_are_cast_from_what_older_files_hold(lake: Lake) -> None:
    """PROTOCOL.md, "Type Widening": the log alone tells it; no writer at hand does it."""
    kinds = {"a": pa.int32(), "b": pa.int16(), "c": pa.float32(), "d": pa.date32()}
    columns = {name: pa.array([1, None]).cast(pa.int32()).cast(k) for name, k in kinds.items()}
    table = pa.table(
        {"id": [1, 2], **columns, "e": pa.array(["1.5", None]).cast(pa.decimal128(4, 1))}
    )
    lake.write(table)
    wider = {"integer": "long", "short": "decimal(10,0)", "float": "double"}
    wider |= {"date": "timestamp_ntz", "decimal(4,1)": "decimal(9,2)"}
    lines = [json.loads(line) for line in lake.log(0).read_text().splitlines()]
    metadata = next(line["metaData"] for line in lines if "metaData" in line)
    schema = json.loads(metadata["schemaString"])
    for field in schema["fields"]:
        field["type"] = wider.get(field["type"], field["type"])
    metadata["schemaString"] = json.dumps(schema)
    features = ["typeWidening", "timestampNtz"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features}
    protocol["writerFeatures"] = features
    actions = [{"protocol": protocol}, {"metaData": metadata}]
    lake.log(1).write_text("\n".join(map(json.dumps, actions)) + "\n")
    found = read(lake.open().rows(1))
    assert found.schema.types[1:] == [
        pa.int64(),
        pa.decimal128(10, 0),
        pa.float64(),
        pa.timestamp("us"),
        pa.decimal128(9, 2),
    ]
    assert found.column("d").to_pylist()[0].isoformat() == "1970-01-02T00:00:00"
    assert [str(found.column(n)[0].as_py()) for n in "abce"] == ["1", "1", "1.0", "1.50"]


def test_timestamps_of_96_bits_keep_years_that_nanoseconds_cannot_hold(lake: Lake) -> None:
    table = every_type().select(["id", "ts"])
    lake.write(table)
    far = pa.array([-(10**16), 10**17, None], pa.timestamp("us", "UTC"))
    (file,) = lake.path.rglob("*.parquet")
    pq.write_table(table.set_column(1, "ts", far), file, use_deprecated_int96_timestamps=True)
    assert read(lake.open().rows(0)).column("ts").combine_chunks().equals(far)


def test_a_table_with_features_we_do_not_know_is_left_to_the_library(lake: Lake) -> None:
    lake.write(people(1))
    features = {"readerFeatures": ["nobodyKnowsThis"], "writerFeatures": ["nobodyKnowsThis"]}
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
    lake.log(1).write_text(json.dumps({"protocol": protocol}) + "\n")
    (part,) = lake.open().rows(1)
    with pytest.raises(SourceError, match="nobodyKnowsThis") as caught:
        list(part.read())
    assert caught.value.hint


def test_the_librarys_reading_is_the_same(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.write(every_type())
    expected = ours(lake.open(), 0)
    monkeypatch.setattr("headrace.connectors.delta.source.READABLE", frozenset({"none"}))
    features = {"readerFeatures": ["timestampNtz"], "writerFeatures": ["timestampNtz"]}
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
    lake.log(1).write_text(json.dumps({"protocol": protocol}) + "\n")
    assert ours(lake.open(), 1) == expected


# -- keys, names and what is not there -------------------------------------------------------------


def test_a_key_that_is_not_there_is_refused_with_near_names(lake: Lake) -> None:
    lake.write(people(1))
    with pytest.raises(UnusableKeyError, match="nmae") as caught:
        lake.open("nmae").schema(0)
    assert "name" in caught.value.hint


def test_a_key_of_many_values_is_refused(lake: Lake) -> None:
    lake.write(every_type())
    with pytest.raises(UnusableKeyError, match="no single value"):
        lake.open("list").schema(0)


def test_a_table_that_is_not_there_is_told_with_near_names(lake: Lake) -> None:
    lake.write(people(1))
    table = DeltaSource(str(lake.root)).table(TableId("crm", "custmers"), ("id",))
    with pytest.raises(TableNotFoundError, match="custmers") as caught:
        table.head()
    assert "crm.customers" in caught.value.hint


def test_a_version_that_the_log_no_longer_tells_is_lost(lake: Lake) -> None:
    for number in range(4):
        lake.write(people(number))
    lake.delta.create_checkpoint()
    lake.log(0).unlink()
    source = lake.open()
    assert source.head().number == 3
    assert ours(source, 3).total() == 4
    for ask in (source.rows, source.schema):
        with pytest.raises(HistoryLostError, match="version 1") as caught:
            ask(1)
        assert caught.value.hint


def test_a_data_file_that_vanished_is_told_and_may_be_tried_again(lake: Lake) -> None:
    lake.write(people(1))
    (part,) = lake.open().rows(0)
    for file in lake.path.rglob("*.parquet"):
        file.unlink()
    with pytest.raises(SourceUnavailableError, match="vanished"):
        list(part.read())


def test_a_damaged_data_file_is_an_error_that_names_it(lake: Lake) -> None:
    lake.write(people(1))
    (file,) = lake.path.rglob("*.parquet")
    file.write_bytes(b"PAR1 no more")
    with pytest.raises(SourceError, match=file.name) as caught:
        ours(lake.open(), 0)
    assert not caught.value.transient


# -- checkpoints -----------------------------------------------------------------------------------


def v2_checkpoint(lake: Lake, version: int, kind: str) -> None:
    """A v2 checkpoint after PROTOCOL.md, "V2 Spec", with one sidecar, made of a classic one."""
    lake.delta.create_checkpoint()
    folder = lake.path / "_delta_log"
    classic = folder / f"{version:020d}.checkpoint.parquet"
    stored = pq.read_table(classic)
    (folder / "_last_checkpoint").unlink()
    (folder / "_sidecars").mkdir()
    adds = stored.select(["add"]).filter(stored.column("add").is_valid())
    sidecar = folder / "_sidecars" / "one.parquet"
    pq.write_table(adds, sidecar)
    size = {"path": sidecar.name, "sizeInBytes": sidecar.stat().st_size, "modificationTime": 1}
    classic.unlink()
    name = folder / f"{version:020d}.checkpoint.3a0d65cd-4056-49b8-937b-95f9e3ee90e5.{kind}"
    head = stored.select(["protocol", "metaData"]).filter(
        pc.invert(stored.column("add").is_valid())
    )
    more = {"checkpointMetadata": {"version": version}, "sidecar": size}
    if kind == "parquet":
        for key, value in more.items():
            head = head.append_column(key, pa.array([value] + [None] * (head.num_rows - 1)))
        pq.write_table(head, name)
        return
    rows = [*head.to_pylist(maps_as_pydicts="strict"), *({k: v} for k, v in more.items())]
    actions = [{k: v} for row in rows for k, v in row.items() if v is not None]
    name.write_text("\n".join(map(json.dumps, actions)) + "\n")


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_v2_checkpoints_and_their_sidecars_are_read(lake: Lake, kind: str) -> None:
    for number in range(3):
        lake.write(people(number))
    v2_checkpoint(lake, 2, kind)
    lake.write(people(9))
    expected = Counter({(n, f"n{n}"): 1 for n in (0, 1, 2, 9)})
    for version in range(3):
        lake.log(version).unlink()
    source = lake.open()
    assert source.head().number == 3
    assert ours(source, 3) == expected
    assert source.schema(2).names == ("id", "name")


def test_the_folder_may_be_a_file_url(lake: Lake) -> None:
    lake.write(people(1))
    source = DeltaSource(lake.root.as_uri())
    assert source.tables() == [NAME]
    assert ours(source.table(NAME, ("id",)), 0) == Counter({(1, "n1"): 1})


def test_rows_of_partition_columns_alone_are_counted(lake: Lake) -> None:
    table = pa.table({"id": pa.array([1, 1, 2], pa.int64()), "x": pa.array([1, 2, 3])})
    lake.write(table, partition_by=["id"])
    layout = read(lake.open().rows(0)).select(["id"])
    library = pa.table(QueryBuilder().register("t", lake.delta).execute("select id from t"))
    assert of_table(layout) == of_table(library)


def test_nothing_outside_the_table_is_touched(lake: Lake, tmp_path: Path) -> None:
    lake.write(people(1))
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    ours(lake.open(), 0)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
