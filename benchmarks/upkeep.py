"""Upkeep: an hour of commits, one a second, made as fast as they can be: what readers pay by then.

A table of a million rows takes 3,600 commits, each of 100 updates and 20 inserts and deletes of
random keys. Every 300 commits its files are counted and it is read as a whole by DuckDB and by
deltalake. The same life without upkeep, cut off after 300 commits, shows what it is for: beyond 512
files with deletion vectors deltalake 1.6.6 never ends reading.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from benchmarks import report
from benchmarks.wide import SCHEMA, TABLE, fill, rows
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.maintenance import Policy
from headrace.connectors.delta.state import load_state
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.log import open_storage
from headrace.model import Checkpoint, Lsn, NetChanges
from headrace.testing.duckdb_delta import duckdb_with_delta

SIZE = 1_000_000
HOUR = 3600
INTERVAL = 300
WITHOUT = 300
UPDATES, OTHERS = 100, 20
NEVER = Policy(together=1 << 30, worn=2.0)
READS = 3


class Keys:
    """The keys that the table holds, so that each commit is one that a source could make."""

    def __init__(self, size: int) -> None:
        self._random = np.random.default_rng(7)
        self._held = np.arange(size)
        self._next = size

    def changes(self, number: int) -> NetChanges:
        chosen = self._random.choice(len(self._held), UPDATES + OTHERS, replace=False)
        updated, gone = self._held[chosen[:UPDATES]], chosen[UPDATES:]
        deleted = self._held[gone].copy()
        new = np.arange(self._next, self._next + OTHERS)
        self._held[gone], self._next = new, self._next + OTHERS
        upserts = rows(np.concatenate([np.sort(updated), new]), number)
        return NetChanges(SCHEMA, upserts, pa.table({"id": deleted}))


def life(commits: int, policy: Policy | None) -> dict[str, Any]:
    """The curve: what stands after each interval, and how long its applies and a read take."""
    with tempfile.TemporaryDirectory() as folder:
        place = DeltaDestination(f"{folder}/lake", policy=policy)
        table = place.table(TABLE, "bench")
        table.load(SCHEMA, fill(folder, SIZE), Checkpoint("log", 1, Lsn(1)))
        path = Path(folder) / "lake" / TABLE.schema / TABLE.name
        keys, curve = Keys(SIZE), [_standing(path)]
        table.apply(keys.changes(0), Checkpoint("log", 2, Lsn(2)))  # builds the index
        for first in range(0, commits, INTERVAL):
            seconds = [_timed_apply(table, keys, first + n) for n in range(INTERVAL)]
            curve.append({"commits": first + INTERVAL, **_latency(seconds), **_standing(path)})
        table.settle()
        place.close()
    return {"curve": curve}


def _timed_apply(table: MergeOnReadTable, keys: Keys, number: int) -> float:
    changes, to = keys.changes(number), Checkpoint("log", number + 3, Lsn(number + 3))
    return report.timed(lambda: table.apply(changes, to))


def _latency(seconds: list[float]) -> dict[str, float]:
    shares = {"apply_p50_ms": 0.5, "apply_p99_ms": 0.99, "apply_max_ms": 1.0}
    return {n: round(report.percentile(seconds, s) * 1000, 1) for n, s in shares.items()}


def _standing(path: Path) -> dict[str, Any]:
    state = load_state(open_storage(path))
    assert state is not None
    files = list(state.files.values())
    log = sum(entry.stat().st_size for entry in (path / "_delta_log").iterdir())
    return {
        "files": len(files),
        "with_deletion_vector": sum("deletionVector" in file for file in files),
        "table_mib": round(sum(file["size"] for file in files) / 2**20, 1),
        "log_mib": round(log / 2**20, 1),
        "read_duckdb_ms": _median_ms(lambda: _by_duckdb(path)),
        "read_deltalake_ms": _median_ms(lambda: _by_deltalake(path)),
    }


def _median_ms(read: Any) -> float:
    return round(statistics.median(report.timed(read) for _ in range(READS)) * 1000)


def _by_deltalake(path: Path) -> None:
    builder = QueryBuilder().register("t", DeltaTable(path))
    pa.table(builder.execute("select count(*), sum(a), max(note) from t"))


def _by_duckdb(path: Path) -> None:
    with duckdb_with_delta() as connection:
        connection.execute(
            f"select count(*), sum(a), max(note) from delta_scan('{path}')"
        ).fetchall()


def main() -> None:
    kept, left = report.in_child(life, HOUR, None), report.in_child(life, WITHOUT, NEVER)
    at_cut = next(p for p in kept.value["curve"] if p.get("commits") == WITHOUT)
    without = left.value["curve"][-1]
    result = {
        "rows": SIZE,
        "rows_per_commit": UPDATES + 2 * OTHERS,
        "commits": HOUR,
        "curve": kept.value["curve"],
        "peak_mib": round(kept.peak_mib),
        f"without_upkeep_after_{WITHOUT}": without,
        "read_ratio_duckdb": round(without["read_duckdb_ms"] / at_cut["read_duckdb_ms"], 1),
        "read_ratio_deltalake": round(
            without["read_deltalake_ms"] / at_cut["read_deltalake_ms"], 1
        ),
    }
    report.write("upkeep", result)
