"""The formats on disk: Parquet that others read, manifests that older and newer versions wrote."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from log_samples import CAPTURE, ORDERS, WHEN, commit, inserts, rows_of

from headrace.errors import LogCorruptError, LogError
from headrace.log import CommitDraft, LogFile, LogWriter, SnapshotEvent, SnapshotFile, open_storage
from headrace.log.manifest import Manifest, SchemaChange, decode, encode
from headrace.log.parquet import GROUP_ROWS, FileWriter
from headrace.model import Column, Lsn, TableId, TableSchema, TransactionEnd

FIXTURES = Path(__file__).parent / "fixtures"
SPILLED = LogFile(
    "changes/a/2.parquet", TableId("a", "b"), 2, 2, {"t": 1, "i": 1}, None, None, 80,
    TransactionEnd(Lsn(0x99), WHEN, 4_000_000_000),
)  # fmt: skip
FULL = Manifest(
    commit=7,
    log_id="4f3c2b1a-0000-4000-8000-000000000001",
    writer="4f3c2b1a-0000-4000-8000-000000000002",
    settled=5,
    from_lsn=Lsn.parse("0/10"),
    to_lsn=Lsn.parse("16/B374D848"),
    commit_ts=WHEN,
    written_at=datetime(2026, 1, 2, 3, 4, 6, 0, UTC),
    files=(
        LogFile("changes/x/1.parquet", ORDERS.table, 1, 3, {"i": 2, "u": 1}, Lsn(17), Lsn(20), 99),
        SPILLED,
    ),
    schemas=(SchemaChange(ORDERS.table, 1),),
    snapshots=(
        SnapshotEvent(
            ORDERS.table,
            Lsn(16),
            1,
            (SnapshotFile("snapshots/x/0.parquet", 10, 500),),
            taken_at=WHEN,
        ),
    ),
    stopped=((TableId("public", 'Größe "x"'), "its key is gone"),),
)


def test_each_released_format_is_read_for_ever() -> None:
    newest = decode((FIXTURES / "manifest-1.1.json").read_bytes(), "fixture")
    assert newest == FULL
    assert FULL.truncates == (TableId("a", "b"),)
    untimed = tuple(replace(event, taken_at=None) for event in FULL.snapshots)
    oldest = decode((FIXTURES / "manifest-1.0.json").read_bytes(), "fixture")
    assert oldest == replace(FULL, snapshots=untimed)


def test_a_manifest_survives_writing_and_reading() -> None:
    assert decode(encode(FULL), "here") == FULL
    bare = replace(FULL, files=(), schemas=(), snapshots=(), stopped=(), commit_ts=None)
    assert decode(encode(bare), "here") == bare


def test_a_newer_minor_is_read_and_a_newer_major_refused() -> None:
    content = json.loads(encode(FULL))
    newer = {**content, "format": "1.7", "later": {"x": 1}}
    newer["files"][0]["later"] = True
    assert decode(json.dumps(newer).encode(), "here") == FULL
    with pytest.raises(LogError, match=r"format 2\.0") as caught:
        decode(json.dumps({"format": "2.0", "all": "else"}).encode(), "here")
    assert not isinstance(caught.value, LogCorruptError)
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("missing", json.loads(encode(FULL)).keys() - {"format"})
def test_a_manifest_without_one_of_its_fields_is_damaged(missing: str) -> None:
    content = json.loads(encode(FULL))
    del content[missing]
    with pytest.raises(LogCorruptError, match="here is damaged"):
        decode(json.dumps(content).encode(), "here")


def test_others_read_the_log_as_parquet(tmp_path: Path) -> None:
    with LogWriter.open(open_storage(tmp_path), CAPTURE) as log:
        commit(log, 10, [1, 2])
        commit(log, 20, [3])
    pattern = str(tmp_path / "log/shop/changes/public.orders/*.parquet")
    query = "select _commit_lsn, _ordinal, id, note, _op from read_parquet(?) order by 1, 2"
    expected = [(10, 0, 1, "note 1", "i"), (10, 1, 2, "note 2", "i"), (20, 0, 3, "note 3", "i")]
    assert duckdb.execute(query, [pattern]).fetchall() == expected
    frame = polars.read_parquet(pattern).sort("_commit_lsn", "_ordinal")
    assert frame.select("_commit_lsn", "_ordinal", "id", "note", "_op").rows() == expected
    assert frame["_commit_ts"].to_list() == [WHEN] * 3


def test_snapshot_files_hold_the_tables_columns_and_statistics_in_large_groups(
    tmp_path: Path,
) -> None:
    """What a table format needs to take them over as they are."""
    storage = open_storage(tmp_path)
    with LogWriter.open(storage, CAPTURE, snapshot_compression="zstd") as log:
        with log.stage_snapshot(ORDERS, Lsn(1), 3) as chunk:
            for start in range(0, 1_200_000, 50_000):
                ids = pa.array(range(start, start + 50_000), pa.int64())
                notes = pa.repeat(pa.scalar("x"), 50_000)
                chunk.write(pa.record_batch([ids, notes], schema=ORDERS.arrow()))
        log.commit(
            CommitDraft(None, snapshots=[SnapshotEvent(ORDERS.table, Lsn(1), 1, (chunk.file,))])
        )
    path = storage.location(chunk.file.path)
    assert pq.read_schema(path).equals(ORDERS.arrow())
    with pq.ParquetFile(path) as file:
        meta = file.metadata
    assert chunk.file.bytes == Path(path).stat().st_size
    assert (meta.num_rows, chunk.file.rows) == (1_200_000, 1_200_000)
    assert meta.num_row_groups == 2
    assert meta.row_group(0).num_rows >= GROUP_ROWS
    first = meta.row_group(1).column(0)
    assert first.compression == "ZSTD"
    assert first.statistics.max == 1_199_999
    query = "select count(*), sum(id) from read_parquet(?)"
    assert duckdb.execute(query, [path]).fetchall() == [(1_200_000, sum(range(1_200_000)))]


def test_change_files_are_written_for_speed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with LogWriter.open(storage, CAPTURE) as log:
        file = log.stage(inserts(10, range(5000)))
        with pq.ParquetFile(storage.location(file.path)) as parquet:
            column = parquet.metadata.row_group(0).column(0)
        assert file.bytes == Path(storage.location(file.path)).stat().st_size
    assert not column.is_stats_set
    assert "RLE_DICTIONARY" not in column.encodings
    assert rows_of([1]).schema.equals(ORDERS.arrow())


def test_a_file_that_is_not_finished_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow's own writer would write a footer when it is collected, into a file that is closed,
    and print an error that nobody can catch."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    rows = pa.table({"id": [1, 2, 3]})
    file = io.BytesIO()
    writer = FileWriter(file, rows.schema)
    writer.write_table(rows)
    file.close()
    del writer
    gc.collect()
    assert not told


def test_columns_that_do_not_shrink_are_stored_as_they_are(tmp_path: Path) -> None:
    """Trying to compress hashes took longer than reading them from the server."""
    kinds = {"hash": pa.string(), "prose": pa.string(), "a.b": pa.binary(), "none": pa.string()}
    columns = [Column(name, kind, "text", n) for n, (name, kind) in enumerate(kinds.items(), 1)]
    schema = TableSchema(TableId("public", "mixed"), 1, tuple(columns))
    rows = [
        {
            "hash": hashlib.sha256(str(n).encode()).hexdigest(),
            "prose": f"row {n} of many that are much alike",
            "a.b": hashlib.sha256(str(n).encode()).digest() if n else None,
            "none": None,
        }
        for n in range(5000)
    ]
    storage = open_storage(tmp_path)
    with LogWriter.open(storage, CAPTURE) as log:
        with log.stage_snapshot(schema, Lsn(1), 0) as chunk:
            chunk.write(pa.RecordBatch.from_pylist(rows, schema=schema.arrow()))
        path = storage.location(chunk.file.path)
        with pq.ParquetFile(path) as file:
            group = file.metadata.row_group(0)
        found = {group.column(n).path_in_schema: group.column(n).compression for n in range(4)}
        assert found == {
            "hash": "UNCOMPRESSED", "prose": "SNAPPY", "a.b": "UNCOMPRESSED", "none": "SNAPPY"
        }  # fmt: skip
        assert polars.read_parquet(path).to_dicts() == rows
