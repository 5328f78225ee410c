"""Tables with keys of every kind, a model of what they must hold, and independent readers."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, QueryBuilder

from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.model import Checkpoint, Column, Fill, Lsn, NetChanges, TableId, TableSchema
from headrace.testing.duckdb_delta import duckdb_with_delta

Row = tuple[Any, ...]

LOG_ID = "5d0d2f0e-54a0-4f7c-8a92-1f4a1c8a0001"
NAME = TableId("shop", "orders")
PIPELINE = "shop_to_lake"

_EPOCH = dt.datetime.fromisoformat("1970-01-01")  # of local time: no zone

_KEYS: dict[str, tuple[tuple[str, ...], tuple[pa.DataType, ...], Callable[[int], Row]]] = {
    "int64": (("id",), (pa.int64(),), lambda i: ((-1) ** i * i * 2**40,)),
    "int16": (("id",), (pa.int16(),), lambda i: (i - 8,)),
    "text": (
        ("id",),
        (pa.string(),),
        lambda i: (["", "a", "aaaaaaaa", "b" * 9, "é" * 300, "c" * 256][i % 6] + "x" * (i // 6),),
    ),
    "uuid": (("id",), (pa.string(),), lambda i: (str(uuid.UUID(int=i << 64 | i)),)),
    "composite": (
        ("id", "part"),
        (pa.int32(), pa.string()),
        lambda i: (i // 4, ["", "1", "11", "ü"][i % 4]),
    ),
    "date": (("id",), (pa.date32(),), lambda i: (dt.date(1, 1, 1) + dt.timedelta(i * 40_000),)),
    "timestamp": (
        ("id",),
        (pa.timestamp("us", "UTC"),),
        lambda i: (dt.datetime(1969, 12, 31, tzinfo=dt.UTC) + dt.timedelta(microseconds=i),),
    ),
    "decimal": (
        ("id",),
        (pa.decimal128(38, 4),),
        lambda i: (Decimal(10) ** 30 * (i - 5) + Decimal(i) / 4,),
    ),
    "bytes": (("id",), (pa.binary(),), lambda i: (bytes(range(i)),)),
    "bool_float": (
        ("id", "part"),
        (pa.bool_(), pa.float64()),
        lambda i: (i % 2 == 0, [0.0, 1.5, float("inf"), -2.25, 1e300, 7.0, 8.0, 9.0][i // 2 % 8]),
    ),
    "time": (("id",), (pa.time64("us"),), lambda i: (dt.time(i, 2, 3, 4),)),
    "none": ((), (pa.int64(),), lambda i: (i // 3,)),
}
KEY_KINDS = tuple(_KEYS)

_VALUES: tuple[tuple[str, pa.DataType], ...] = (
    ("n", pa.int32()),
    ("txt", pa.string()),
    ("at", pa.timestamp("us")),
    ("tod", pa.time64("us")),
    ("price", pa.decimal128(12, 3)),
    ("ratio", pa.float64()),
    ("raw", pa.binary()),
    ("tags", pa.list_(pa.string())),
)


def _values(v: int) -> Row:
    if v % 5 == 0:
        return (None,) * len(_VALUES)
    return (
        v,
        ["", "x", "z" * 70, "\U0010ffff" * 40, "word"][v % 5],
        _EPOCH + dt.timedelta(days=v * 1000, microseconds=v),
        dt.time(v % 24, 0, 0, v),
        Decimal(v).scaleb(-3),
        [0.5, -1.5, float("inf"), 3.25][v % 4],
        bytes([v]) * (v % 4),
        None if v % 3 == 0 else ("t",) * (v % 3) + (None,) * (v % 2),
    )


def schema_of(kind: str, **more: Any) -> TableSchema:
    names, types, _ = _KEYS[kind]
    columns = [*zip(names or ("id",), types, strict=True), *_VALUES]
    return TableSchema(
        NAME,
        1,
        tuple(Column(n, t, str(t), i + 1) for i, (n, t) in enumerate(columns)),
        names,
        **more,
    )


def row_of(kind: str, key: int, value: int) -> Row:
    return _KEYS[kind][2](key) + _values(value)


def arrow(schema: TableSchema, rows: Sequence[Row], columns: Sequence[str] = ()) -> pa.Table:
    wanted = schema.arrow()
    if columns:
        wanted = pa.schema([wanted.field(n) for n in columns])
    at = [schema.names.index(n) for n in wanted.names]
    arrays = [pa.array([r[i] for r in rows], f.type) for i, f in zip(at, wanted, strict=True)]
    return pa.table(arrays, schema=wanted)


def changes(
    schema: TableSchema,
    upserts: Sequence[Row] = (),
    deletes: Sequence[Row] = (),
    fills: Sequence[tuple[tuple[str, ...], int, Row]] = (),
    *,
    truncate: bool = False,
) -> NetChanges:
    """`fills`: columns, position in the upserts, and the row that holds the old values."""
    return NetChanges(
        schema,
        arrow(schema, upserts),
        arrow(schema, deletes, schema.key),
        tuple(
            Fill(columns, np.array([at]), arrow(schema, [old], schema.key))
            for columns, at, old in fills
        ),
        truncate,
    )


def at(commit: int, log_id: str = LOG_ID) -> Checkpoint:
    return Checkpoint(log_id, commit, Lsn(commit * 1000))


@dataclass
class Model:
    """What the table must hold: rows by key, or a multiset of rows."""

    schema: TableSchema
    rows: Counter[Row] = field(default_factory=Counter)

    def key(self, row: Row) -> Row:
        return row[: len(self.schema.key)]

    def apply(self, upserts: Iterable[Row], deletes: Iterable[Row]) -> None:
        upserts, deletes = list(upserts), list(deletes)
        if self.schema.key:
            gone = {self.key(row) for row in [*upserts, *deletes]}
            self.rows = Counter(row for row in self.rows if self.key(row) not in gone)
        else:
            self.rows -= Counter(deletes)
        self.rows += Counter(upserts)


def comparable(value: Any) -> Any:
    """One form for values that readers give in several."""
    if isinstance(value, list | np.ndarray | tuple):
        return tuple(comparable(v) for v in value)
    if isinstance(value, dt.time):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, dt.datetime) and value.tzinfo:
        return value.astimezone(dt.UTC)
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    return value


def multiset(rows: Iterable[Sequence[Any]]) -> Counter[Row]:
    return Counter(tuple(comparable(v) for v in row) for row in rows)


def _of_table(table: pa.Table, names: Sequence[str]) -> Counter[Row]:
    return multiset(zip(*(table.column(n).to_pylist() for n in names), strict=True))


def by_deltalake(path: Path, names: Sequence[str]) -> Counter[Row]:
    builder = QueryBuilder().register("t", DeltaTable(path))
    return _of_table(pa.table(builder.execute("select * from t")), names)


def by_polars(path: Path, names: Sequence[str]) -> Counter[Row]:
    return multiset(pl.scan_delta(str(path)).select(names).collect().iter_rows())


def by_duckdb(
    path: Path, names: Sequence[str], where: tuple[str, Any] | None = None
) -> Counter[Row]:
    with duckdb_with_delta() as connection:
        condition = f'where "{where[0]}" = ?' if where else ""
        values = [where[1]] if where else []
        rows = connection.execute(f"select * from delta_scan('{path}') {condition}", values)
        return _of_table(rows.to_arrow_table(), names)


READERS: Mapping[str, Callable[[Path, Sequence[str]], Counter[Row]]] = {
    "deltalake": by_deltalake,
    "polars": by_polars,
    "duckdb": by_duckdb,
}


def assert_holds(path: Path, model: Model, readers: Iterable[str] = READERS) -> None:
    expected = multiset(model.rows.elements())
    for reader in readers:
        assert READERS[reader](path, model.schema.names) == expected, reader


class AtOnce(Executor):
    """Does work where it is asked for, so that it comes to the same each time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass
class Lake:
    """A Delta location in a test's folder."""

    root: Path
    files: int = 0

    @property
    def path(self) -> Path:
        return self.root / "lake" / NAME.schema / NAME.name

    def open(
        self,
        name: TableId = NAME,
        pipeline: str = PIPELINE,
        *,
        beside: Executor | None = None,
        **more: Any,
    ) -> MergeOnReadTable:
        place = DeltaDestination(str(self.root / "lake"), beside=beside)
        return place.table(name, pipeline, **more)

    def snapshot(self, schema: TableSchema, *parts: Sequence[Row]) -> list[str]:
        """Snapshot files as the change log holds them."""
        paths = []
        for rows in parts:
            self.files += 1
            paths.append(self.root / "log" / f"{self.files}.parquet")
            paths[-1].parent.mkdir(exist_ok=True)
            pq.write_table(arrow(schema, rows), paths[-1], compression="zstd")
        return [str(path) for path in paths]

    def log(self, version: int) -> Path:
        return self.path / "_delta_log" / f"{version:020d}.json"
