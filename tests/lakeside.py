"""Delta tables and a Postgres database, and a project that carries the ones into the other.

What must be true is read by others: the tables by Polars, deltalake and DuckDB at the very version
that the destination says it holds, the destination by psycopg. Whole tables are compared.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pyarrow as pa
import yaml
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from psycopg import sql

from headrace.engine.sync_state import SyncState, SyncView
from headrace.model import TableId
from headrace.model.feed import CHANGE_TYPE, COMMIT_VERSION
from headrace.project import Project, TableFailure, View, load
from headrace.status import TableStatus
from headrace.testing.database import Database
from headrace.testing.duckdb_delta import duckdb_with_delta
from tables import Row, multiset

PIPELINE = "lake_to_shop"
FEED_ON = {"delta.enableChangeDataFeed": "true"}
PATIENCE = 30.0  # seconds; only a test that fails waits as long

Table = Mapping[str, Any]


def difference(expected: Counter[Row], found: Counter[Row]) -> str:
    missing, more = (expected - found).most_common(3), (found - expected).most_common(3)
    return f"missing {missing}, too many {more}" if missing or more else ""


# -- the lake --------------------------------------------------------------------------------------


def by_polars(path: Path, version: int, columns: Sequence[str]) -> Counter[Row]:
    frame = pl.scan_delta(str(path), version=version)
    return multiset(frame.select(columns).collect().iter_rows())


def by_deltalake(path: Path, version: int, columns: Sequence[str]) -> Counter[Row]:
    table = DeltaTable(path, version=version)
    found = pa.table(QueryBuilder().register("t", table).execute("select * from t"))
    return multiset(zip(*[found.column(name).to_pylist() for name in columns], strict=True))


def by_duckdb(path: Path, version: int, columns: Sequence[str]) -> Counter[Row]:
    with duckdb_with_delta() as connection:
        query = "select * from delta_scan($1, version := $2)"
        found = connection.execute(query, [str(path), version]).to_arrow_table()
    return multiset(zip(*[found.column(name).to_pylist() for name in columns], strict=True))


READERS = (by_polars, by_deltalake, by_duckdb)


def people(*ids: int, name: str = "n") -> pa.Table:
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "name": pa.array([f"{name}{i}" for i in ids], pa.string()),
        }
    )


@dataclass(frozen=True)
class Source:
    """One Delta table, changed as its owners change it."""

    path: Path

    @property
    def delta(self) -> DeltaTable:
        return DeltaTable(self.path)

    @property
    def version(self) -> int:
        return self.delta.version()

    def write(self, rows: pa.Table, mode: Any = "append", **more: Any) -> None:
        """The first rows make the table, with its feed on unless told otherwise."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            more = {"configuration": FEED_ON, **more}
        write_deltalake(self.path, rows, mode=mode, **more)

    def merge(self, rows: pa.Table, on: str = "id") -> None:
        """Update what matches, insert the rest."""
        merger = self.delta.merge(rows, f"s.{on} = t.{on}", source_alias="s", target_alias="t")
        merger.when_matched_update_all().when_not_matched_insert_all().execute()

    def update(self, where: str, **updates: str) -> None:
        self.delta.update(predicate=where, updates=updates)

    def delete(self, where: str | None = None) -> None:
        self.delta.delete(where)

    def log(self, version: int) -> Path:
        return self.path / "_delta_log" / f"{version:020d}.json"


# -- a run that goes on ----------------------------------------------------------------------------


@dataclass
class Running:
    """A run in a thread; waits are for what its tick shows."""

    _views: Sequence[View] = ()
    _ticked: threading.Condition = field(default_factory=threading.Condition)
    _ended: Future[list[TableFailure]] | None = None

    def tick(self, views: Sequence[View]) -> None:
        with self._ticked:
            self._views = views
            self._ticked.notify_all()

    def end(self, ended: Future[list[TableFailure]]) -> None:
        with self._ticked:
            self._ended = ended
            self._ticked.notify_all()

    def failures(self) -> list[TableFailure]:
        """Wait until the run ends by itself; the tables that failed."""
        with self._ticked:
            assert self._ticked.wait_for(lambda: self._ended is not None, PATIENCE), "it goes on"
        assert self._ended is not None
        return self._ended.result()

    @property
    def states(self) -> dict[TableId, SyncState]:
        return {
            name: state
            for view in self._views
            if isinstance(view, SyncView)
            for name, state in view.tables.items()
        }

    def wait(self, condition: Callable[[dict[TableId, SyncState]], bool]) -> None:
        """Until `condition` holds of the tables' states; the run must not end before."""

        def holds() -> bool:
            assert self._ended is None, "the run ended by itself"
            return bool(self.states) and condition(self.states)

        with self._ticked:
            assert self._ticked.wait_for(holds, PATIENCE), f"waited in vain: {self.states}"

    def reach(self, table: str, version: int) -> None:
        """Until a table stands at a version."""
        name = TableId.parse(table)
        self.wait(lambda states: states[name].caught_up and (states[name].version or 0) >= version)


# -- a project -------------------------------------------------------------------------------------


def endpoint(dsn: str) -> dict[str, Any]:
    known = psycopg.conninfo.conninfo_to_dict(dsn)
    names = {"host": "host", "dbname": "database", "user": "user", "password": "password"}
    return {
        "type": "postgres",
        "port": int(known["port"]),
        **{ours: known[theirs] for theirs, ours in names.items() if theirs in known},
    }


