"""A project that carries tables from one Postgres database to another, and what must be true then.

What a table holds is read by psycopg on both sides as each value's own text, which is exact; what
type it has, from the catalogs. Neither is read by the code under test.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from headrace.engine.runner import RunView
from headrace.model import Lsn
from headrace.project import Project, TableFailure, load
from headrace.status import TableStatus
from headrace.testing.database import Database

PIPELINE = "shop_to_mirror"
PATIENCE = 60.0  # seconds until a wait gives up; only a test that fails waits as long

Row = tuple[Any, ...]
Entry = str | Mapping[str, Any]

# Values are told apart by their texts, as a session prints them in which nothing is shortened.
_EXACT = (
    "-c DateStyle=ISO -c TimeZone=UTC -c IntervalStyle=iso_8601 -c extra_float_digits=3"
    " -c bytea_output=hex"
)

# Publications have stored generated columns since 18, and virtual ones never.
_COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
   AND (attgenerated = ''
        OR attgenerated = 's' AND current_setting('server_version_num')::int >= 180000)
 ORDER BY attnum
"""


@dataclass
class Running:
    """A run that goes on in a thread; waits are for what its tick tells."""

    source: Database
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

    def wait(self, condition: Callable[[RunView], bool]) -> None:
        """Until `condition` holds of a look at the run, which must not end before."""

        def holds() -> bool:
            assert not self._ended, "the run ended by itself"
            return bool(self._views) and condition(self._views[0])

        with self._ticked:
            assert self._ticked.wait_for(holds, PATIENCE), "waited in vain"

    def wait_for_table(self, table: str, condition: Callable[[Any], bool]) -> None:
        """Until the state of a source's table fulfils `condition` in some pipeline."""
        self.wait(
            lambda view: any(
                condition(state)
                for m in view.materializations
                for name, state in m.tables.items()
                if str(name) == table
            )
        )

    def catch_up(self) -> None:
        """Until every table that goes on holds what the source has now."""
        ((now,),) = self.source.execute("select pg_logical_emit_message(true, '', '')::text")
        target = Lsn.parse(now)
        self.wait(lambda view: view.capture.progress.connected)
        self._views[0].capture.reach(target)
        self.wait(lambda view: all(m.reached(target) for m in view.materializations))


def endpoint(dsn: str, **changes: Any) -> dict[str, Any]:
    """A connection of headrace.yaml."""
    given = conninfo_to_dict(dsn)
    parts = {name: given[name] for name in ("host", "user", "password") if name in given}
    place = {"type": "postgres", **parts, "port": int(given["port"]), "database": given["dbname"]}
    return {**place, **changes}


@dataclass
class Mirror:
    """A source, a destination, and the project between them."""

    source: Database
    target: Database
    root: Path

    @property
    def file(self) -> Path:
        return self.root / "headrace.yaml"

    def sql(self, query: str, parameters: Any = None) -> list[Row]:
        """At the source."""
        return self.source.execute(query, parameters)

    def at_target(self, query: str, parameters: Any = None) -> list[Row]:
        return self.target.execute(query, parameters)

    def carry(self, *tables: Entry, **more: Any) -> None:
        """Write headrace.yaml with one pipeline; see `declare`."""
        self.declare({PIPELINE: tables}, **more)

    def declare(
        self,
        pipelines: Mapping[str, Sequence[Entry]],
        *,
        connections: Mapping[str, Any] | None = None,
        to: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        """Write headrace.yaml; `to` names a pipeline's destination where that is not the mirror,
        `more` goes into each pipeline."""
        document = {
            "version": 1,
            "state": "state",
            "connections": {
                "shop": endpoint(self.source.dsn),
                "mirror": endpoint(self.target.dsn),
                **(connections or {}),
            },
            "pipelines": {
                name: {
                    "source": "shop",
                    "destination": (to or {}).get(name, "mirror"),
                    "tables": list(tables),
                    **more,
                }
                for name, tables in pipelines.items()
            },
        }
        self.file.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False))

    # -- runs --------------------------------------------------------------------------------------

    @property
    def project(self) -> Project:
        """Loaded anew: nothing but the disk and the databases carries over from run to run."""
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
        stop, running, project = threading.Event(), Running(self.source), self.project
        with ThreadPoolExecutor(1, "run") as pool:
            ended = pool.submit(project.run, pipelines, stop=stop, on_tick=running.tick)
            ended.add_done_callback(lambda _: running.end())
            try:
                yield running
            finally:
                stop.set()
                ended.result(PATIENCE)

    # -- what must be true -------------------------------------------------------------------------

    def assert_equal(self, *tables: str, target: str = "", target_database: Any = None) -> None:
        """Both sides hold the same rows, as multisets of exact values, of the same types.

        A table is named as SQL spells it; `target` is its name at the destination, if another.
        """
        for table in tables:
            there, name = target_database or self.target, target or table
            columns = columns_of(self.source, table)
            assert columns_of(there, name) == columns, table
            wrong = difference(rows_of(self.source, table, columns), rows_of(there, name, columns))
            assert not wrong, f"{table}: {wrong}"

    def status(self, table: str) -> TableStatus:
        (found,) = [t for t in self.project.status().tables if t.table == table]
        return found


def columns_of(database: Database, table: str) -> dict[str, str]:
    """Names and types, in no order; without generated columns that are not published."""
    return dict(database.execute(_COLUMNS, (table,)))


def rows_of(database: Database, table: str, columns: Mapping[str, str]) -> Counter[Row]:
    texts = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(c)) for c in sorted(columns)
    )
    with psycopg.connect(database.dsn, options=_EXACT) as connection:
        query = sql.SQL("SELECT {} FROM {}").format(texts, sql.SQL(table))  # type: ignore[arg-type]
        return Counter(connection.execute(query).fetchall())


def difference(expected: Counter[Row], found: Counter[Row]) -> str:
    """What is missing and what is extra, shortened; empty if nothing is."""
    sides = (("missing", expected - found), ("extra", found - expected))
    return "; ".join(
        f"{side} {rows.total()}: {list(rows)[:3]}"[:1500] for side, rows in sides if rows
    )
