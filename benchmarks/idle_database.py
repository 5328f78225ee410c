"""WAL that an idle database's slot retains while another database of the cluster is busy.

The slot's lag is what nobody has confirmed; the server keeps whole segments of 16 MiB, and from
where the oldest transaction stood when it last noted all that are open, every 15 seconds.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

import headrace
from benchmarks import report
from benchmarks.project import write_project
from headrace.testing.builds import BUILDS, build_bin_dir
from headrace.testing.postgres import EmbeddedPostgres

SECONDS = 20
PER_SECOND = 10
ROWS = 800  # a tenth of a MiB of WAL
CACHE = Path(__file__).parents[1] / ".cache" / "postgres"

LOOK = """
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint,
       pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint
  FROM pg_replication_slots WHERE slot_name = 'headrace_source'
"""


def keep_busy(busy: psycopg.Connection[Any]) -> list[tuple[int, int, int]]:
    """Write a steady stream of WAL; a look at the slot before each write."""
    looks, start = [], time.monotonic()
    for n in range(SECONDS * PER_SECOND):
        time.sleep(max(0.0, start + n / PER_SECOND - time.monotonic()))
        looks.append(busy.execute(LOOK).fetchall()[0])
        busy.execute(
            "INSERT INTO noise SELECT repeat('x', 100) FROM generate_series(1, %s)", [ROWS]
        )
    return looks


def measure(version: int) -> dict[str, Any]:
    settings = {"max_wal_size": "4GB"}
    with (
        EmbeddedPostgres(settings, bin_dir=build_bin_dir(version, CACHE)) as server,
        tempfile.TemporaryDirectory() as folder,
        psycopg.connect(server.dsn(), autocommit=True) as idle,
    ):
        idle.execute("CREATE TABLE quiet (id int PRIMARY KEY)")
        idle.execute("CREATE DATABASE busy")
        project = headrace.load(write_project(folder, server.dsn(), "public.quiet"))
        project.run(once=True)
        stop, connected = threading.Event(), threading.Event()

        def tick(views: Any) -> None:
            if views[0].capture.progress.connected:
                connected.set()

        runner = threading.Thread(target=project.run, kwargs={"stop": stop, "on_tick": tick})
        runner.start()
        connected.wait()
        with psycopg.connect(server.dsn("busy"), autocommit=True) as busy:
            busy.execute("CREATE TABLE noise (text text)")
            looks = keep_busy(busy)
        stop.set()
        runner.join()
        commits = len(list(Path(folder).glob("state/log/*/commits/*.json")))
    lags, retained, ends = (list(column) for column in zip(*looks, strict=True))
    return {
        "postgres": version,
        "wal_mib_per_s": round((ends[-1] - ends[0]) / SECONDS / 2**20, 2),
        "median_lag_kib": round(statistics.median(lags) / 1024),
        "p99_lag_kib": round(report.percentile(lags, 0.99) / 1024),
        "max_lag_kib": round(max(lags) / 1024),
        "max_retained_mib": round(max(retained) / 2**20, 1),
        "commits": commits,
    }


def main() -> None:
    report.write("idle_database", {"versions": [measure(version) for version in BUILDS]})
