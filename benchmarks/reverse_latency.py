"""Latency: from a commit of a Delta table to its rows visible in Postgres, in continuous mode.

A commit's time is that of its file in the Delta log. Commits come at random intervals, so that
they fall anywhere between two looks of the pipeline, which has `poll: 100ms`.
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from benchmarks import report, reverse
from benchmarks.latency import run_pipeline
from benchmarks.project import write_reverse_project
from benchmarks.wide import rows
from headrace.testing.postgres import EmbeddedPostgres

START = 10_000  # rows before the first commit
ROWS = 100  # of each commit
COMMITS = 200  # of each kind
PAUSE = (0.2, 0.5)  # seconds between two commits

# The number of the newest commit whose rows are there.
APPENDED = f"SELECT (max(id) - {START} + 1) / {ROWS} - 1 FROM {reverse.NAME}"
MERGED = f"SELECT a FROM {reverse.NAME} WHERE id = 0"


def numbered(ids: np.ndarray, number: int) -> pa.Table:
    """Rows that bear the number of their commit in column a."""
    return rows(ids, number + 1).set_column(1, "a", pa.array(np.full(len(ids), number), pa.int32()))


def append(path: str, number: int) -> None:
    first = START + number * ROWS
    write_deltalake(path, numbered(np.arange(first, first + ROWS), number), mode="append")


def merge(path: str, number: int) -> None:
    """Update rows from all over the table, the first among them."""
    changed = numbered(np.arange(0, START, START // ROWS), number)
    merging = DeltaTable(path).merge(changed, "t.id = s.id", source_alias="s", target_alias="t")
    merging.when_matched_update_all().execute()


def watch(dsn: str, query: str, last: int, ready: Any, seen: Any) -> float:
    """Note when each commit's rows became visible."""
    times: dict[int, float] = {}
    with psycopg.connect(dsn, autocommit=True) as session:
        ready.set()
        newest = -1
        while newest < last:
            row = session.execute(query).fetchone()
            now, found = time.time(), row[0] if row and row[0] is not None else -1
            times.update(dict.fromkeys(range(newest + 1, found + 1), now))
            newest = max(newest, found)
            time.sleep(0.001)
    seen.update(times)
    return 0.0


def write(path: str, commit: Callable[[str, int], None]) -> dict[int, float]:
    """When each commit was made, by number."""
    made = {}
    for number in range(COMMITS):
        time.sleep(random.uniform(*PAUSE))
        commit(path, number)
        log = Path(path) / "_delta_log" / f"{DeltaTable(path).version():020d}.json"
        made[number] = log.stat().st_mtime
    return made


def delays(dsn: str, path: str, commit: Callable[[str, int], None], query: str) -> list[float]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        ready, seen = manager.Event(), manager.dict()
        watcher = context.Process(target=watch, args=(dsn, query, COMMITS - 1, ready, seen))
        watcher.start()
        ready.wait()
        made = write(path, commit)
        watcher.join()
        return [seen[number] - at for number, at in made.items()]


def measure(kind: str) -> dict[str, Any]:
    commit, query = {"append": (append, APPENDED), "merge": (merge, MERGED)}[kind]
    context = multiprocessing.get_context("spawn")
    with (
        EmbeddedPostgres() as server,
        tempfile.TemporaryDirectory() as folder,
        context.Manager() as manager,
    ):
        lake = f"{folder}/lake"
        path = f"{lake}/{reverse.NAME.replace('.', '/')}"
        write_deltalake(path, numbered(np.arange(START), -1), configuration=reverse.FEED)
        project = write_reverse_project(folder, lake, server.dsn(), reverse.NAME)
        ready, quit_, peaks = manager.Event(), manager.Event(), []
        runner = threading.Thread(
            target=lambda: peaks.append(report.in_child(run_pipeline, str(project), ready, quit_))
        )
        runner.start()
        ready.wait()
        found = delays(server.dsn(), path, commit, query)
        quit_.set()
        runner.join()
    return {
        "commits": kind,
        "number": len(found),
        "rows_each": ROWS,
        "p50_ms": round(report.percentile(found, 0.5) * 1000, 1),
        "p99_ms": round(report.percentile(found, 0.99) * 1000, 1),
        "max_ms": round(max(found) * 1000, 1),
        "peak_mib": report.peak(peaks),
    }


def main() -> None:
    report.write(
        "reverse_latency",
        {"poll_ms": 100, "kinds": [measure(kind) for kind in ("append", "merge")]},
    )
