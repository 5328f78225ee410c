"""The same tables on an object store, with conditional puts and copies made by the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from delta_samples import (
    LOG_ID,
    NAME,
    PIPELINE,
    Lake,
    Model,
    Row,
    at,
    changes,
    multiset,
    row_of,
    schema_of,
)

from headrace.connectors.delta.destination import DeltaDestination
from headrace.log import open_storage
from headrace.model import Column, TableFormat, TableSchema

SCHEMA = schema_of("text")


def rows(keys: range, value: int = 1) -> list[Row]:
    return [row_of("text", key, value) for key in keys]


def held(url: str, options: dict[str, str]) -> Any:
    names = SCHEMA.names
    frame = pl.scan_delta(url, storage_options=options).select(names).collect()
    return multiset(frame.iter_rows())


@pytest.mark.parametrize("log_on", ["s3", "disk"])
def test_a_table_lives_on_an_object_store(
    lake: Lake, s3_endpoint: str, s3_options: dict[str, str], log_on: str
) -> None:
    """Invariants 3 and 4: a second process sees the first one's commits and repeats none."""
    base = f"s3://bucket/delta-{log_on}"
    files = lake.snapshot(SCHEMA, rows(range(6)), rows(range(6, 12)))
    if log_on == "s3":
        log = open_storage(f"{base}/log", s3_options)
        for number, path in enumerate(files):
            log.put(f"{number}.parquet", Path(path).read_bytes())
        files = [log.location(f"{number}.parquet") for number in range(2)]
    destination = DeltaDestination(f"{base}/lake", s3_options)
    destination.check_writable()
    one, other = destination.table(NAME, PIPELINE), destination.table(NAME, PIPELINE)
    one.load(SCHEMA, files, at(1))
    assert other.checkpoint(LOG_ID) == at(1)
    model = Model(SCHEMA)
    model.apply(rows(range(12)), [])
    for number in range(2, 6):
        upserts = rows(range(number + 5, number + 8), number)
        deletes = rows(range(number - 2, number - 1))
        batch = changes(SCHEMA, upserts, deletes)
        for table in (one, other) if number % 2 else (other, one):
            table.apply(batch, at(number))
        model.apply(upserts, deletes)
    url = destination.open(NAME).table_uri
    assert destination.open(NAME).version() == 4
    assert held(url, s3_options) == multiset(model.rows.elements())
    assert destination.tables() == [NAME]
    counted = destination.query("select count(*) n from shop.orders").to_pylist()
    assert counted == [{"n": model.rows.total()}]


def test_partitions_of_any_name_live_on_an_object_store(
    lake: Lake, s3_endpoint: str, s3_options: dict[str, str]
) -> None:
    columns = (Column("id", pa.int64(), "bigint", 1), Column("place", pa.string(), "text", 2))
    schema = TableSchema(NAME, 1, columns, ("id",))
    rows = list(enumerate(["a/b", "50%", "ü€", "x=y", "q?#&+", "a b", "back\\", "{z}", None]))
    destination = DeltaDestination("s3://bucket/delta-partitions/lake", s3_options)
    table = destination.table(NAME, PIPELINE, layout=TableFormat(partition_by=("place",)))
    table.load(schema, lake.snapshot(schema, rows), at(1))
    again = [(key + 100, place) for key, place in rows]
    table.apply(changes(schema, again, rows[:3]), at(2))
    read = destination.query("select id, place from shop.orders")
    expected = multiset([*rows[3:], *again])
    assert (
        multiset(zip(*(read.column(n).to_pylist() for n in schema.names), strict=True)) == expected
    )
    url = destination.open(NAME).table_uri
    frame = pl.scan_delta(url, storage_options=s3_options).select(schema.names).collect()
    assert multiset(frame.iter_rows()) == expected
