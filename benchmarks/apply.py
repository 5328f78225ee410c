"""Apply: 1,000 random updates into 1 and 10 million rows, against DeltaTable.merge."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from benchmarks import report
from benchmarks.wide import ROWS_PER_FILE, SCHEMA, TABLE, rows
from headrace.connectors.delta.destination import DeltaDestination
from headrace.model import Checkpoint, Lsn, NetChanges

SIZES = (1_000_000, 10_000_000)
KEYS = 1000
BATCHES = 15
WARM_UP = 3
MERGES = 3


def fill(folder: str, size: int) -> list[str]:
    """Parquet files of `size` rows, sorted by id."""
    files = []
    for first in range(0, size, ROWS_PER_FILE):
        path = Path(folder) / f"{first:010d}.parquet"
        pq.write_table(rows(np.arange(first, min(first + ROWS_PER_FILE, size)), first), path)
        files.append(str(path))
    return files


def batch(size: int, number: int) -> pa.Table:
    ids = np.random.default_rng(number).choice(size, KEYS, replace=False)
    return rows(np.sort(ids), number + 1)


def merge_on_read(size: int) -> dict[str, Any]:
    """Seconds of each warm batch; and of the first, which builds the index."""
    with tempfile.TemporaryDirectory() as folder:
        table = DeltaDestination(f"{folder}/lake").table(TABLE, "bench")
        table.load(SCHEMA, fill(folder, size), Checkpoint("log", 1, Lsn(1)))
        seconds = []
        for number in range(1 + WARM_UP + BATCHES):
            changes = NetChanges(
                SCHEMA, batch(size, number), pa.table({"id": pa.array([], pa.int64())})
            )
            to = Checkpoint("log", number + 2, Lsn(number + 2))
            seconds.append(report.timed(lambda c=changes, t=to: table.apply(c, t)))
    return {"first": seconds[0], "warm": seconds[1 + WARM_UP :]}


def merge(size: int) -> list[float]:
    """Seconds of DeltaTable.merge for the same batches into the same rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/merged"
        for file in fill(folder, size):
            write_deltalake(path, pq.read_table(file), mode="append")
        seconds = []
        for number in range(MERGES):
            source = batch(size, number)
            start = time.perf_counter()
            (
                DeltaTable(path)
                .merge(source, "t.id = s.id", source_alias="s", target_alias="t")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .execute()
            )
            seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    result: dict[str, Any] = {"keys_per_batch": KEYS}
    for size in SIZES:
        ours, theirs = report.in_child(merge_on_read, size), report.in_child(merge, size)
        warm = report.percentile(ours.value["warm"], 0.5)
        merged = report.percentile(theirs.value, 0.5)
        result[f"rows_{size}"] = {
            "headrace_ms": round(warm * 1000, 1),
            "headrace_p95_ms": round(report.percentile(ours.value["warm"], 0.95) * 1000, 1),
            "headrace_first_ms": round(ours.value["first"] * 1000, 1),
            "merge_ms": round(merged * 1000, 1),
            "ratio": round(merged / warm, 1),
            "headrace_peak_mib": round(ours.peak_mib),
            "merge_peak_mib": round(theirs.peak_mib),
        }
    small, large = (result[f"rows_{size}"]["headrace_ms"] for size in SIZES)
    result["growth_1m_to_10m"] = round(large / small, 2)
    report.write("apply", result)
