"""Latency: from a commit in Postgres to the row readable in Delta on local disk, at two rates."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq

import headrace
from benchmarks import report
from benchmarks.project import write_project
from headrace.testing.postgres import EmbeddedPostgres

RATES = (100, 1000)  # rows a second, each in a transaction of its own
SECONDS = 10

SETUP = "CREATE TABLE ticks (id bigint PRIMARY KEY, note text)"


def run_pipeline(path: str, ready: Any, quit_: Any) -> float:
    """Run the pipeline until told to stop."""
    stop = threading.Event()
    project = headrace.load(path)
    project.run(once=True)
    runner = threading.Thread(target=project.run, kwargs={"stop": stop})
    runner.start()
    ready.set()
    quit_.wait()
    stop.set()
    runner.join()
    return 0.0


def watch(table: str, last: int, seen: Any) -> float:
    """Note when each id became readable: when the Delta commit that adds its file came to be."""
    log, version, times = Path(table) / "_delta_log", 0, {}
    while last not in times:
        path = log / f"{version:020d}.json"
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            time.sleep(0.002)
            continue
        now = time.time()
        for line in lines:
            added = json.loads(line).get("add")
            if added and added["dataChange"]:
                ids = pq.read_table(Path(table) / added["path"], columns=["id"]).column(0)
                times.update({i: times.get(i, now) for i in ids.to_pylist()})
        version += 1
    seen.update(times)
    return 0.0


def write_ticks(dsn: str, rate: int) -> dict[int, float]:
    """When each row's commit was confirmed, by id."""
    committed = {}
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("TRUNCATE ticks")
        start = time.time()
        for n in range(rate * SECONDS):
            time.sleep(max(0.0, start + n / rate - time.time()))
            session.execute("INSERT INTO ticks VALUES (%s, 'tick')", (n,))
            committed[n] = time.time()
    return committed


def measure(rate: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with (
        EmbeddedPostgres() as server,
        tempfile.TemporaryDirectory() as folder,
        context.Manager() as manager,
    ):
        with psycopg.connect(server.dsn(), autocommit=True) as session:
            session.execute(SETUP)
        path = write_project(folder, server.dsn(), "public.ticks")
        ready, quit_, seen = manager.Event(), manager.Event(), manager.dict()
        runner = threading.Thread(
            target=lambda: peaks.append(report.in_child(run_pipeline, str(path), ready, quit_))
        )
        peaks: list[report.Measured] = []
        runner.start()
        ready.wait()
        watcher = context.Process(
            target=watch, args=(f"{folder}/lake/public/ticks", rate * SECONDS - 1, seen)
        )
        watcher.start()
        committed = write_ticks(server.dsn(), rate)
        watcher.join()
        quit_.set()
        runner.join()
        delays = [seen[n] - at for n, at in committed.items()]
    return {
        "rows_per_s": rate,
        "rows": len(delays),
        "p50_ms": round(report.percentile(delays, 0.5) * 1000, 1),
        "p99_ms": round(report.percentile(delays, 0.99) * 1000, 1),
        "max_ms": round(max(delays) * 1000, 1),
        "peak_mib": report.peak(peaks),
    }


def main() -> None:
    report.write("latency", {"rates": [measure(rate) for rate in RATES]})
