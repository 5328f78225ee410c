"""Batches of changes into a Delta table, against what else writes one: scd2, wide, mostly deletes.

The same rows for everybody, in one run, a batch each in turn: Headrace, delta-rs with
`DeltaTable.merge`, dlt's merge into Delta, and as a floor DuckDB's MERGE into a table of its own,
which no other engine reads. Ours begin with the changes as the log has them, so that the making of
versions counts; the others' with a table in memory of what they are to merge. dlt has no scd2 for
Delta. In the end all must hold the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, QueryBuilder, write_deltalake

from benchmarks import report
from benchmarks.wide import ROWS_PER_FILE
from headrace.connectors.delta.destination import DeltaDestination
from headrace.engine.shaping import net_of, shaped
from headrace.model import (
    END_AT,
    START_AT,
    ChangeBatch,
    Checkpoint,
    Column,
    Lsn,
    Mode,
    Shape,
    TableId,
    TableSchema,
    change_schema,
)

KEYS = 1000
ROUNDS, WARM_UP = 8, 2
DLT_ROUNDS = 4  # one takes seconds
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
GONE = "_gone"


@dataclass(frozen=True)
class Kind:
    """What is written: columns beside the key, rows at first, and how many of a batch's go."""

    columns: int = 6
    size: int = 1_000_000
    deletes: int = 0
    mode: Mode = Mode.SCD1

    @cached_property
    def schema(self) -> TableSchema:
        types = [(pa.int64(), "bigint"), (pa.string(), "text"), (pa.float64(), "float8")]
        others = (
            Column(f"c{n}", *types[n % len(types)], n + 2)  # of as many types as cycle
            for n in range(self.columns)
        )
        columns = (Column("id", pa.int64(), "bigint", 1), *others)
        return TableSchema(TableId("public", "rows"), 1, columns, ("id",))

    def rows(self, ids: np.ndarray, seed: int) -> pa.Table:
        values = np.random.default_rng(seed).integers(0, 10**6, len(ids))
        columns = [
            pa.array(ids + values * (n + 1)).cast(column.type)
            for n, column in enumerate(self.schema.columns[1:])
        ]
        return pa.table([pa.array(ids), *columns], schema=self.schema.arrow())


@dataclass(frozen=True)
class Changes:
    """Keys that get other values or come anew, and keys that go, all at one time."""

    number: int
    rows: pa.Table
    gone: pa.Array

    @property
    def at(self) -> datetime:
        return BEGAN + timedelta(seconds=self.number)


KINDS: Mapping[str, Kind] = {
    "scd2": Kind(mode=Mode.SCD2),
    "wide": Kind(columns=49, size=250_000),
    "delete_heavy": Kind(deletes=600),
}


def changes(kind: Kind, number: int) -> Changes:
    """Of keys that no other batch touches; where some go, the others are new."""
    order = np.random.default_rng(0).permutation(kind.size)
    chosen = order[number * KEYS : (number + 1) * KEYS]
    gone, kept = chosen[: kind.deletes], chosen[kind.deletes :]
    if kind.deletes:
        kept = kind.size + number * KEYS + np.arange(len(kept))
    return Changes(number, kind.rows(np.sort(kept), number), pa.array(np.sort(gone)))


class Contestant(Protocol):
    def apply(self, batch: Changes) -> None: ...

    def content(self) -> tuple[Any, ...]: ...


# -- ours ------------------------------------------------------------------------------------------


class Headrace:
    def __init__(self, folder: Path, kind: Kind, files: list[str]) -> None:
        self._kind, self._shape = kind, Shape(kind.mode)
        place = DeltaDestination(str(folder))
        self._table = place.table(kind.schema.table, "bench", self._shape)
        self._path = folder / "public" / "rows"
        loaded = shaped(kind.schema, self._shape)
        if kind.mode is Mode.SCD2:
            loaded = TableSchema(
                loaded.table,
                loaded.version,
                loaded.columns,
                loaded.key,
                missing={START_AT: pa.scalar(BEGAN, pa.timestamp("us", "UTC"))},
            )
        self._table.load(loaded, files, Checkpoint("log", 1, Lsn(1)))

    def apply(self, batch: Changes) -> None:
        lsn = batch.number + 2
        made = _change_batch(self._kind, batch, lsn)
        net = net_of(self._shape, self._table, self._kind.schema, [made], Lsn(lsn - 1))
        self._table.apply(net, Checkpoint("log", lsn, Lsn(lsn)))

    def content(self) -> tuple[Any, ...]:
        return _delta_content(self._path, self._kind)


