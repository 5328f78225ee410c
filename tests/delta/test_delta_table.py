"""What a Delta table promises to the engine: loads, batches, checkpoints, refusals."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from delta_samples import (
    LOG_ID,
    NAME,
    Lake,
    Model,
    Row,
    arrow,
    assert_holds,
    at,
    by_duckdb,
    changes,
    multiset,
    row_of,
    schema_of,
)
from deltalake import DeltaTable, Field, write_deltalake

from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.errors import (
    DestinationError,
    DivergedError,
    ForeignTableError,
    LogError,
    UnsupportedSchemaChangeError,
)
from headrace.model import ChangeFeed, Column, TableFormat, TableId, TableSchema

KIND = "text"
SCHEMA = schema_of(KIND)


def rows(keys: range, value: int = 1, kind: str = KIND) -> list[Row]:
    return [row_of(kind, key, value) for key in keys]


def loaded(lake: Lake, *parts: list[Row], schema: TableSchema = SCHEMA) -> MergeOnReadTable:
    table = lake.open()
    table.load(schema, lake.snapshot(schema, *parts), at(1))
    return table


def model_of(*held: list[Row], schema: TableSchema = SCHEMA) -> Model:
    model = Model(schema)
    model.apply([row for part in held for row in part], [])
    return model


def actions(lake: Lake, version: int, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, lake.log(version).read_text().splitlines())
    return [action[kind] for action in lines if kind in action]


def newest(lake: Lake) -> int:
    return DeltaTable(lake.path).version()


# -- loading ---------------------------------------------------------------------------------------


def plain_schema() -> TableSchema:
    columns = tuple(c for c in SCHEMA.columns if c.name not in ("tod", "at"))
    return TableSchema(NAME, 1, columns, SCHEMA.key)


def test_a_snapshot_file_is_linked_not_copied(lake: Lake) -> None:
    schema = plain_schema()
    path = lake.root / "0.parquet"
    pq.write_table(arrow(SCHEMA, rows(range(9))).select(schema.names), path)
    table = lake.open()
    table.load(schema, [str(path)], at(1))
    (add,) = actions(lake, 0, "add")
    assert (lake.path / add["path"]).samefile(path)
    assert add["size"] == path.stat().st_size
    assert json.loads(add["stats"])["numRecords"] == 9


def test_times_of_day_are_kept_as_text(lake: Lake) -> None:
    loaded(lake, rows(range(9), 3))
    table = pq.read_table(lake.path / actions(lake, 0, "add")[0]["path"])
    assert table.column("tod").to_pylist() == ["03:00:00.000003"] * 9
    assert_holds(lake.path, model_of(rows(range(9), 3)))


def test_a_table_without_rows_is_a_table(lake: Lake) -> None:
    table = loaded(lake, [])
    assert_holds(lake.path, model_of())
    assert table.checkpoint(LOG_ID) == at(1)
    table.apply(changes(SCHEMA, rows(range(2))), at(2))
    assert_holds(lake.path, model_of(rows(range(2))))


@pytest.mark.parametrize("feed", [True, False])
def test_the_protocol_names_what_is_used_and_nothing_more(lake: Lake, feed: bool) -> None:
    schema = plain_schema()
    table = lake.open(layout=TableFormat(change_feed=ChangeFeed.ROWS if feed else ChangeFeed.OFF))
    table.load(schema, [], at(1))
    (protocol,) = actions(lake, 0, "protocol")
    assert protocol["readerFeatures"] == ["deletionVectors"]
    assert ("changeDataFeed" in protocol["writerFeatures"]) is feed
    configuration = DeltaTable(lake.path).metadata().configuration
    assert configuration["delta.enableDeletionVectors"] == "true"
    assert ("delta.enableChangeDataFeed" in configuration) is feed


def test_a_new_log_swaps_content_and_schema_in_one_commit(lake: Lake) -> None:
    """Invariant 11: old rows until the swap, then all of the new."""
    table = loaded(lake, rows(range(5)), rows(range(5, 9)))
    table.apply(changes(SCHEMA, rows(range(3), 2)), at(2))
    before = newest(lake)
    other = schema_of("composite")
    new = rows(range(4), 7, "composite")
    table = lake.open()
    table.load(other, lake.snapshot(other, new), at(1, "another-log"))
    assert newest(lake) == before + 1
    assert_holds(lake.path, model_of(new, schema=other))
    assert table.checkpoint("another-log") == at(1, "another-log")
    assert table.checkpoint(LOG_ID) is None, "an older log must not go on over a newer one's rows"
    table.apply(changes(other, rows(range(2, 6), 8, "composite")), at(2, "another-log"))
    after = new[:2] + rows(range(2, 6), 8, "composite")
    assert_holds(lake.path, model_of(after, schema=other))


def test_a_table_that_headrace_did_not_make_is_left_alone(lake: Lake) -> None:
    write_deltalake(lake.path, pa.table({"id": [1]}))
    table = lake.open()
    with pytest.raises(ForeignTableError) as caught:
        table.load(SCHEMA, lake.snapshot(SCHEMA, rows(range(2))), at(1))
    assert "name:" in caught.value.hint
    assert newest(lake) == 0


def test_a_table_of_another_pipeline_is_left_alone(lake: Lake) -> None:
    loaded(lake, rows(range(2)))
    with pytest.raises(ForeignTableError, match="shop_to_lake"):
        lake.open(pipeline="other").load(SCHEMA, [], at(1))


# -- applying --------------------------------------------------------------------------------------


def test_a_batch_is_one_commit_with_its_checkpoint(lake: Lake) -> None:
    table = loaded(lake, rows(range(9)))
    table.apply(changes(SCHEMA, rows(range(4), 2), rows(range(7, 12))), at(7))
    assert newest(lake) == 1
    (info,) = actions(lake, 1, "commitInfo")
    assert info["engineInfo"].startswith("headrace/")
    assert info["operationMetrics"] == {"numUpsertedRows": "4", "numDeletedRows": "2"}
    assert info["headrace"] == {"logId": LOG_ID, "commit": 7, "lsn": "0/1B58"}
    delta = DeltaTable(lake.path)
    app_id = f"headrace/{LOG_ID}/shop_to_lake/shop.orders"
    assert delta.transaction_version(app_id) == 7
    assert delta.transaction_version(app_id + "#lsn") == 7000


@pytest.mark.parametrize("commit", [1, 2, 3])
def test_a_batch_at_or_before_the_checkpoint_changes_nothing(lake: Lake, commit: int) -> None:
    """Invariant 3: a replay is harmless, also in a process that has just begun."""
    table = loaded(lake, rows(range(9)))
    table.apply(changes(SCHEMA, rows(range(4), 2)), at(3))
    for handle in (table, lake.open()):
        handle.apply(changes(SCHEMA, rows(range(4), 3), rows(range(5, 9))), at(commit))
    assert newest(lake) == 1
    assert table.checkpoint(LOG_ID) == at(3)


def test_a_log_that_the_table_never_took_from_is_refused(lake: Lake) -> None:
    table = loaded(lake, rows(range(9)))
    with pytest.raises(DivergedError, match="another-log"):
        table.apply(changes(SCHEMA, rows(range(4))), at(9, "another-log"))


def test_an_unknown_row_that_keeps_its_old_value_is_noticed(lake: Lake) -> None:
    """Invariant 6: rather stop than write NULL for what the source did not send."""
    table = loaded(lake, rows(range(3)))
    (sent,) = rows(range(1, 2), 2)
    with pytest.raises(DivergedError) as caught:
        table.apply(changes(SCHEMA, [sent], fills=[(("txt",), 0, *rows(range(7, 8)))]), at(2))
    assert caught.value.hint == "headrace resync shop.orders"
    assert newest(lake) == 0


def test_an_unknown_row_of_a_multiset_is_noticed(lake: Lake) -> None:
    schema = schema_of("none")
    table = loaded(lake, rows(range(3), 1, "none"), schema=schema)
    (one,) = rows(range(1), 1, "none")
    with pytest.raises(DivergedError):
        table.apply(changes(schema, [], [one] * 4), at(2))
    table.apply(changes(schema, [], [one] * 3), at(2))
    assert_holds(lake.path, model_of(schema=schema))


def test_a_file_whose_last_row_goes_leaves_the_table(lake: Lake) -> None:
    table = loaded(lake, rows(range(2)), rows(range(2, 9)))
    table.apply(changes(SCHEMA, [], rows(range(2))), at(2))
    assert len(DeltaTable(lake.path).file_uris()) == 1
    assert_holds(lake.path, model_of(rows(range(2, 9))))


def test_nulls_in_an_integer_key_are_keys_too(lake: Lake) -> None:
    schema = schema_of("int64")
    null = (None, *rows(range(1), 1, "int64")[0][1:])
    table = loaded(lake, [null, *rows(range(5), 1, "int64")], schema=schema)
    table.apply(changes(schema, rows(range(1, 3), 2, "int64"), [null]), at(2))
    table.apply(changes(schema, [null]), at(3))
    table.apply(changes(schema, [(None, *rows(range(1), 4, "int64")[0][1:])]), at(4))
    expected = rows(range(1), 1, "int64") + rows(range(1, 3), 2, "int64")
    expected += [*rows(range(3, 5), 1, "int64"), (None, *rows(range(1), 4, "int64")[0][1:])]
    assert_holds(lake.path, model_of(expected, schema=schema))


# -- other writers ---------------------------------------------------------------------------------


def test_rows_that_another_writer_added_are_known(lake: Lake) -> None:
    table = loaded(lake, rows(range(3)))
    table.apply(changes(SCHEMA, rows(range(2), 2)), at(2))
    write_deltalake(
        lake.path,
        arrow(SCHEMA, rows(range(8, 12), 3)).set_column(
            SCHEMA.names.index("tod"),
            "tod",
            arrow(SCHEMA, rows(range(8, 12), 3)).column("tod").cast(pa.string()),
        ),
        mode="append",
    )
    table.apply(changes(SCHEMA, rows(range(9, 10), 4), rows(range(11, 12))), at(3))
    held = rows(range(2), 2) + rows(range(2, 3)) + rows(range(8, 9), 3) + rows(range(9, 10), 4)
    assert_holds(lake.path, model_of(held, rows(range(10, 11), 3)))


def test_two_handles_that_race_apply_each_batch_once(lake: Lake) -> None:
    """Invariant 3: a process thought dead cannot apply a batch again."""
    one, other = loaded(lake, rows(range(9))), lake.open()
    other.checkpoint(LOG_ID)
    for number in range(2, 8):
        batch = changes(SCHEMA, rows(range(number, number + 2), number), rows(range(number)))
        first, second = (one, other) if number % 2 else (other, one)
        first.apply(batch, at(number))
        second.apply(batch, at(number))
    assert newest(lake) == 6
    assert_holds(lake.path, model_of(rows(range(7, 9), 7)))


def test_a_column_that_another_writer_added_stops_the_table(lake: Lake) -> None:
    table = loaded(lake, rows(range(9)))
    table.apply(changes(SCHEMA, rows(range(2), 2)), at(2))
    DeltaTable(lake.path).alter.add_columns([Field("extra", "long")])
    with pytest.raises(UnsupportedSchemaChangeError, match="extra"):
        table.apply(changes(SCHEMA, rows(range(2), 3)), at(3))


def _commit(lake: Lake, *extra: dict[str, Any]) -> None:
    text = "\n".join(json.dumps(action) for action in extra)
    lake.log(newest(lake) + 1).write_text(text + "\n")


def test_a_feature_that_we_do_not_know_stops_the_table(lake: Lake) -> None:
    table = loaded(lake, rows(range(9)))
    (protocol,) = actions(lake, 0, "protocol")
    protocol["writerFeatures"] += ["rowTracking", "domainMetadata"]
    _commit(lake, {"protocol": protocol})
    with pytest.raises(DestinationError, match="rowTracking"):
        table.apply(changes(SCHEMA, rows(range(2), 3)), at(2))


def test_a_property_that_forbids_our_writes_stops_the_table(lake: Lake) -> None:
    table = loaded(lake, rows(range(9)))
    (metadata,) = actions(lake, 0, "metaData")
    metadata["configuration"]["delta.appendOnly"] = "true"
    _commit(lake, {"metaData": metadata})
    with pytest.raises(DestinationError) as caught:
        table.apply(changes(SCHEMA, rows(range(2), 3)), at(2))
    assert caught.value.hint


def test_a_put_whose_answer_was_lost_is_not_repeated(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 3: the log itself says whether the commit was ours."""
    table = loaded(lake, rows(range(9)))
    put = table.storage.put

    def lossy(path: str, data: bytes, *, create: bool = False) -> None:
        put(path, data, create=create)
        raise LogError("the answer was lost")

    monkeypatch.setattr(table.storage, "put", lossy)
    table.apply(changes(SCHEMA, rows(range(2), 2)), at(2))
    assert newest(lake) == 1
    assert table.checkpoint(LOG_ID) == at(2)


