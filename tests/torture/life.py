"""A life of a source and its copies: random changes, while processes and connections die.

One server, one project with a pipeline of each kind, and episodes, in each of which a process
replicates until it is killed. The seed decides what is done and in which order; how far the
processes have come by then is theirs to decide. What was done is counted, to be told and required.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self

import psycopg
import yaml
from audit import SCHEMA, assert_changes_told, assert_versions_kept, read_notes, watch
from psycopg.conninfo import conninfo_to_dict
from random_load import RandomLoad
from random_statements import last_row
from random_tables import Table, Temper, draw_tables, look

import headrace
import run_project
from headrace.failpoints import FAILPOINTS
from headrace.testing.database import Database
from headrace.testing.postgres import EmbeddedPostgres
from proxy import Proxy
from replicated import SLOT, assert_acknowledged_is_durable, unnamed_in_log
from tables import READERS, difference, source_rows

EPISODES = 5
STEPS = 40  # statements before each fault, and after the last one
SILENCE = 2.5  # seconds: half a second more than connection_timeout
PATIENCE = 60.0  # seconds that a process has to end once it must
START = 15.0  # seconds that a process has to begin; its interpreter takes one or two
LAKES = CURRENT, HISTORY, CHANGES = "current", "history", "changes"  # pipelines, and where to
MIRROR = "mirror"  # the pipeline into Postgres

# Each life has each of these, and some twice, dealt out to its episodes.
FAULTS = ("failpoint", "kill", "server killed", "server restarted", "cut", "silence", "resync")
SERVER = {
    "max_prepared_transactions": "8",
    "logical_decoding_work_mem": "64kB",
    "deadlock_timeout": "50ms",
}
# Where a pipeline from Postgres may die; those that no run here comes by are left out.
DEADLY = tuple(
    name for name in FAILPOINTS if not name.startswith(("sync.", "postgres.undo", "index."))
)
# How a process may have ended by the end of its episode: not at all, or told to, or with a server
# that was away when it began, or killed.
ENDINGS = (None, 0, run_project.AWAY, -signal.SIGKILL)
# Where columns changed faster than we looked, once while a large transaction came; and where a
# table was rewritten since one was added: its catalog forgets the constant then, that rows from
# before have.
UNTOLD = "Postgres does not tell which of them"
REPLACED = "a large transaction replaced columns by others"
FORGOTTEN = "the stream does not tell what older rows have"
# Every run comes by these, over and over.
EVERYWHERE = ("capture.received", "log.file_written", "log.manifest_put", "capture.acknowledged")


@dataclass(frozen=True)
class Episode:
    """What happens in the life of one process: faults, some statements of the source apart."""

    faults: tuple[str, ...]
    failpoint: str
    linger: float  # seconds that it has at the end, to come to more than its capture
    kindly: bool  # whether it is asked to end, unless it died

    @classmethod
    def draw(cls, chance: Random, faults: Sequence[str]) -> Self:
        sure = "failpoint" in faults
        name, hit = chance.choice(EVERYWHERE if sure else DEADLY), chance.randint(1, 6)
        armed = sure or chance.random() < 0.5
        return cls(
            tuple(sorted(faults, key=lambda fault: fault != "failpoint")),
            f"{name}=kill@{min(hit, 2) if sure else hit}" if armed else "",
            chance.choice((0.0, 0.5, 2.0, 4.0)),
            chance.random() < 0.3,
        )


@dataclass
class Life:
    """Everything that a seed decides; `counts` tells what came to pass."""

    seed: int
    folder: Path
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)
        self.tables = draw_tables(self.chance)
        faults = [*FAULTS, *self.chance.choices(FAULTS, k=2)]
        self.chance.shuffle(faults)
        dealt = [faults[number::EPISODES] for number in range(EPISODES)]
        self.episodes = [Episode.draw(self.chance, hand) for hand in dealt]
        self.resynced: set[str] = set()
        self.killed: set[int] = set()  # processes, in the midst of an episode

    def live(self) -> None:
        """All episodes, and what must be true then."""
        with ExitStack() as stack:
            self.server = stack.enter_context(EmbeddedPostgres(SERVER, fast=True))
            self.database = Database("postgres", self.server.dsn())
            self.database.execute("create database mirror")
            self.proxy = stack.enter_context(Proxy(("127.0.0.1", self.server.port)))
            self._begin()
            with RandomLoad(self.database, self.tables, Random(self.chance.random())) as load:
                load.steps(STEPS)
                for episode in self.episodes:
                    self._pass_through(episode, load)
                load.rest()
            self._end()

    # -- the project -------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.database.execute(SCHEMA)
        for table in self.tables:
            self.database.execute(table.create())
            if table.temper is not Temper.ROUGH:
                self.database.execute(watch(table))
        names = ", ".join(table.sql_name for table in self.tables)
        root = "with (publish_via_partition_root = true)"
        self.database.execute(f"create publication {SLOT} for table {names} {root}")
        # While nobody alters a table: a decoder that begins then may lose its way.
        self.database.execute(f"select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")
        self.project.write_text(yaml.safe_dump(self._settings()))

    @property
    def project(self) -> Path:
        return self.folder / "headrace.yaml"

    def _settings(self) -> dict[str, Any]:
        given = conninfo_to_dict(self.server.dsn())
        place = {
            "type": "postgres",
            **{name: given[name] for name in ("user", "password")},
            "host": "127.0.0.1",
            "port": self.proxy.port,
            "connection_timeout": "2s",
        }
        ranges = {"ranges_above": self.chance.choice(("50kB", "4GiB"))}
        return {
            "version": 1,
            "state": "./state",
            "connections": {
                "shop": {**place, "database": "postgres", "snapshots": ranges},
                MIRROR: {**place, "database": MIRROR},
                **{lake: {"type": "delta", "location": f"./{lake}"} for lake in LAKES},
            },
            "pipelines": {name: self._pipeline(name) for name in (*LAKES, MIRROR)},
        }

    def _pipeline(self, name: str) -> dict[str, Any]:
        mode = {HISTORY: "scd2", CHANGES: "append"}.get(name, "scd1")
        tables = [{"source": f"public.{t.name}", "mode": mode} for t in self.carried(name)]
        return {"source": "shop", "destination": name, "tables": tables}

    def carried(self, pipeline: str) -> list[Table]:
        """Tables of a pipeline: of each those whose changes it can follow, or at least copy."""
        if pipeline == MIRROR:
            return [table for table in self.tables if table.temper is Temper.CALM]
        rough = pipeline == CURRENT
        tables = [table for table in self.tables if rough or table.temper is not Temper.ROUGH]
        return [table for table in tables if table.has_key or pipeline != HISTORY]

    # -- episodes ----------------------------------------------------------------------------------

    def _pass_through(self, episode: Episode, load: RandomLoad) -> None:
        self.proxy.heal()
        with ExitStack() as stack:
            child = self._started(episode.failpoint, stack)
            if child.poll() == run_project.AWAY:  # a lock, maybe, or the end of a connection
                load.rest()
                child = self._started(episode.failpoint, stack)
            for fault in episode.faults:
                load.steps(self.chance.randint(STEPS // 4, STEPS))
                self._inflict(fault, child, load, stack)
            load.steps(STEPS)
            with suppress(subprocess.TimeoutExpired):
                child.wait(episode.linger)
            self._note_streamed()
            if episode.kindly and child.poll() is None:
                child.send_signal(signal.SIGTERM)
                child.wait(PATIENCE)
        assert_acknowledged_is_durable(self.database, self.folder)

    @contextmanager
    def _child(self, failpoint: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process that replicates until the end of the block; it dies, or is killed."""
        environment = {
            **os.environ,
            "HEADRACE_FAILPOINT": failpoint,
            run_project.COMMIT_BYTES: "30000",
            run_project.PART_ROWS: "200",
        }
        said = self.folder / "child.log"
        with said.open("ab") as log:
            log.write(f"-- {failpoint} {command}\n".encode())
            log.flush()
            child = subprocess.Popen(
                [sys.executable, run_project.__file__, self.project, *command],
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            yield child
        finally:
            died = child.poll()
            child.kill()
            child.wait()
        by_itself = died == -signal.SIGKILL and child.pid not in self.killed
        self.counts["killed at a failpoint"] += by_itself
        self.counts["killed"] += died is None
        assert died in ENDINGS, f"ended by itself: {died}\n{said.read_text()[-4000:]}"

    def _started(self, failpoint: str, stack: ExitStack) -> subprocess.Popen[bytes]:
        """A process that streams, has died of something, or has had time enough."""
        child = stack.enter_context(self._child(failpoint))
        active = "select pg_sleep(0.02) from pg_replication_slots where slot_name = %s and active"
        deadline = time.monotonic() + START
        with self.database.connect() as session:
            while child.poll() is None and time.monotonic() < deadline:
                if session.execute(active, [SLOT]).fetchall():
                    break
                session.execute("select pg_sleep(0.02)")
        return child

    def _inflict(
        self, fault: str, child: subprocess.Popen[bytes], load: RandomLoad, stack: ExitStack
    ) -> None:
        self.counts[fault] += 1
        self._note_streamed()
        if fault == "failpoint":
            with suppress(subprocess.TimeoutExpired):
                child.wait(PATIENCE)
        elif fault == "kill":
            self.killed.add(child.pid)
            child.kill()
        elif fault == "server killed":
            self.server.kill()
            load.steps(3)  # nobody answers
            self.server.start()
        elif fault == "server restarted":
            self.server.restart("immediate" if self.chance.random() < 0.5 else "fast")
        elif fault == "cut":
            self.proxy.cut()
            self.proxy.cut_after(self.chance.randint(1, 300_000))
        elif fault == "silence":
            self.proxy.swallow()
            load.steps(10)
            with suppress(subprocess.TimeoutExpired):
                child.wait(SILENCE)
            self.proxy.heal()
        elif fault == "resync":
            table = self.chance.choice(self.tables)
            self.resynced.add(table.name)
            stack.enter_context(self._child("", "resync", f"public.{table.name}"))

    def _note_streamed(self) -> None:
        """Count what the server has sent before its commit since it was asked last."""
        away = (psycopg.OperationalError, psycopg.errors.UndefinedTable)  # 13 has no such view
        with suppress(*away), self.database.connect() as session:
            told = "select stream_txns from pg_stat_replication_slots where slot_name = %s"
            for (count,) in session.execute(told, [SLOT]).fetchall():
                self.counts["streamed"] = max(self.counts["streamed"], int(count))

    # -- the end -----------------------------------------------------------------------------------

    def _end(self) -> None:
        with self.database.connect() as session:
            for table in self.tables:
                session.execute(last_row(look(session, table)).encode())
            kinds = session.execute("select kind, count(*) from audit.ddl group by 1").fetchall()
        self.counts["definitions"] += sum(count for _, count in kinds)
        self._catch_up()
        for table in self.tables:
            self._compare(table)
        for pipeline in (CURRENT, HISTORY, MIRROR):
            wrong = [v for v in headrace.load(self.project).verify(pipeline) if not v.equal]
            assert not wrong, wrong
        assert_acknowledged_is_durable(self.database, self.folder)
        assert unnamed_in_log(self.folder) == set()

    def _catch_up(self) -> None:
        """Rough tables may have stopped, and a resync brings them back; no other has, but where
        nobody can know what its columns are."""
        failures = headrace.load(self.project).run(once=True)
        told = {failure.table.name: str(failure.error) for failure in failures}
        may = {table.name for table in self.tables if table.temper is Temper.ROUGH}
        forgotten = "select relation from audit.ddl where kind = 'widen'"
        rewritten = {name for (name,) in self.database.execute(forgotten)}
        unknown = {n for n in told if UNTOLD in told[n] or REPLACED in told[n]}
        may |= unknown | {n for n in told if FORGOTTEN in told[n] and n in rewritten}
        assert told.keys() <= may, (told, self._definitions())
        self.counts["stopped"] += len(told)
        self.resynced |= told.keys()
        if told:
            names = [f"public.{name}" for name in told]
            assert headrace.load(self.project).resync(names) == []

    def _definitions(self) -> list[tuple[Any, ...]]:
        """What became of the tables' columns, to be told where something is wrong."""
        return self.database.execute("select * from audit.ddl order by seq")

    def _compare(self, table: Table) -> None:
        if table in self.carried(CURRENT):
            self._assert_equal(table)
        if table.temper is Temper.ROUGH:
            return
        notes = read_notes(self.database, table)
        assert notes.changes
        if table in self.carried(HISTORY):
            anew = table.name in self.resynced
            assert_versions_kept(notes, self._location(HISTORY, table), copied_anew=anew)
        assert_changes_told(notes, self._location(CHANGES, table))

    def _location(self, lake: str, table: Table) -> str:
        return str(self.folder / lake / "public" / table.name)

    def _assert_equal(self, table: Table) -> None:
        with self.database.connect() as session:
            columns: Sequence[str] = [column.name for column in look(session, table).columns]
        expected = source_rows(self.database.dsn, table.sql_name, columns)
        reader = self.chance.choice(sorted(READERS))
        held = READERS[reader](self._location(CURRENT, table), columns, None)
        assert not difference(expected, held), f"{table}: {reader}: {difference(expected, held)}"
        if table in self.carried(MIRROR):
            held = source_rows(self.server.dsn(MIRROR), table.sql_name, columns)
            assert not difference(expected, held), f"{table}: {difference(expected, held)}"