def _change_batch(kind: Kind, batch: Changes, lsn: int) -> ChangeBatch:
    schema = change_schema(kind.schema)
    count, gone = batch.rows.num_rows, len(batch.gone)
    total = count + gone
    old = pa.table({"id": batch.gone})
    columns = pa.concat_tables([batch.rows, old], promote_options="default").combine_chunks()
    keys = pa.array([None] * count + [{"id": key} for key in batch.gone.to_pylist()])
    meta = [
        pa.array(["i" if kind.deletes else "u"] * count + ["d"] * gone),
        pa.array([lsn] * total, pa.uint64()),
        pa.array(range(total), pa.uint64()),
        pa.array([batch.at] * total, pa.timestamp("us", "UTC")),
        pa.array([1] * total, pa.uint32()),
        pa.nulls(total, pa.binary()),
        keys.cast(schema.field("_before").type) if gone else pa.nulls(total, schema.types[-1]),
    ]
    data = [column.combine_chunks() for column in columns.columns]
    return ChangeBatch(kind.schema, pa.RecordBatch.from_arrays([*data, *meta], schema=schema))


# -- the others ------------------------------------------------------------------------------------


def _staged(kind: Kind, batch: Changes) -> pa.Table:
    """What a MERGE takes: for scd2 each row twice, to end the old version and to bring the new."""
    if kind.mode is Mode.SCD2:
        began = pa.array([batch.at] * batch.rows.num_rows, pa.timestamp("us", "UTC"))
        rows = batch.rows.append_column(START_AT, began)
        merge_key = pa.chunked_array([rows["id"].combine_chunks(), pa.nulls(len(rows), pa.int64())])
        return pa.concat_tables([rows, rows]).append_column("merge_key", merge_key)
    flag = [False] * batch.rows.num_rows + [True] * len(batch.gone)
    rows = pa.concat_tables([batch.rows, pa.table({"id": batch.gone})], promote_options="default")
    return rows.append_column(GONE, pa.array(flag))


def _names(kind: Kind) -> list[str]:
    period = [START_AT, END_AT] if kind.mode is Mode.SCD2 else []
    return [*kind.schema.names, *period]


class DeltaRs:
    def __init__(self, folder: Path, kind: Kind, files: list[str]) -> None:
        self._kind, self._path = kind, folder
        for file in files:
            write_deltalake(folder, _loaded(kind, pq.read_table(file)), mode="append")

    def apply(self, batch: Changes) -> None:
        history = self._kind.mode is Mode.SCD2
        on = f"t.id = s.merge_key AND t.{END_AT} IS NULL" if history else "t.id = s.id"
        merge = DeltaTable(self._path).merge(
            _staged(self._kind, batch), on, source_alias="s", target_alias="t"
        )
        if history:
            merge = merge.when_matched_update({END_AT: f"s.{START_AT}"})
            merge = merge.when_not_matched_insert({n: f"s.{n}" for n in _names(self._kind)[:-1]})
        else:
            every = {name: f"s.{name}" for name in self._kind.schema.names}
            merge = merge.when_matched_delete(f"s.{GONE}").when_matched_update(every)
            merge = merge.when_not_matched_insert(every, f"NOT s.{GONE}")
        merge.execute()

    def content(self) -> tuple[Any, ...]:
        return _delta_content(self._path, self._kind)


class DuckDb:
    """A table of DuckDB's own on disk, with its key as primary key; scd2 has none."""

    def __init__(self, folder: Path, kind: Kind, files: list[str]) -> None:
        self._kind = kind
        self._connection = duckdb.connect(str(folder.with_suffix(".duckdb")))
        rows = _loaded(kind, pa.concat_tables(map(pq.read_table, files)))
        self._connection.register("loaded", rows)
        self._connection.execute(
            "SET enable_progress_bar = false; CREATE TABLE t AS SELECT * FROM loaded"
        )
        if kind.mode is Mode.SCD1:
            self._connection.execute("ALTER TABLE t ADD PRIMARY KEY (id)")

    def apply(self, batch: Changes) -> None:
        names = _names(self._kind)
        self._connection.register("s", _staged(self._kind, batch))
        if self._kind.mode is Mode.SCD2:
            values = ", ".join([*(f"s.{n}" for n in names[:-1]), "NULL"])
            on = f"t.id = s.merge_key AND t.{END_AT} IS NULL"
            then = f"WHEN MATCHED THEN UPDATE SET {END_AT} = s.{START_AT}"
            insert = "WHEN NOT MATCHED"
        else:
            values = ", ".join(f"s.{n}" for n in names)
            on = "t.id = s.id"
            assigned = ", ".join(f"{n} = s.{n}" for n in names[1:])
            then = f"WHEN MATCHED AND s.{GONE} THEN DELETE WHEN MATCHED THEN UPDATE SET {assigned}"
            insert = f"WHEN NOT MATCHED AND NOT s.{GONE}"
        self._connection.execute(
            f"MERGE INTO t USING s ON {on} {then} {insert} THEN INSERT VALUES ({values})"
        )

    def content(self) -> tuple[Any, ...]:
        found = self._connection.execute(_checked("t", self._kind)).fetchone()
        assert found is not None
        return tuple(found)


