"""A whole table that is loaded, swapped in or changed in place, holds what a merge would write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from target_place import PIPELINE, Place, at, net, schema_of

from headrace.connectors.postgres import reconcile
from headrace.model import Delivery, OnDelete, RowPart, TableId, TableSchema

MERGED, LOADED = TableId("shop", "merged"), TableId("shop", "loaded")
TEXTS = ["", "abc", "abcde", "äöüßé", "abc  ", "abcde  ", " ab", "abcdef", "ABC", "a\0b", None]
COLUMNS = [
    "text", "varchar", "varchar(5)", "char(5)", "citext", 'text collate "C"',
    "varchar(5) check (v <> 'abc')", "shop.short", "varchar(5)[]",
]  # fmt: skip


@pytest.mark.parametrize("on_delete", [OnDelete.DELETE, OnDelete.MARK])
@pytest.mark.parametrize("column", COLUMNS)
def test_texts_are_loaded_as_they_are_merged(
    place: Place, column: str, on_delete: OnDelete
) -> None:
    """Nothing is cut either way: what is too long stands in quarantine (invariant 12)."""
    prepare = "create extension citext; create schema shop; create domain shop.short as varchar(5)"
    place.database.execute(f"{prepare} check (value <> 'abc')")
    array = column.endswith("[]")
    kind = pa.list_(pa.string()) if array else pa.string()
    rows = [{"id": i, "v": [text] if array else text} for i, text in enumerate(TEXTS)]
    for name in (MERGED, LOADED):
        place.database.execute(f"create table {name} (id bigint primary key, v {column})")
    merged, loaded = (schema_of({"id": pa.int64(), "v": kind}, name=n) for n in (MERGED, LOADED))
    place.prepared(merged).apply(net(merged, rows), at(1))
    load(place, loaded, [], 1, on_delete)  # rows that are marked when they go are never swapped
    load(place, loaded, rows, 2, on_delete)
    held, parked = content(place, MERGED)
    assert (held, parked) == content(place, LOADED)
    assert len(held) + len(parked) == len(TEXTS)
    assert parked


@pytest.mark.parametrize("on_delete", [OnDelete.DELETE, OnDelete.MARK])
@pytest.mark.parametrize("colliding", [False, True], ids=["", "half fingerprints collide"])
def test_rows_of_one_key_are_set_aside_and_no_others_12(
    place: Place, monkeypatch: pytest.MonkeyPatch, on_delete: OnDelete, colliding: bool
) -> None:
    """Invariant 12. Conformance: duplicate key in source."""
    if colliding:
        monkeypatch.setattr(reconcile, "repeated", np.unique)
    schema = schema_of({"id": pa.int64(), "v": pa.string()}, name=LOADED)
    load(place, schema, [{"id": 1, "v": "old"}, {"id": 9, "v": "gone"}], 1, on_delete)
    rows = [{"id": i, "v": v} for i, v in [(1, "a"), (2, "b"), (2, "c"), (3, "d")]]
    load(place, schema, rows, 2, on_delete)
    live = "where _deleted_at is null" if on_delete is OnDelete.MARK else ""
    assert place.rows(f"select id, v from {LOADED} {live} order by id") == [(1, "a"), (3, "d")]
    parked = place.destination.parked(table=LOADED)
    assert {row.code for row in parked} == {"duplicate_key"}
    assert sorted(str(row.values()["v"]) for row in parked) == ["b", "c"]


def load(
    place: Place, schema: TableSchema, rows: list[dict[str, Any]], version: int, how: OnDelete
) -> None:
    """Make these rows the whole table."""
    table = place.destination.table(schema.table, PIPELINE, Delivery(on_delete=how))
    place.opened.append(table)
    table.prepare(schema)
    batches = net(schema, rows).upserts.to_batches()
    table.replace(schema, [RowPart(lambda: iter(batches))], at(version))


def content(place: Place, name: TableId) -> tuple[list[Any], list[Any]]:
    """What a table holds, to the byte, and what stands in its quarantine."""
    held = place.rows(f"select id, v::text, octet_length(v::text) from {name} order by id")
    parked = place.destination.parked(table=name)
    return held, sorted((row.key, row.code, row.sqlstate) for row in parked)
