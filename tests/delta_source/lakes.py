"""Tables made with deltalake, and what independent readers find in them."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder, write_deltalake

from headrace.connectors.delta.source import DeltaSource, DeltaSourceTable
from headrace.model import Checkpoint, FeedPlan, Lsn, RowPart, TableId

NAME = TableId("crm", "customers")
FEED = "delta.enableChangeDataFeed"
FEED_ON = {FEED: "true"}
Row = tuple[Any, ...]


def people(*ids: int, name: str = "n") -> pa.Table:
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "name": pa.array([f"{name}{i}" for i in ids], pa.string()),
        }
    )


@dataclass
class Lake:
    """A Delta location in a test's folder, with one table."""

    root: Path

    @property
    def path(self) -> Path:
        return self.root / NAME.schema / NAME.name

    @property
    def delta(self) -> DeltaTable:
        return DeltaTable(self.path)

    def log(self, version: int) -> Path:
        return self.path / "_delta_log" / f"{version:020d}.json"

    def write(self, rows: pa.Table, **more: Any) -> int:
        """Give the rows to the table; gives the version. The feed is on unless told otherwise."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            more = {"configuration": FEED_ON, **more}
        write_deltalake(self.path, rows, mode=more.pop("mode", "append"), **more)
        return self.delta.version()

    def open(self, *key: str, poll: float = 0.005) -> DeltaSourceTable:
        return DeltaSource(str(self.root), poll=poll).table(NAME, key or ("id",))

    def at(self, version: int) -> Checkpoint:
        return Checkpoint(str(self.delta.metadata().id), version, Lsn(version))


def comparable(value: Any) -> Any:
    """One form, hashable, for values that readers give in several."""
    if isinstance(value, list | tuple):
        return tuple(comparable(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, comparable(v)) for k, v in value.items()))
    if isinstance(value, dt.datetime) and value.tzinfo:
        return value.astimezone(dt.UTC)
    return value


def multiset(rows: Iterable[Sequence[Any]]) -> Counter[Row]:
    return Counter(tuple(comparable(v) for v in row) for row in rows)


def of_table(table: pa.Table, names: Sequence[str] = ()) -> Counter[Row]:
    columns = [table.column(name).to_pylist() for name in names or table.column_names]
    return multiset(zip(*columns, strict=True))


def read(parts: Iterable[RowPart]) -> pa.Table:
    batches = [batch for part in parts for batch in part.read()]
    return pa.Table.from_batches(batches) if batches else pa.table({})


def ours(table: DeltaSourceTable, version: int) -> Counter[Row]:
    parts = table.rows(version)
    told = [part.rows for part in parts]
    found = read(parts)
    assert None in told or sum(told) == found.num_rows
    wanted = table.schema(version).arrow()
    assert not found.num_columns or found.schema.equals(wanted)
    return of_table(found, wanted.names) if found.num_columns else Counter()


def by_deltalake(path: Path, version: int) -> Counter[Row]:
    builder = QueryBuilder().register("t", DeltaTable(path, version=version))
    found = pa.table(builder.execute("select * from t"))
    return of_table(found, DeltaTable(path, version=version).to_pyarrow_dataset().schema.names)


def by_polars(path: Path, version: int) -> Counter[Row]:
    return multiset(pl.scan_delta(str(path), version=version).collect().iter_rows())


def feed(table: DeltaSourceTable, plan: FeedPlan) -> Counter[Row]:
    """The rows of a plan without their time: by name, as segments differ in their columns."""
    assert plan.loss is None, plan.loss
    rows: Counter[Row] = Counter()
    for segment in plan.segments:
        first, last = segment.versions[0].number, segment.last
        for batch in table.changes(segment.schema, first, last):
            assert batch.schema.names[: len(segment.schema.names)] == list(segment.schema.names)
            rows += multiset(
                [tuple((k, v) for k, v in row.items() if v is not None)]
                for row in batch.drop_columns(["_commit_timestamp"]).to_pylist()
            )
    return rows


def library_feed(path: Path, first: int, last: int) -> Counter[Row]:
    """The same by deltalake's own reader of the feed."""
    found = pa.table(DeltaTable(path).load_cdf(first, last)).drop_columns(["_commit_timestamp"])
    return multiset(
        [tuple((k, v) for k, v in row.items() if v is not None)] for row in found.to_pylist()
    )


_ZONED = dt.datetime(2021, 2, 3, 4, 5, 6, 789, dt.UTC)
_LOCAL = dt.datetime.fromisoformat("0001-02-03T04:05:06.000007")
EVERY_TYPE: dict[str, tuple[pa.DataType, str, tuple[Any, ...]]] = {
    "b": (pa.bool_(), "boolean", (True, False)),
    "i8": (pa.int8(), "byte", (-128, 127)),
    "i16": (pa.int16(), "short", (-32768, 32767)),
    "i32": (pa.int32(), "integer", (-(2**31), 2**31 - 1)),
    "i64": (pa.int64(), "long", (-(2**63), 2**63 - 1)),
    "f32": (pa.float32(), "float", (0.5, float("-inf"))),
    "f64": (pa.float64(), "double", (1e300, float("inf"))),
    "small": (pa.decimal128(10, 2), "decimal(10,2)", (Decimal("0.05"), Decimal("99999999.99"))),
    "large": (pa.decimal128(38, 10), "decimal(38,10)", (Decimal(10) ** 27, Decimal("-1e-10"))),
    "day": (pa.date32(), "date", (dt.date(1, 1, 1), dt.date(9999, 12, 31))),
    "ts": (pa.timestamp("us", "UTC"), "timestamp", (_ZONED, _ZONED - dt.timedelta(90_000))),
    "ntz": (pa.timestamp("us"), "timestamp_ntz", (_LOCAL, _LOCAL + dt.timedelta(900_000))),
    "text": (pa.string(), "string", ("", "\U0010ffff\x00é")),
    "raw": (pa.binary(), "binary", (b"", b"\x00\xff")),
    "list": (pa.list_(pa.string()), "", ([], ["a", None])),
    "struct": (
        pa.struct([("x", pa.int32()), ("y", pa.list_(pa.struct([("z", pa.string())])))]),
        "",
        ({"x": 1, "y": [{"z": "q"}, None]}, {"x": None, "y": None}),
    ),
    "map": (pa.map_(pa.string(), pa.int64()), "", ([], [("k", 1), ("l", None)])),
}


def every_type() -> pa.Table:
    """Three rows: two of values, one of nulls."""
    columns = {name: pa.array([*v, None], kind) for name, (kind, _, v) in EVERY_TYPE.items()}
    return pa.table({"id": pa.array([1, 2, 3], pa.int64()), **columns})