class Dlt:
    """Into a Delta table on the same disk, from Arrow, without its telemetry."""

    def __init__(self, folder: Path, kind: Kind, files: list[str]) -> None:
        os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
        os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"
        import dlt  # of benchmarks/requirements.txt

        self._kind, self._path = kind, folder / "data" / "public" / "rows"
        self._pipeline = dlt.pipeline(
            "bench",
            destination=dlt.destinations.filesystem(str(folder / "data")),
            dataset_name="public",
            pipelines_dir=str(folder / "work"),
        )
        self._run(self._flagged(kind.rows(np.arange(1), 0)))
        rows = [self._flagged(pq.read_table(file)) for file in files]
        columns = DeltaTable(self._path).schema().to_arrow()
        names = pa.schema(columns).names
        for part in rows:  # past dlt, which would take minutes
            lacking = [n for n in names if n not in part.column_names]
            for name in lacking:
                part = part.append_column(name, pa.nulls(part.num_rows, pa.string()))
            mode = "overwrite" if part is rows[0] else "append"
            write_deltalake(self._path, part.select(names), mode=mode)

    def _flagged(self, rows: pa.Table) -> pa.Table:
        return rows.append_column("gone", pa.array(np.zeros(rows.num_rows, np.bool_)))

    def _run(self, rows: pa.Table) -> None:
        self._pipeline.run(
            rows,
            table_name="rows",
            table_format="delta",
            write_disposition={"disposition": "merge", "strategy": "upsert"},
            primary_key="id",
            columns={"gone": {"hard_delete": True}},
        ).raise_on_failed_jobs()

    def apply(self, batch: Changes) -> None:
        staged = _staged(self._kind, batch)
        self._run(staged.rename_columns([*staged.column_names[:-1], "gone"]))

    def content(self) -> tuple[Any, ...]:
        return _delta_content(self._path, self._kind)


def _loaded(kind: Kind, rows: pa.Table) -> pa.Table:
    """The first rows, as current versions in scd2."""
    if kind.mode is Mode.SCD1:
        return rows
    time = pa.timestamp("us", "UTC")
    rows = rows.append_column(START_AT, pa.array([BEGAN] * rows.num_rows, time))
    return rows.append_column(END_AT, pa.nulls(rows.num_rows, time))


# -- what they hold --------------------------------------------------------------------------------


def _checked(table: str, kind: Kind) -> str:
    """What a table holds, cheaply: another row or value changes one of these."""
    ended = f'count("{END_AT}")' if kind.mode is Mode.SCD2 else "0"
    return (
        f"SELECT count(*), cast(sum(id % 1000 * (c0 % 1000)) AS bigint), max(c1), {ended} "
        f"FROM {table}"
    )


def _delta_content(path: Path, kind: Kind) -> tuple[Any, ...]:
    builder = QueryBuilder().register("t", DeltaTable(path))
    found = pa.table(builder.execute(_checked("t", kind)))
    return tuple(column[0].as_py() for column in found.columns)


# --------------------------------------------------------------------------------------------------


def contest(name: str) -> dict[str, list[float]]:
    """Seconds of each batch after the first ones, by contestant."""
    kind = KINDS[name]
    makers: dict[str, type[Any]] = {"headrace": Headrace, "merge": DeltaRs, "duckdb": DuckDb}
    if kind.mode is Mode.SCD1:
        makers["dlt"] = Dlt
    seconds: dict[str, list[float]] = {maker: [] for maker in makers}
    with tempfile.TemporaryDirectory() as place:
        files = _files(Path(place), kind)
        tables: dict[str, Contestant] = {
            maker: make(Path(place) / maker, kind, files) for maker, make in makers.items()
        }
        for number in range(WARM_UP + ROUNDS):
            batch = changes(kind, number)
            for maker, table in tables.items():
                if maker != "dlt" or number < WARM_UP + DLT_ROUNDS:
                    seconds[maker].append(report.timed(lambda t=table, b=batch: t.apply(b)))
            if number == WARM_UP + DLT_ROUNDS - 1 and "dlt" in tables:
                _require_same(tables)
                del tables["dlt"]
        _require_same(tables)
    return {maker: taken[WARM_UP:] for maker, taken in seconds.items()}


def _files(folder: Path, kind: Kind) -> list[str]:
    files = []
    for first in range(0, kind.size, ROWS_PER_FILE):
        path = folder / f"{first:010d}.parquet"
        ids = np.arange(first, min(first + ROWS_PER_FILE, kind.size))
        pq.write_table(kind.rows(ids, first), path)
        files.append(str(path))
    return files


def _require_same(tables: Mapping[str, Contestant]) -> None:
    held = {name: table.content() for name, table in tables.items()}
    if len(set(held.values())) > 1:
        raise RuntimeError(f"the tables differ: {held}")


def main() -> None:
    result: dict[str, Any] = {"keys_per_batch": KEYS, "rounds": ROUNDS}
    for name, kind in KINDS.items():
        seconds = report.in_child(contest, name).value
        taken = {maker: median(values) for maker, values in seconds.items()}
        result[name] = {
            "rows": kind.size,
            "columns": len(kind.schema.columns),
            "deletes_per_batch": kind.deletes,
            **{f"{maker}_ms": round(value * 1000, 1) for maker, value in taken.items()},
            "ratio": {
                maker: round(value / taken["headrace"], 2)
                for maker, value in taken.items()
                if maker != "headrace"
            },
        }
    report.write("merges", result)
