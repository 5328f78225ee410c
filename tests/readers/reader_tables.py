"""One set of tables for every reader, each after a life of its own, and what they must hold."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from reading import FEED

from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.maintenance import Policy
from headrace.connectors.delta.table import MergeOnReadTable
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

Row = tuple[Any, ...]

LOG_ID = "5d0d2f0e-54a0-4f7c-8a92-1f4a1c8a0001"
EAGER = Policy(together=2, tiny=0, worn=0.01, every=1)  # compacts after every commit

_COLUMNS: Mapping[str, pa.DataType] = {
    "id": pa.int64(),
    "n": pa.int32(),
    "txt": pa.string(),
    "price": pa.decimal128(12, 3),
    "wide": pa.decimal128(38, 10),
    "ratio": pa.float64(),
    "at": pa.timestamp("us", "UTC"),
    "day": pa.date32(),
    "flag": pa.bool_(),
}
_MORE: Mapping[str, tuple[str, pa.DataType]] = {
    "local_times": ("local", pa.timestamp("us")),
    "arrays": ("tags", pa.list_(pa.string())),
    "null_arrays": ("tags", pa.list_(pa.string())),
    "bytes": ("raw", pa.binary()),
    "named": ('Größe, {"a b"}', pa.string()),
}


def _row(key: int, value: int) -> Row:
    if value % 5 == 0:
        return (key, *(None,) * (len(_COLUMNS) - 1))
    return (
        key,
        value - 9,
        ["", "x", "ü" * 70, "\U0010ffff" * 40, "word"][value % 5],
        Decimal(value * 7 - 30).scaleb(-3),
        Decimal(value - 9).scaleb(17) + Decimal(value).scaleb(-10),
        [0.5, -0.0, float("inf"), float("nan"), 1e-300][value % 5],
        dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, dt.UTC) + dt.timedelta(days=value * 3000),
        dt.date(1, 1, 1) + dt.timedelta(days=value * 80_000),
        value % 2 == 0,
    )


def _more(name: str, value: int) -> Any:
    return {
        "local_times": dt.datetime.fromisoformat("1900-01-01T00:00:00.000001")
        + dt.timedelta(days=value * 3000),
        "arrays": [["a", None, "ü"], [], ["b"]][value % 3],
        "null_arrays": [["a", None], None, []][value % 3],
        "bytes": [b"\x00\xff", b"", None][value % 3],
        "named": f"v{value}",
    }[name]


@dataclass
class LivedTable:
    """A table and the rows that its source has by now, by key."""

    name: str
    path: Path
    columns: list[str]
    rows: list[Row]

    def asked(self) -> dict[str, Any]:
        return {"path": str(self.path), "columns": self.columns}


@dataclass
class _Life:
    root: Path
    name: str
    layout: TableFormat = field(default_factory=TableFormat)
    rows: dict[int, Row] = field(default_factory=dict)
    told: list[Row] = field(default_factory=list)
    commit: int = 0

    def __post_init__(self) -> None:
        columns = dict(_COLUMNS)
        if self.name in _MORE:
            name, kind = _MORE[self.name]
            columns[name] = kind
        self.schema = _schema(self.name, columns)

    def open(self) -> MergeOnReadTable:
        place = DeltaDestination(str(self.root / "lake"), policy=EAGER)
        return place.table(self.schema.table, "shop_to_lake", layout=self.layout)

    def made(self, keys: range, value: int) -> list[Row]:
        more = self.name in _MORE
        rows = [_row(key, key + value) for key in keys]
        return [(*row, _more(self.name, row[0] + value)) if more else row for row in rows]

    def next(self) -> Checkpoint:
        self.commit += 1
        return Checkpoint(LOG_ID, self.commit, Lsn(self.commit * 1000))

    def load(self, table: MergeOnReadTable, *parts: list[Row]) -> None:
        files = []
        for number, rows in enumerate(parts):
            files.append(self.root / f"{self.name}-{self.commit}-{number}.parquet")
            pq.write_table(_arrow(self.schema, rows), files[-1], 5, compression="zstd")
        table.load(self.schema, [str(file) for file in files], self.next())
        self._empty()
        self._follow([row for rows in parts for row in rows], range(0))

    def apply(self, table: MergeOnReadTable, upserts: list[Row], deletes: range) -> None:
        gone = [(key,) + (None,) * (len(self.schema.names) - 1) for key in deletes]
        keys = _arrow(self.schema, gone).select(self.schema.key)
        table.apply(NetChanges(self.schema, _arrow(self.schema, upserts), keys), self.next())
        self._follow(upserts, deletes)

    def truncate(self, table: MergeOnReadTable, upserts: list[Row]) -> None:
        nothing = _arrow(self.schema, [])
        changes = NetChanges(
            self.schema, _arrow(self.schema, upserts), nothing.select(["id"]), truncate=True
        )
        table.apply(changes, self.next())
        self._empty()
        self._follow(upserts, range(0))

    def _empty(self) -> None:
        self.told += [(*row, "delete", self.commit) for row in self.rows.values()]
        self.rows.clear()

    def _follow(self, upserts: list[Row], deletes: range) -> None:
        images = self.layout.change_feed is ChangeFeed.IMAGES
        for key in deletes:
            if key in self.rows:
                self.told.append((*self.rows.pop(key), "delete", self.commit))
        for row in upserts:
            old = self.rows.get(row[0])
            if old is not None:
                kind = "update_preimage" if images else "delete"
                self.told.append((*old, kind, self.commit))
            kind = "update_postimage" if images and old is not None else "insert"
            self.told.append((*row, kind, self.commit))
            self.rows[row[0]] = row

    def widen(self, table: MergeOnReadTable) -> None:
        """Two columns more: one that old rows have a constant in, and one that they lack."""
        fields = (
            Column("added", pa.string(), "text", 40),
            Column("constant", pa.int32(), "int4", 41),
        )
        missing = {"constant": pa.scalar(7, pa.int32())}
        self.schema = replace(
            self.schema,
            version=2,
            columns=(*self.schema.columns, *fields),
            missing=missing,
        )
        table.evolve(self.schema)
        self.rows = {key: (*row, None, 7) for key, row in self.rows.items()}

    def lived(self) -> LivedTable:
        return LivedTable(
            self.name,
            self.root / "lake" / "shop" / self.name,
            list(self.schema.names),
            list(self.rows.values()),
        )


def _schema(name: str, columns: Mapping[str, pa.DataType]) -> TableSchema:
    numbered = enumerate(columns.items(), 1)
    made = tuple(Column(column, kind, str(kind), n) for n, (column, kind) in numbered)
    return TableSchema(TableId("shop", name), 1, made, ("id",))


def _arrow(schema: TableSchema, rows: Sequence[Row]) -> pa.Table:
    wanted = schema.arrow()
    arrays = [pa.array([row[i] for row in rows], f.type) for i, f in enumerate(wanted)]
    return pa.table(arrays, schema=wanted)


def _busy(life: _Life, *, compacted: bool = True) -> MergeOnReadTable:
    """Inserts, updates and deletes, that leave one file worn and one without a row."""
    table = life.open()
    life.load(table, life.made(range(12), 1), life.made(range(12, 15), 1))
    life.apply(table, life.made(range(3, 5), 4), range(6, 8))
    life.apply(table, life.made(range(4, 6), 5), range(8, 9))
    life.apply(table, life.made(range(20, 22), 6), range(12, 15))
    if compacted:
        table.settle()
        table = life.open()
        life.apply(table, life.made(range(5, 6), 11), range(20, 21))
    return table


def tables(root: Path) -> Iterator[LivedTable]:
    """What the readers are to read."""
    vectors, rewritten = TableFormat(), TableFormat(deletion_vectors=False)
    for name, layout in (("vectors", vectors), ("rewritten", rewritten)):
        life = _Life(root, name, layout)
        _busy(life).settle()
        yield life.lived()
    for name, layout in (("widened", vectors), ("widened_rewritten", rewritten)):
        life = _Life(root, name, layout)
        table = _busy(life)
        life.widen(table)
        life.apply(table, [(*row, "new", 8) for row in life.made(range(2, 4), 12)], range(1))
        table.settle()
        yield life.lived()
    switched = _Life(root, "switched", vectors)
    _busy(switched).settle()
    switched.layout = rewritten
    table = switched.open()
    switched.apply(table, switched.made(range(3), 2), range(9, 10))
    table.settle()
    yield switched.lived()
    for name, partition_by in (("partitioned", ("flag", "day")), ("by_time", ("at",))):
        life = _Life(root, name, replace(rewritten, partition_by=partition_by))
        _busy(life).settle()
        yield life.lived()
    for name in _MORE:
        life = _Life(root, name, rewritten)
        _busy(life).settle()
        yield life.lived()


def feeds(root: Path) -> Iterator[LivedTable]:
    """Tables whose rows are those of their Change Data Feed."""
    for name, feed, vectors in (
        ("feed_rows", ChangeFeed.ROWS, True),
        ("feed_rows_rewritten", ChangeFeed.ROWS, False),
        ("feed_images", ChangeFeed.IMAGES, True),
        ("feed_images_rewritten", ChangeFeed.IMAGES, False),
    ):
        life = _Life(root, name, TableFormat(deletion_vectors=vectors, change_feed=feed))
        table = _busy(life)
        life.truncate(table, life.made(range(2), 3))
        life.apply(table, life.made(range(1, 3), 2), range(1))
        life.load(table, life.made(range(4), 8))
        table.settle()
        lived = life.lived()
        versions = _versions(lived.path)
        told = [(*row, versions[commit]) for *row, commit in life.told]
        yield replace(lived, columns=[*lived.columns, *FEED], rows=told)


def _versions(path: Path) -> dict[int, int]:
    """The Delta version of each commit of the change log."""
    found = {}
    for entry in (path / "_delta_log").glob("*.json"):
        for action in map(json.loads, entry.read_text("utf-8").splitlines()):
            if "headrace" in action.get("commitInfo", {}):
                found[action["commitInfo"]["headrace"]["commit"]] = int(entry.stem)
    return found
