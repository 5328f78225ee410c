"""What many tables, many transactions and many connections cost: seconds, CPU, memory, descriptors.

Every step runs in a process of its own. Transactions are counted as they become durable in the
change log, and as their rows become readable in Delta; a backlog is written before the run begins,
the others while it goes on.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

import headrace
from benchmarks import many_tables, report
from benchmarks.project import write_project
from headrace.engine.runner import RunView
from headrace.testing.postgres import EmbeddedPostgres

SIZE: Final = 1000  # tables; the other scenarios keep their proportion to it
CHANGED: Final = 20  # one table in so many, in the step that changes some
CHANGING: Final = 4  # one table in so many, in the scenario in which all change at once
TRANSACTIONS: Final = 100  # for each table
CONNECTIONS: Final = 5  # tables for each idle connection
ROUNDS: Final = 2
ROWS: Final = 300  # for each table, of the one that is copied beside idle connections
LOOK: Final = 0.02  # seconds between two looks at threads and descriptors
PATIENCE: Final = 600.0

CREATE: Final = """
CREATE TABLE {table} (id int PRIMARY KEY, v int, note text);
INSERT INTO {table} SELECT i, 0, md5(i::text) FROM generate_series(1, 100) i;
"""
CHANGE: Final = "UPDATE {table} SET v = v + 1 WHERE id <= 10"

WRITER: Final = """
CREATE TABLE t (id int PRIMARY KEY, v int, note text);
CREATE PROCEDURE write(count int) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. count LOOP
    INSERT INTO t VALUES (i, i, md5(i::text));
    COMMIT;
  END LOOP;
END $$;
"""

BIG: Final = """
CREATE TABLE t (id int PRIMARY KEY, v int, note text);
INSERT INTO t SELECT i, 0, md5(i::text) FROM generate_series(1, %(rows)s) i;
"""
MORE: Final = """
INSERT INTO t SELECT i, 1, md5(i::text) FROM generate_series(%(rows)s + 1, 2 * %(rows)s) i
"""


@dataclass
class Cost:
    """What a step took; threads and descriptors are the most that were seen at once."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    threads: int = 0
    descriptors: int = 0

    def look(self) -> None:
        self.threads = max(self.threads, threading.active_count())
        self.descriptors = max(self.descriptors, len(list(Path("/proc/self/fd").iterdir())))


@contextmanager
def costing() -> Iterator[Cost]:
    """Fills in what the block costs this process."""
    cost, done = Cost(), threading.Event()

    def watch() -> None:
        while not done.wait(LOOK):
            cost.look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, used = time.perf_counter(), _cpu()
    try:
        yield cost
    finally:
        cost.seconds, cost.cpu_s = time.perf_counter() - began, _cpu() - used
        done.set()
        watcher.join()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# -- many tables -----------------------------------------------------------------------------------


def step(path: str, name: str) -> Cost:
    """One command of a project, in this process."""
    project = headrace.load(path)
    commands: Mapping[str, Callable[[], Any]] = {
        "check": project.check,
        "plan": project.plan,
        "status": project.status,
        "run": lambda: project.run(once=True),
    }
    with costing() as cost:
        failed = commands[name]()
    if name == "run" and failed:
        raise RuntimeError(f"{len(failed)} tables failed, the first: {failed[0]}")
    return cost


def measure_tables(tables: int) -> dict[str, Any]:
    """A pipeline of so many tables, from nothing to changes of all of them."""
    with EmbeddedPostgres() as server, tempfile.TemporaryDirectory() as folder:
        names = [sql.Identifier(f"t{n}") for n in range(tables)]
        path = write_project(folder, server.dsn(), "public.*")

        def each(statement: str, chosen: Sequence[sql.Identifier]) -> None:
            with psycopg.connect(server.dsn(), autocommit=True) as session:
                for name in chosen:
                    session.execute(sql.SQL(statement).format(table=name))

        def costs(name: str) -> dict[str, Any]:
            measured = report.in_child(step, str(path), name)
            return _rounded(measured.value, measured.peak_mib)

        each(CREATE, names)
        found = {"check": costs("check"), "plan": costs("plan"), "load": costs("run")}
        found["nothing_to_do"] = costs("run")
        each(CHANGE, names[::CHANGED])
        found["some_changed"] = costs("run")
        each(CHANGE, names)
        found["all_changed"] = costs("run")
        found["status"] = costs("status")
        found["check_again"] = costs("check")
        return {"tables": tables, "changed": len(names[::CHANGED]), "steps": found}


def _rounded(cost: Cost, peak_mib: float) -> dict[str, Any]:
    told = {name: round(value, 2) for name, value in asdict(cost).items()}
    return {**told, "peak_mib": round(peak_mib)}


# -- many transactions -----------------------------------------------------------------------------


