"""A project in a test's folder: its headrace.yaml, its runs, and what must be true afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import yaml
from deltalake import DeltaTable

from headrace.engine.runner import RunView
from headrace.model import Lsn
from headrace.project import Project, TableFailure, load
from headrace.status import TableStatus
from headrace.testing.database import Database
from tables import READERS, difference, source_columns, source_rows

PIPELINE = "shop_to_lake"
PATIENCE = 60.0  # seconds until a wait for a position gives up


@dataclass
class Running:
    """A run that goes on in a thread; waits are for positions, told by its tick."""

    dsn: str
    _views: Sequence[RunView] = ()
    _ticked: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def tick(self, views: Sequence[RunView]) -> None:
        with self._ticked:
            self._views = views
            self._ticked.notify_all()

    def end(self) -> None:
        with self._ticked:
            self._ended = True
            self._ticked.notify_all()

    def wait(self, condition: Callable[[Sequence[RunView]], bool]) -> None:
        """Until `condition` holds of a look at the run, which must not end before."""

        def holds() -> bool:
            assert not self._ended, "the run ended by itself"
            return bool(self._views) and condition(self._views)

        with self._ticked:
            assert self._ticked.wait_for(holds, PATIENCE), "waited in vain"

    def catch_up(self) -> None:
        """Until every table that goes on holds what the source has now."""
        with psycopg.connect(self.dsn) as session:
            row = session.execute("select pg_logical_emit_message(true, '', '')::text").fetchone()
        assert row is not None
        target = Lsn.parse(row[0])
        self.wait(lambda views: bool(views))
        for view in self._views:
            view.capture.reach(target)
        self.wait(
            lambda views: all(m.reached(target) for view in views for m in view.materializations)
        )


def _endpoint(dsn: str) -> dict[str, Any]:
    known = psycopg.conninfo.conninfo_to_dict(dsn)
    names = {"host": "host", "dbname": "database", "user": "user", "password": "password"}
    return {
        "type": "postgres",
        "port": int(known["port"]),
        **{ours: known[theirs] for theirs, ours in names.items() if theirs in known},
    }


@dataclass
class Shop:
    """A database, and a project that carries tables of it to a lake."""

    database: Database
    root: Path
    lake: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    storage_root: str = ""  # of a catalog's new tables

    def __post_init__(self) -> None:
        self.lake = self.lake or str(self.root / "lake")

    @property
    def file(self) -> Path:
        return self.root / "headrace.yaml"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def sql(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return self.database.execute(query, parameters)

    def carry(self, *tables: str | Mapping[str, Any], **more: Any) -> None:
        """Write headrace.yaml with one pipeline; see `declare`."""
        self.declare({PIPELINE: tables}, **more)

    def declare(
        self,
        pipelines: Mapping[str, Sequence[str | Mapping[str, Any]]],
        *,
        state: str = "state",
        source: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Write headrace.yaml; `source` refines its connection, `more` goes into each pipeline."""
        lake: dict[str, Any] = {"type": "delta", "location": self.lake}
        if self.options:
            lake["storage_options"] = dict(self.options)
        if self.storage_root:
            lake["storage_root"] = self.storage_root
        document = {
            "version": 1,
            "state": state,
            "connections": {
                "shop": {**_endpoint(self.database.dsn), **(source or {})},
                "lake": lake,
            },
            "pipelines": {
                name: {"source": "shop", "destination": "lake", "tables": list(tables), **more}
                for name, tables in pipelines.items()
            },
        }
        self.file.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False))

    # -- runs --------------------------------------------------------------------------------------

    @property
    def project(self) -> Project:
        """Loaded anew: nothing but the disk and the source carries over from run to run."""
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
        stop, running, project = threading.Event(), Running(self.database.dsn), self.project
        with ThreadPoolExecutor(1, "run") as pool:
            ended = pool.submit(project.run, pipelines, stop=stop, on_tick=running.tick)
            ended.add_done_callback(lambda _: running.end())
            try:
                yield running
            finally:
                stop.set()
                ended.result(PATIENCE)

    # -- what must be true -------------------------------------------------------------------------

    def location(self, target: str) -> str:
        return f"{self.storage_root or self.lake}/{target.replace('.', '/', 1)}"

    def assert_equal(
        self,
        table: str,
        target: str = "",
        *,
        columns: Sequence[str] = (),
        readers: Sequence[str] = tuple(READERS),
    ) -> None:
        """The Delta table equals its source as a multiset of exact rows, for each reader.

        `table` is a name as SQL spells it; `target` is `schema.name` in the lake.
        """
        columns = columns or source_columns(self.database.dsn, table)
        expected = source_rows(self.database.dsn, table, columns)
        for reader in readers:
            found = READERS[reader](self.location(target or table), columns, self._of_store)
            wrong = difference(expected, found)
            assert not wrong, f"{table} by {reader}: {wrong}"

    @property
    def _of_store(self) -> Mapping[str, str]:
        """The options without those of a catalog."""
        catalog = ("databricks_", "unity_")
        return {k: v for k, v in self.options.items() if not k.startswith(catalog)}

    def version(self, target: str) -> int:
        return DeltaTable(self.location(target), storage_options=dict(self._of_store)).version()

    def status(self, table: str) -> TableStatus:
        (found,) = [t for t in self.project.status().tables if t.table == table]
        return found


def all_loaded(views: Sequence[RunView]) -> bool:
    """Whether every table of a run has its snapshot in the lake."""
    states = [s for view in views for m in view.materializations for s in m.tables.values()]
    return all(state.checkpoint is not None for state in states)
