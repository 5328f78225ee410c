"""A table whose columns change, against a model that knows each value by its column's number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from delta_samples import LOG_ID, NAME, READERS, Lake, at, multiset

from headrace.connectors.delta.table import MergeOnReadTable
from headrace.model import Column, Delivery, NetChanges, TableSchema

KEY = 1  # the number of the key's column
WIDER: Mapping[pa.DataType, tuple[pa.DataType, str]] = {
    pa.int16(): (pa.int32(), "integer"),
    pa.int32(): (pa.int64(), "bigint"),
    pa.float32(): (pa.float64(), "double precision"),
}
TYPES: Mapping[str, pa.DataType] = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "real": pa.float32(),
    "text": pa.string(),
}


def value(kind: pa.DataType, seed: int) -> Any:
    """One that every wider type holds too; each seed another one."""
    return f"text {seed}" if pa.types.is_string(kind) else kind.to_pandas_dtype()(seed).item()


@dataclass
class Evolving:
    """The table and the model: rows by key, each as values by the numbers of their columns."""

    lake: Lake
    delivery: Delivery = field(default_factory=Delivery)
    rows: dict[int, dict[int, Any]] = field(default_factory=dict)
    commit: int = 1
    numbers: int = 3

    def __post_init__(self) -> None:
        columns = (
            Column("id", pa.int32(), "integer", KEY),
            Column("a", pa.int32(), "integer", 2),
            Column("b", pa.string(), "text", 3),
        )
        self.schema = TableSchema(NAME, 1, columns, ("id",))
        self.rows = {key: {KEY: key, 2: key, 3: f"text {key}"} for key in range(6)}
        self.open()
        parts = [self._tuples(range(3)), self._tuples(range(3, 6))]
        if self.table.checkpoint(LOG_ID) is None:
            self.table.load(self.schema, self.lake.snapshot(self.schema, *parts), at(1))

    def open(self) -> None:
        self.table: MergeOnReadTable = self.lake.open(delivery=self.delivery)

    def _tuples(self, keys: Any) -> list[tuple[Any, ...]]:
        numbers = [column.attnum for column in self.schema.columns]
        return [tuple(self.rows[key].get(n) for n in numbers) for key in keys]

    def put(self, keys: list[int], seed: int) -> None:
        """New rows, in place of those that stood."""
        for key in keys:
            values = {c.attnum: value(c.type, seed) for c in self.schema.columns}
            self.rows[key] = {**values, KEY: key}
        self._apply(keys, [])

    def take(self, keys: list[int]) -> None:
        gone = [key for key in keys if self.rows.pop(key, None) is not None]
        self._apply([], gone)

    def _apply(self, keys: list[int], gone: list[int]) -> None:
        arrow = self.schema.arrow()
        rows = self._tuples(keys)
        upserts = pa.table(
            [pa.array([r[i] for r in rows], f.type) for i, f in enumerate(arrow)], schema=arrow
        )
        name = self.schema.key[0]
        wanted = pa.schema([arrow.field(name)])
        deletes = pa.table([pa.array(gone, wanted.types[0])], schema=wanted)
        self.commit += 1
        self.table.apply(NetChanges(self.schema, upserts, deletes), at(self.commit))

    # -- columns -----------------------------------------------------------------------------------

    def _follow(self, columns: list[Column], missing: Mapping[str, Any] | None = None) -> None:
        version = self.schema.version + 1
        self.schema = replace(
            self.schema,
            version=version,
            columns=tuple(columns),
            key=(next(c.name for c in columns if c.attnum == KEY),),
            missing=missing or {},
        )
        self.table.evolve(self.schema)

    def add(self, name: str, kind: str, constant: int | None) -> None:
        self.numbers += 1
        column = Column(name, TYPES[kind], kind, self.numbers)
        missing = {}
        if constant is not None:
            given = value(column.type, constant)
            missing = {name: pa.scalar(given, column.type)}
            for row in self.rows.values():
                row[self.numbers] = given
        self._follow([*self.schema.columns, column], missing)

    def drop(self, name: str) -> None:
        self._follow([c for c in self.schema.columns if c.name != name])

    def rename(self, names: Mapping[str, str]) -> None:
        self._follow([replace(c, name=names.get(c.name, c.name)) for c in self.schema.columns])

    def widen(self, name: str) -> None:
        wider = {
            c.name: replace(c, type=WIDER[c.type][0], source_type=WIDER[c.type][1])
            for c in self.schema.columns
            if c.name == name and c.type in WIDER
        }
        self._follow([wider.get(c.name, c) for c in self.schema.columns])

    # -- what must be true -------------------------------------------------------------------------

    def expected(self) -> Counter[tuple[Any, ...]]:
        return multiset(self._tuples(self.rows))

    def assert_holds(self) -> None:
        expected = self.expected()
        for reader, read in READERS.items():
            assert read(self.lake.path, self.schema.names) == expected, reader