def test_a_put_that_failed_leaves_the_batch_to_be_tried_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = loaded(lake, rows(range(9)))

    def failing(path: str, data: bytes, *, create: bool = False) -> None:
        raise LogError("no connection")

    with monkeypatch.context() as patched:
        patched.setattr(table.storage, "put", failing)
        with pytest.raises(LogError, match="no connection"):
            table.apply(changes(SCHEMA, rows(range(2), 2)), at(2))
    assert_holds(lake.path, model_of(rows(range(9))), ["deltalake"])
    table.apply(changes(SCHEMA, rows(range(2), 2)), at(2))
    assert_holds(lake.path, model_of(rows(range(2), 2), rows(range(2, 9))))


def test_an_error_while_following_others_leaves_no_stale_index(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 3: rows that another commit moved are found at their new place or not at all."""
    table = loaded(lake, rows(range(9)), rows(range(9, 12)))
    table.apply(changes(SCHEMA, rows(range(2), 2)), at(2))
    DeltaTable(lake.path).optimize.compact()
    DeltaTable(lake.path).alter.set_table_description("later")
    get = table.storage.get

    def failing(path: str) -> bytes:
        if path.endswith("3.json"):
            raise LogError("no connection")
        return get(path)

    batch = changes(SCHEMA, rows(range(1, 10), 3))
    with monkeypatch.context() as patched:
        patched.setattr(table.storage, "get", failing)
        with pytest.raises(LogError, match="no connection"):
            table.apply(batch, at(3))
    table.apply(batch, at(3))
    assert_holds(lake.path, model_of(rows(range(1), 2), rows(range(1, 10), 3), rows(range(10, 12))))


# -- statistics ------------------------------------------------------------------------------------


def test_no_bound_hides_a_row_from_a_reader(lake: Lake) -> None:
    """Each value is found by a filter that asks for it, in every file."""
    held = [rows(range(i, i + 1), i)[0] for i in range(16)]
    table = loaded(lake, held[:5], held[5:10])
    table.apply(changes(SCHEMA, held[10:]), at(2))
    for row in held:
        for name, value in zip(SCHEMA.names, row, strict=True):
            if value is not None and name not in ("tags", "tod"):
                found = pl.scan_delta(str(lake.path)).filter(pl.col(name) == pl.lit(value))
                assert multiset([row]) <= multiset(found.collect().iter_rows()), (name, value)
                assert multiset([row]) <= by_duckdb(lake.path, SCHEMA.names, (name, value))


def test_greatest_values_are_not_taken_from_cut_bounds(lake: Lake) -> None:
    held = [rows(range(i, i + 1), i)[0] for i in range(12)]
    loaded(lake, held[:6], held[6:])
    destination = DeltaDestination(str(lake.root / "lake"))
    (got,) = destination.query("select max(txt) a, min(txt) b, max(at) c from orders").to_pylist()
    at_text, at_time = SCHEMA.names.index("txt"), SCHEMA.names.index("at")
    texts = [row[at_text] for row in held if row[at_text] is not None]
    times = [row[at_time] for row in held if row[at_time] is not None]
    assert got == {"a": max(texts), "b": min(texts), "c": max(times)}


# -- the destination -------------------------------------------------------------------------------


def test_queries_name_tables_as_the_source_does(lake: Lake) -> None:
    loaded(lake, rows(range(5)))
    other = lake.open(TableId("crm", "people"))
    other.load(SCHEMA, lake.snapshot(SCHEMA, rows(range(3))), at(1))
    destination = DeltaDestination(str(lake.root / "lake"))
    assert destination.tables() == [TableId("crm", "people"), NAME]
    sql = 'select (select count(*) from crm.people) p, count(*) o from "shop"."orders"'
    assert destination.query(sql).to_pylist() == [{"p": 3, "o": 5}]
    with pytest.raises(DestinationError, match="nothing") as caught:
        destination.query("select * from nothing")
    assert "crm.people" in caught.value.hint


def test_a_location_that_cannot_be_written_is_told(lake: Lake) -> None:
    DeltaDestination(str(lake.root / "new")).check_writable()
    (lake.root / "file").write_text("")
    with pytest.raises(DestinationError, match="file"):
        DeltaDestination(str(lake.root / "file")).check_writable()


def test_every_type_that_delta_lacks_is_refused_by_name(lake: Lake) -> None:
    schema = TableSchema(NAME, 1, (Column("d", pa.duration("s"), "x"),))
    with pytest.raises(DestinationError, match="duration") as caught:
        lake.open().load(schema, [], at(1))
    assert caught.value.hint