def carry(path: str, transactions: int, ready: Any) -> tuple[Cost, float, float]:
    """Run until so many transactions of a row each are applied; what it cost, and the seconds until
    the last was durable in the change log, and readable at the destination."""
    stop, durable, applied = threading.Event(), 0.0, 0.0
    began = time.perf_counter()

    def tick(views: Sequence[RunView]) -> None:
        nonlocal began, durable, applied
        if not ready.is_set() and views[0].capture.progress.connected:
            began = time.perf_counter()
            ready.set()
        if not durable and views[0].capture.progress.transactions >= transactions:
            durable = time.perf_counter() - began
        if not applied and views[0].rows_applied >= transactions:
            applied = time.perf_counter() - began
            stop.set()

    with costing() as cost:
        headrace.load(path).run(stop=stop, on_tick=tick)
    return cost, durable, applied


def measure_transactions(count: int, *, backlog: bool) -> dict[str, Any]:
    """Transactions of one row each, written before the run or while it goes on."""
    with (
        EmbeddedPostgres() as server,
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Manager() as manager,
        psycopg.connect(server.dsn(), autocommit=True) as session,
    ):
        session.execute(WRITER)
        session.execute("SET synchronous_commit = off")  # the disk is not what is measured
        path = write_project(folder, server.dsn(), "public.t")
        headrace.load(path).run(once=True)
        ready, wrote = manager.Event(), 0.0

        def write() -> None:
            nonlocal wrote
            wrote = report.timed(lambda: session.execute("CALL write(%s)", [count]))

        if backlog:
            write()
        log = Path(folder) / "state" / "log" / "source"
        before = _sizes(log)
        measured: list[report.Measured] = []
        arguments = (carry, str(path), count, ready)
        runner = threading.Thread(target=lambda: measured.append(report.in_child(*arguments)))
        runner.start()
        if not ready.wait(PATIENCE):
            raise RuntimeError("the run did not begin")
        if not backlog:
            write()
        runner.join()
        cost, durable, applied = measured[0].value
        sizes = [after - former for after, former in zip(_sizes(log), before, strict=True)]
        commits = len(list((Path(folder) / "lake/public/t/_delta_log").glob("*.json")))
    return {
        "written_per_s": round(count / wrote),
        "durable_per_s": round(count / durable),
        "readable_per_s": round(count / applied),
        "log_commits": sizes[0],
        "log_mib": round(sizes[1] / 2**20, 1),
        "delta_commits": commits,
        "cpu_s": round(cost.cpu_s, 2),
        "threads": cost.threads,
        "descriptors": cost.descriptors,
        "peak_mib": report.peak(measured),
    }


def _sizes(log: Path) -> tuple[int, int]:
    """Manifests, and bytes of all files."""
    files = [path for path in log.rglob("*") if path.is_file()]
    return (
        sum(path.parent.name == "commits" for path in files),
        sum(path.stat().st_size for path in files),
    )


# -- many connections ------------------------------------------------------------------------------


def timed_run(path: str) -> float:
    project = headrace.load(path)
    return report.timed(lambda: project.run(once=True))


def beside(connections: int, rows: int) -> report.Measured:
    """Seconds of a snapshot, slot included, and of catching up, beside so many idle sessions."""
    settings = {"max_connections": str(connections + 20)}
    with (
        EmbeddedPostgres(settings) as server,
        tempfile.TemporaryDirectory() as folder,
        ExitStack() as sessions,
    ):
        for _ in range(connections):
            sessions.enter_context(psycopg.connect(server.dsn(), autocommit=True))
        path = write_project(folder, server.dsn(), "public.t")
        with psycopg.connect(server.dsn(), autocommit=True) as session:
            for statement in filter(str.strip, BIG.split(";")):
                session.execute(statement, {"rows": rows} if "%" in statement else None)
            copied = report.in_child(timed_run, str(path))
            session.execute(MORE, {"rows": rows})
            followed = report.in_child(timed_run, str(path))
    peak = max(copied.peak_mib, followed.peak_mib)
    return report.Measured((copied.value, followed.value), peak)


def measure_connections(connections: int, rows: int) -> dict[str, Any]:
    found = report.interleaved(
        ROUNDS, {"idle": lambda: beside(connections, rows), "none": lambda: beside(0, rows)}
    )
    best = {
        name: [min(run.value[way] for run in runs) for way in (0, 1)]
        for name, runs in found.items()
    }
    return {
        "connections": connections,
        "rows": rows,
        "snapshot_rows_per_s": round(rows / best["idle"][0]),
        "snapshot_rows_per_s_without": round(rows / best["none"][0]),
        "changes_rows_per_s": round(rows / best["idle"][1]),
        "changes_rows_per_s_without": round(rows / best["none"][1]),
        "peak_mib": report.peak(found["idle"]),
    }


def main(size: int = SIZE) -> None:
    count = TRANSACTIONS * size
    result = {
        "many_tables": measure_tables(size),
        "changing_tables": many_tables.measure(size // CHANGING),
        "transactions": {
            "count": count,
            "backlog": measure_transactions(count, backlog=True),
            "live": measure_transactions(count, backlog=False),
        },
        "idle_connections": measure_connections(size // CONNECTIONS, ROWS * size),
    }
    report.write("limits", result, keep=size == SIZE)