@dataclass
class Lakeside:
    """A lake in the test's folder, a database, and headrace.yaml between them."""

    database: Database
    root: Path

    @property
    def file(self) -> Path:
        return self.root / "headrace.yaml"

    @property
    def lake(self) -> Path:
        return self.root / "lake"

    def source(self, name: str) -> Source:
        schema, _, table = name.partition(".")
        return Source(self.lake / schema / table)

    def sql(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return self.database.execute(query, parameters)

    def carry(self, *tables: str | Table, shop: Table | None = None, **more: Any) -> None:
        """Write headrace.yaml with one pipeline; `shop` refines the destination's connection,
        `more` goes into the pipeline. A bare name is a table with the key `id`."""
        self.declare({PIPELINE: tables}, shop=shop, **more)

    def declare(
        self,
        pipelines: Mapping[str, Sequence[str | Table]],
        *,
        shop: Table | None = None,
        **more: Any,
    ) -> None:
        document = {
            "version": 1,
            "state": "state",
            "connections": {
                "lake": {"type": "delta", "location": str(self.lake)},
                "shop": {**endpoint(self.database.dsn), **(shop or {})},
            },
            "pipelines": {
                name: {
                    "source": "lake",
                    "destination": "shop",
                    "poll": "100ms",
                    "tables": [
                        {"source": t, "key": ["id"]} if isinstance(t, str) else dict(t)
                        for t in tables
                    ],
                    **more,
                }
                for name, tables in pipelines.items()
            },
        }
        self.file.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False))

    # -- runs --------------------------------------------------------------------------------------

    @property
    def project(self) -> Project:
        """Loaded anew: nothing but the disk and the destination carries over from run to run."""
        return load(self.file)

    def run(self, *pipelines: str) -> list[TableFailure]:
        """Run until caught up; gives the tables that stopped."""
        return self.project.run(pipelines, once=True)

    def catch_up(self, *pipelines: str) -> None:
        """Run until caught up, and no table may stop."""
        failures = self.run(*pipelines)
        assert not failures, [str(f.error) for f in failures]

    @contextmanager
    def running(self, *pipelines: str) -> Iterator[Running]:
        """Run in a thread for the length of the block; what the run raises comes up at its end."""
        stop, running, project = threading.Event(), Running(), self.project
        with ThreadPoolExecutor(1, "run") as pool:
            ended = pool.submit(project.run, pipelines, stop=stop, on_tick=running.tick)
            ended.add_done_callback(running.end)
            try:
                yield running
            finally:
                stop.set()
                ended.result(PATIENCE)

    # -- what must be true -------------------------------------------------------------------------

    def rows(self, target: str, columns: Sequence[str]) -> Counter[Row]:
        schema, _, name = target.partition(".")
        query = sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(schema, name)
        )
        with self.database.connect() as connection:
            return multiset(connection.execute(query).fetchall())

    def columns(self, target: str) -> list[str]:
        schema, _, name = target.partition(".")
        query = sql.SQL("SELECT * FROM {} LIMIT 0").format(sql.Identifier(schema, name))
        with self.database.connect() as connection:
            return [column.name for column in connection.execute(query).description or ()]

    def version(self, target: str) -> int:
        """The version of its source that a table holds."""
        schema, _, name = target.partition(".")
        query = "select commit from headrace.checkpoints where (table_schema, table_name) = (%s,%s)"
        ((version,),) = self.sql(query, [schema, name])
        assert isinstance(version, int)
        return version

    def assert_equal(
        self, source: str, target: str = "", *, behind: int = 0, readers: Sequence[Any] = READERS
    ) -> None:
        """The table equals its source at the version that it says it holds, which is the newest
        but `behind`, row by row, for each reader of the source."""
        target = target or source
        version = self.version(target)
        assert version == self.source(source).version - behind
        columns = [f.name for f in DeltaTable(self.source(source).path, version).schema().fields]
        assert set(self.columns(target)) == set(columns)
        found = self.rows(target, columns)
        for reader in readers:
            expected = reader(self.source(source).path, version, columns)
            wrong = difference(expected, found)
            assert not wrong, f"{target} by {reader.__name__}: {wrong}"

    def assert_appended(self, source: str, target: str = "") -> None:
        """The table holds the rows of the version that it was loaded at, and every change since,
        each once, as deltalake reads them from the feed."""
        target = target or source
        table, version = self.source(source), self.version(target)
        assert version == table.version
        columns = [f.name for f in table.delta.schema().fields]
        wanted = [*columns, CHANGE_TYPE, COMMIT_VERSION]
        found = self.rows(target, wanted)
        loaded = min((row[-1] for row in found), default=version)
        had = {f.name for f in DeltaTable(table.path, loaded).schema().fields}
        first = pl.scan_delta(str(table.path), version=loaded).with_columns(
            *(pl.lit(None).alias(column) for column in columns if column not in had)
        )
        rows = first.select(columns).collect().iter_rows()
        expected = multiset((*row, "insert", loaded) for row in rows)
        if version > loaded:
            feed = pa.table(table.delta.load_cdf(loaded + 1, version))
            told = [feed.column(name).to_pylist() for name in wanted]
            expected += multiset(zip(*told, strict=True))
        wrong = difference(expected, found)
        assert not wrong, f"{target}: {wrong}"

    def status(self, table: str) -> TableStatus:
        (found,) = [t for t in self.project.status().tables if t.table == table]
        return found

    def notice(self, table: str) -> str:
        """What the last run said about a table; empty if nothing."""
        return self.status(table).notice or ""
