"""A whole table that is loaded holds, and refuses, what a merge of the same rows does."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from target_place import PIPELINE, Place, at, net, schema_of

from headrace.model import RowPart, TableId

MERGED, LOADED = TableId("shop", "merged"), TableId("shop", "loaded")
TEXTS = ["", "abc", "abcde", "äöüßé", "abc  ", "abcde  ", " ab", "abcdef", "ABC", "a\0b", None]


@pytest.mark.parametrize(
    "column",
    [
        "text",
        "varchar",
        "varchar(5)",
        "char(5)",
        "citext",
        'text collate "C"',
        "varchar(5) check (v <> 'abc')",
        "shop.short",
        "varchar(5)[]",
    ],
)
def test_texts_are_loaded_as_they_are_merged(place: Place, column: str) -> None:
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
    batches = net(loaded, rows).upserts.to_batches()
    table = place.destination.table(LOADED, PIPELINE)
    place.opened.append(table)
    table.prepare(loaded)
    table.replace(loaded, [RowPart(lambda: iter(batches))], at(1))
    held, parked = content(place, MERGED)
    assert (held, parked) == content(place, LOADED)
    assert len(held) + len(parked) == len(TEXTS)
    assert parked


def content(place: Place, name: TableId) -> tuple[list[Any], list[Any]]:
    """What a table holds, to the byte, and what stands in its quarantine."""
    held = place.rows(f"select id, v::text, octet_length(v::text) from {name} order by id")
    parked = place.destination.parked(table=name)
    return held, sorted((row.key, row.code, row.sqlstate) for row in parked)
