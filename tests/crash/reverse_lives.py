"""A lake of three tables, each carried to Postgres in its own way, and the deaths of its runs.

`crm.people` is merged and swapped; `crm.feed` takes every change as a row, so that one that came
twice shows; `crm.noted` has a column of the user's own and is changed in place. `crm.mine` is a
table that no pipeline carries.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

import run_project
from lakeside import PIPELINE, Lakeside, by_polars, difference, people
from tables import Row

PATIENCE = 60  # seconds, of which a child lives one or two
PEOPLE, FEED, NOTED = TABLES = ("crm.people", "crm.feed", "crm.noted")

_MINE = """
create schema crm;
create table crm.noted (id bigint primary key, name text, note text default 'mine');
create table crm.mine (id int primary key);
insert into crm.mine select generate_series(1, 5);
create schema headrace_work;
create table headrace_work.mine (id int);
"""
_LEFT = """
select c.relname from pg_class c where c.relkind = 'r'
   and (c.relnamespace = to_regnamespace('headrace_work') and c.relname <> 'mine'
     or c.relnamespace = to_regnamespace('headrace_previous')
    and c.relname not in (select (previous::jsonb) ->> 'table' from headrace.checkpoints
                           where previous is not null))
"""


@dataclass
class Life:
    """A project that is run, killed and run again, under changes that a seed decides."""

    lakeside: Lakeside
    chance: random.Random
    keys: list[int] = field(default_factory=lambda: list(range(1, 21)))
    mine: list[tuple[Any, ...]] = field(default_factory=list)

    def begin(self) -> None:
        """Tables at both ends, and the project; nothing has been carried yet."""
        self.lakeside.sql(_MINE)
        self.mine = self._mine()
        for name in TABLES:
            self.lakeside.source(name).write(people(*self.keys))
        self.lakeside.carry(PEOPLE, {"source": FEED, "mode": "append", "key": ["id"]}, NOTED)

    def change(self) -> None:
        """A version of each kind of change to each table."""
        new = [max(self.keys) + n for n in range(1, 4)]
        other, gone, moved = self.chance.sample(self.keys, 3)
        to = max(new) + 1
        for name in TABLES:
            source = self.lakeside.source(name)
            write_deltalake(source.path, self._rows(name, *new), mode="append")
            source.update(f"id = {other}", name=f"concat(name, '{self.chance.random():.3f}')")
            source.delete(f"id = {gone}")
            source.update(f"id = {moved}", id=str(to))
        self.keys = [*(set(self.keys) - {gone, moved}), *new, to]

    def _rows(self, name: str, *keys: int) -> pa.Table:
        """Columns that the table has got meanwhile are null in them."""
        columns = self.lakeside.source(name).delta.schema().fields
        rows = people(*keys)
        for column in columns[2:]:
            rows = rows.append_column(column.name, pa.nulls(len(keys), pa.string()))
        return rows

    def widen(self) -> None:
        """A new column in each table."""
        for name in TABLES:
            key = max(self.keys) + 1
            rows = self._rows(name, key).append_column("extra", pa.array(["e"]))
            write_deltalake(
                self.lakeside.source(name).path, rows, mode="append", schema_mode="merge"
            )
        self.keys.append(key)

    # -- runs --------------------------------------------------------------------------------------

    @contextmanager
    def child(self, failpoint: str, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """A process that works until it dies; what it says is beside the project."""
        environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
        with self.said.open("ab") as said:
            child = subprocess.Popen(
                [sys.executable, run_project.__file__, self.lakeside.file, *command],
                env=environment,
                stdout=said,
                stderr=said,
            )
            try:
                yield child
            finally:
                child.kill()
                child.wait()

    @property
    def said(self) -> Path:
        return self.lakeside.root / "child.log"

    def die(self, failpoint: str, *command: str) -> None:
        """Run until the failpoint has killed the run."""
        with self.child(failpoint, list(command)) as child:
            try:
                ended = child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                ended = None
        assert ended == -signal.SIGKILL, f"{failpoint} did not fire\n{self.said.read_text()}"
        self.await_release()

    def await_release(self) -> None:
        """Until the server has noticed that the dead process is gone."""
        ours = "select pg_sleep(0.01) from pg_stat_activity where application_name like %s"
        while self.lakeside.sql(ours, [f"headrace {PIPELINE}@%"]):
            pass

    # -- what must be true -------------------------------------------------------------------------

    def versions(self) -> dict[str, int]:
        """Where the destination's tables stand; those that took nothing yet are left out."""
        if self.lakeside.sql("select to_regclass('headrace.checkpoints')") == [(None,)]:
            return {}
        query = (
            "select concat(table_schema, '.', table_name), commit from headrace.checkpoints"
            " where commit is not null"
        )
        return {str(name): int(version) for name, version in self.lakeside.sql(query)}

    def assert_whole(self) -> None:
        """Each table is at a version as a whole, whatever has died (DESIGN §13, 3 and 11)."""
        for name, version in self.versions().items():
            if name != FEED:
                path = self.lakeside.source(name).path
                found = self.lakeside.rows(name, ["id", "name"])
                wrong = difference(by_polars(path, version, ["id", "name"]), found)
                assert not wrong, f"{name} at {version}: {wrong}"
        assert self._mine() == self.mine, "a user's table was touched"

    def catch_up(self) -> None:
        """Run again, to where the source is, and find everything there once."""
        self.lakeside.catch_up()
        self.lakeside.assert_equal(PEOPLE, readers=(by_polars,))
        self.lakeside.assert_appended(FEED)
        self._assert_noted()
        self.assert_whole()
        assert self.lakeside.sql(_LEFT) == [], "leavings of the dead"
        assert self.lakeside.sql("select count(*) from headrace_work.mine") == [(0,)]

    def _assert_noted(self) -> None:
        """Changed in place: the user's own column is there, in every row."""
        columns = [c for c in self.lakeside.columns(NOTED) if c != "note"]
        version = self.lakeside.version(NOTED)
        assert version == self.lakeside.source(NOTED).version
        expected = by_polars(self.lakeside.source(NOTED).path, version, columns)
        wrong = difference(expected, self.lakeside.rows(NOTED, columns))
        assert not wrong, wrong
        assert self.lakeside.sql("select distinct note from crm.noted") == [("mine",)]

    def _mine(self) -> list[Row]:
        return self.lakeside.sql("select id, ctid::text, xmin::text from crm.mine order by 1")


