"""Writes change batches as rows, and applies net changes the naive way: dicts and counters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.model import (
    BEFORE,
    COMMIT_LSN,
    OP,
    ORDINAL,
    UNCHANGED,
    ChangeBatch,
    Column,
    NetChanges,
    ReplicaIdentity,
    TableId,
    TableSchema,
    change_schema,
)

Row = Mapping[str, Any]
ARROW = {
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "double precision": pa.float64(),
    "real": pa.float32(),
    "text": pa.string(),
    "bytea": pa.binary(),
    "text[]": pa.list_(pa.string()),
    "hstore": pa.map_(pa.string(), pa.string()),
    "vector(2)": pa.list_(pa.float32(), 2),
    "point3": pa.struct([("x", pa.int64()), ("y", pa.float64())]),
}


def table_schema(
    columns: Mapping[str, str],
    key: Sequence[str] = (),
    identity: ReplicaIdentity = ReplicaIdentity.DEFAULT,
    version: int = 1,
    missing: Mapping[str, pa.Scalar] | None = None,
) -> TableSchema:
    """A schema of `public.t`, columns by name and source type, numbered from 1."""
    made = tuple(Column(n, ARROW[t], t, i + 1) for i, (n, t) in enumerate(columns.items()))
    return TableSchema(TableId("public", "t"), version, made, tuple(key), identity, missing or {})


@dataclass(frozen=True)
class Change:
    op: str
    row: Row = field(default_factory=dict)
    before: Row | None = None
    unsent: tuple[str, ...] = ()
    lsn: int = 1


def insert(**row: Any) -> Change:
    return Change("i", row)


def update(before: Row | None = None, unsent: tuple[str, ...] = (), **row: Any) -> Change:
    return Change("u", row, before, unsent)


def delete(**before: Any) -> Change:
    return Change("d", {}, before)


TRUNCATE = Change("t")


def change_batch(schema: TableSchema, changes: Sequence[Change]) -> ChangeBatch:
    layout = change_schema(schema)
    values: dict[str, list[Any]] = {n: [c.row.get(n) for c in changes] for n in schema.names}
    values[OP] = [c.op for c in changes]
    values[COMMIT_LSN] = [c.lsn for c in changes]
    values[ORDINAL] = list(range(len(changes)))
    values[UNCHANGED] = [bitmap(schema, c.unsent) if c.unsent else None for c in changes]
    values[BEFORE] = [c.before for c in changes]
    arrays = [pa.array(values.get(f.name, [None] * len(changes)), f.type) for f in layout]
    return ChangeBatch(schema, pa.RecordBatch.from_arrays(arrays, schema=layout))


def bitmap(schema: TableSchema, unsent: Iterable[str]) -> bytes:
    marks = bytearray(-(-len(schema.columns) // 8))
    for name in unsent:
        place = schema.names.index(name)
        marks[place // 8] |= 1 << (place % 8)
    return bytes(marks)


def canonical(value: Any) -> Any:
    """A hashable stand-in that is equal where the values are: NaN is NaN."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, list | tuple):
        return tuple(canonical(v) for v in value)
    if isinstance(value, Mapping):
        return tuple((k, canonical(v)) for k, v in value.items())
    return value


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    return [canonical(list(row.values())) for row in table.to_pylist()]


class Keyed:
    """A destination of one row per key, as a dict; refuses what NetChanges promises never to do."""

    def __init__(self, rows: Iterable[Row] = (), key: Sequence[str] = ("id",)) -> None:
        self.key = tuple(key)
        self.rows = {self.key_of(row): dict(row) for row in rows}

    def key_of(self, row: Row) -> Any:
        return canonical([row[k] for k in self.key])

    def apply(self, net: NetChanges) -> None:
        if net.truncated_at:
            for row in self.rows.values():
                row["_deleted_at"] = row["_deleted_at"] or net.truncated_at
        elif net.truncate:
            self.rows.clear()
        upserts = net.upserts.to_pylist()
        for fill in net.fills:
            self._fill(upserts, fill)
        deleted = [self.key_of(row) for row in net.deletes.to_pylist()]
        put = [self.key_of(row) for row in upserts]
        assert len({*deleted, *put}) == len(deleted) + len(put)
        for key in (*deleted, *put):
            self.rows.pop(key, None)
        self.rows |= dict(zip(put, upserts, strict=True))

    def _fill(self, upserts: list[dict[str, Any]], fill: Any) -> None:
        assert fill.columns
        assert fill.rows.dtype == np.int64
        for place, key in zip(fill.rows, fill.keys.to_pylist(), strict=True):
            held = self.rows[self.key_of(key)]
            upserts[place] |= {name: held[name] for name in fill.columns}

    def content(self) -> Counter[Any]:
        return content(self.rows.values())


class Multiset:
    """A destination without a key; every delete must find the row that it takes away."""

    def __init__(self) -> None:
        self.rows: Counter[Any] = Counter()

    def apply(self, net: NetChanges) -> None:
        assert net.fills == ()
        if net.truncate:
            self.rows.clear()
        self.rows.subtract(content(net.deletes.to_pylist()))
        assert all(count >= 0 for count in self.rows.values())
        self.rows += content(net.upserts.to_pylist())

    def content(self) -> Counter[Any]:
        return self.rows


def content(rows: Iterable[Row]) -> Counter[Any]:
    """Rows as a multiset; a map's entries come from Arrow in order."""
    return Counter(canonical(row) for row in rows)
