"""Many tables at once, that change at 10,000 rows a second in all: lag, CPU, memory (`limits`).

A row's lag is from its transaction's last statement to the Delta commit that holds it, told
afterwards by the row itself and by when the commit's file was made, so that nothing is watched
while it runs.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.compute as pc
import pyarrow.parquet as pq

import headrace
from benchmarks import report
from benchmarks.project import write_project
from headrace.testing.postgres import EmbeddedPostgres

ROWS_PER_SECOND = 10_000
ROWS_PER_TABLE = 10  # of one transaction, in two tables
SECONDS = 60
WARM_UP = 15  # seconds that are not counted
LOOKED_AT = 25  # tables whose rows are read afterwards

CREATE = """
CREATE TABLE t{n} (id int PRIMARY KEY, at timestamptz, v int, note text);
INSERT INTO t{n} SELECT i, now(), 0, md5(i::text) FROM generate_series(1, 1000) i;
"""
CHANGE = """
INSERT INTO t{table} SELECT id, clock_timestamp(), {n}, 'changed'
FROM generate_series({first}, {last}) id
ON CONFLICT (id) DO UPDATE SET at = excluded.at, v = excluded.v, note = excluded.note;
"""


def run_pipeline(path: str, ready: Any, quit_: Any) -> float:
    """Load, then run until told to stop; gives the CPU seconds of what came after the load."""
    project, stop = headrace.load(path), threading.Event()
    project.run(once=True)
    runner = threading.Thread(target=project.run, kwargs={"stop": stop})
    runner.start()
    before = _cpu()
    ready.set()
    quit_.wait()
    used = _cpu() - before
    stop.set()
    runner.join()
    return used


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def write_rows(dsn: str, tables: int) -> int:
    """Transactions at an even pace; gives the rows that were written."""
    pause = 2 * ROWS_PER_TABLE / ROWS_PER_SECOND
    with psycopg.connect(dsn, autocommit=True) as session:
        start = time.time()
        for n in range(round(SECONDS / pause)):
            time.sleep(max(0.0, start + n * pause - time.time()))
            first = n * 37 % 3000 + 1
            changes = (
                CHANGE.format(table=t, n=n, first=first, last=first + ROWS_PER_TABLE - 1)
                for t in (2 * n % tables, (2 * n + 1) % tables)
            )
            session.execute("BEGIN;" + "".join(changes) + "COMMIT")
            if time.time() - start > 2 * SECONDS:
                break
    return 2 * ROWS_PER_TABLE * (n + 1)


def lags(table: Path, since: float) -> list[float]:
    """Of each row that a commit brought after `since`, in seconds."""
    found: list[float] = []
    for commit in sorted((table / "_delta_log").glob("*.json")):
        readable = commit.stat().st_mtime
        for line in commit.read_text().splitlines():
            add = json.loads(line).get("add")
            ours = add and add["dataChange"] and not add.get("deletionVector")
            if ours and readable > since:
                written = pq.read_table(table / add["path"], columns=["at"]).column(0)
                at = pc.cast(written, "int64").to_numpy() / 1e6
                found += [readable - each for each in at if each > since]
    return found


def measure(tables: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with (
        EmbeddedPostgres() as server,
        tempfile.TemporaryDirectory() as folder,
        context.Manager() as manager,
    ):
        with psycopg.connect(server.dsn(), autocommit=True) as session:
            for n in range(tables):
                session.execute(CREATE.format(n=n))
        path = write_project(folder, server.dsn(), "public.*")
        ready, quit_ = manager.Event(), manager.Event()
        measured: list[report.Measured] = []
        arguments = (run_pipeline, str(path), ready, quit_)
        runner = threading.Thread(target=lambda: measured.append(report.in_child(*arguments)))
        runner.start()
        while not ready.wait(1.0):
            if not runner.is_alive():
                raise RuntimeError("the pipeline ended before it was loaded")
        began = time.time()
        rows = write_rows(server.dsn(), tables)
        took = time.time() - began
        quit_.set()
        runner.join()
        lake = Path(folder) / "lake" / "public"
        commits = sum(len(list((lake / f"t{n}/_delta_log").glob("*.json"))) for n in range(tables))
        looked_at = range(0, tables, max(tables // LOOKED_AT, 1))
        delays = [lag for n in looked_at for lag in lags(lake / f"t{n}", began + WARM_UP)]
    return {
        "tables": tables,
        "rows_per_s": round(rows / took),
        "seconds": round(took),
        "rows_looked_at": len(delays),
        "p50_ms": round(report.percentile(delays, 0.5) * 1000),
        "p99_ms": round(report.percentile(delays, 0.99) * 1000),
        "commits_per_s": round((commits - tables) / took),
        "cpu_cores": round(measured[0].value / took, 2),
        "peak_mib": report.peak(measured),
    }