# -- where the runs die ----------------------------------------------------------------------------


def _some_build_is_left(life: Life) -> bool:
    found = "select 1 from pg_class where relnamespace = to_regnamespace('headrace_work')"
    return len(life.lakeside.sql(f"{found} and relkind = 'r' and relname <> 'mine'")) > 0


def _some_table_is_newest(life: Life) -> bool:
    """Committed, though nobody learnt of it."""
    return any(life.lakeside.source(n).version == v for n, v in life.versions().items())


def _some_table_is_behind(life: Life) -> bool:
    """Nothing of the deadly transaction is there."""
    return any(life.lakeside.source(n).version > life.versions().get(n, -1) for n in TABLES)


def _some_table_lacks_the_column(life: Life) -> bool:
    return any("extra" not in life.lakeside.columns(name) for name in TABLES)


def _noted_took_nothing(life: Life) -> bool:
    return NOTED not in life.versions() and life.lakeside.rows(NOTED, ["id"]).total() == 0


def _no_table_is_held(life: Life) -> bool:
    return life.lakeside.sql("select 1 from headrace.checkpoints where held is not null") == []


def _a_state_is_recorded(life: Life) -> bool:
    return bool(life.lakeside.project.status().tables)


def _nothing(life: Life) -> tuple[str, ...]:
    """The tables are to be loaded."""
    return ()


def _changed(life: Life) -> tuple[str, ...]:
    life.catch_up()
    life.change()
    return ()


def _widened(life: Life) -> tuple[str, ...]:
    life.catch_up()
    life.widen()
    return ()


def _built_anew(life: Life) -> tuple[str, ...]:
    life.catch_up()
    assert life.lakeside.project.resync([PEOPLE]) == []
    return ("undo", PEOPLE)


@dataclass(frozen=True)
class Death:
    """What comes before the deadly run and what that run is told, by `scene`; what it leaves; and
    which of the failpoint's hits may be the deadly one."""

    scene: Callable[[Life], tuple[str, ...]]
    leaves: Callable[[Life], bool]
    last: int


# Every failpoint of the destination and of the sync has its outcome here.
DEATHS = {
    "postgres.load": Death(_nothing, _some_build_is_left, 2),
    "postgres.built": Death(_nothing, _some_build_is_left, 2),
    "postgres.swap": Death(_nothing, _some_build_is_left, 2),
    "postgres.swapped": Death(_nothing, _some_table_is_newest, 2),
    "postgres.reconciled": Death(_nothing, _noted_took_nothing, 1),
    "postgres.evolved": Death(_widened, _some_table_lacks_the_column, 3),
    "postgres.applied": Death(_changed, _some_table_is_behind, 3),
    "postgres.committed": Death(_changed, _some_table_is_newest, 3),
    "postgres.undo": Death(_built_anew, _no_table_is_held, 1),
    "sync.loaded": Death(_nothing, _some_table_is_newest, 3),
    "sync.applied": Death(_changed, _some_table_is_newest, 3),
    "sync.recorded": Death(_changed, _a_state_is_recorded, 2),
}
