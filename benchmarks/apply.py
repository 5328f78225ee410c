"""Apply: 1,000 random updates into 1, 10 and 100 million rows of two columns.

What an apply takes must follow the batch, not the table; `DeltaTable.merge` is given the same
batches, but for the largest table. Building the key index is measured against reading the key
columns alone, and a restart with the saved index against building it. Beside the time on the clock
stands the time of the processor, which others on the machine do not lengthen.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from benchmarks import report
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.rows import READERS
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.model import Checkpoint, Column, Lsn, NetChanges, TableId, TableSchema

SIZES = (1_000_000, 10_000_000, 100_000_000)
KEYS = 1000
BATCHES = 200
WARM_UP = 20
MERGED = 10_000_000  # rows; of more, a merge takes a minute
MERGES = 3
ROWS_PER_FILE = 8_000_000  # 40 MB
TABLE = TableId("public", "narrow")
SCHEMA = TableSchema(
    TABLE,
    1,
    (Column("id", pa.int64(), "bigint", 1), Column("n", pa.int32(), "integer", 2)),
    ("id",),
)
NO_DELETES = pa.table({"id": pa.array([], pa.int64())})


def fill(folder: Path, size: int) -> list[str]:
    """Parquet files of `size` rows; keys in the order of a shuffled sequence, as UUIDs come."""
    files = []
    for first in range(0, size, ROWS_PER_FILE):
        ids = np.arange(first, min(first + ROWS_PER_FILE, size))
        path = folder / f"{first:010d}.parquet"
        pq.write_table(rows(scattered(ids), 0), path, compression="zstd")
        files.append(str(path))
    return files


def scattered(ids: np.ndarray) -> np.ndarray:
    """Keys without order: an odd factor and the bits of a 64-bit number."""
    return (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def rows(ids: np.ndarray, n: int) -> pa.Table:
    values = [pa.array(ids), pa.array(np.full(len(ids), n, np.int32))]
    return pa.table(values, schema=SCHEMA.arrow())


def read_keys(files: Sequence[str]) -> None:
    """What no index can be built without."""
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(lambda file: pq.read_table(file, columns=["id"]).num_rows, files):
            pass


def batch(size: int, number: int) -> pa.Table:
    ids = np.random.default_rng(number).choice(size, KEYS, replace=False)
    return rows(scattered(np.sort(ids)), number)


def apply(table: MergeOnReadTable, size: int, number: int) -> tuple[float, float]:
    """Seconds on the clock, and of the processor, for one batch."""
    changes = NetChanges(SCHEMA, batch(size, number), NO_DELETES)
    clock, processor = time.perf_counter(), time.thread_time()
    table.apply(changes, Checkpoint("log", number + 2, Lsn(number + 2)))
    return time.perf_counter() - clock, time.thread_time() - processor


def measure(size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def opened() -> tuple[DeltaDestination, MergeOnReadTable]:
            place = DeltaDestination(str(folder / "lake"), indexes=folder / "indexes")
            return place, place.table(TABLE, "bench")

        files = fill(folder, size)
        place, table = opened()
        table.load(SCHEMA, files, Checkpoint("log", 1, Lsn(1)))
        os.sync()
        read = report.timed(lambda: read_keys(files))
        built, _ = apply(table, size, 0)
        bytes_per_row = table.index_bytes / size
        table.settle()
        os.sync()
        warm = [apply(table, size, number) for number in range(1, 1 + WARM_UP + BATCHES)]
        settled = report.timed(table.settle)
        place.close()
        place, table = opened()
        table.checkpoint("log")
        restarted, _ = apply(table, size, len(warm) + 1)
        table.settle()
        place.close()
    clock, processor = (list(column) for column in zip(*warm[WARM_UP:], strict=True))
    return {
        "headrace_ms": _ms(report.percentile(clock, 0.5)),
        **{f"headrace_p{n}_ms": _ms(report.percentile(clock, n / 100)) for n in (95, 99)},
        **{f"processor_p{n}_ms": _ms(report.percentile(processor, n / 100)) for n in (50, 95, 99)},
        "bytes_per_row": round(bytes_per_row, 1),
        "read_keys_s": round(read, 2),
        "first_apply_s": round(built, 2),
        "million_rows_indexed_per_s": round(size / built / 1e6, 1),
        "saved_at_the_end_s": round(settled, 2),
        "first_apply_after_restart_s": round(restarted, 2),
    }


def merge(size: int) -> list[float]:
    """Seconds of DeltaTable.merge for the same batches into the same rows."""
    with tempfile.TemporaryDirectory() as name:
        path = f"{name}/merged"
        for file in fill(Path(name), size):
            write_deltalake(path, pq.read_table(file), mode="append")
        return [_merged(path, batch(size, number)) for number in range(MERGES)]


def _merged(path: str, source: pa.Table) -> float:
    start = time.perf_counter()
    merge = DeltaTable(path).merge(source, "t.id = s.id", source_alias="s", target_alias="t")
    merge.when_matched_update_all().when_not_matched_insert_all().execute()
    return time.perf_counter() - start


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def main(largest: int = SIZES[-1]) -> None:
    result: dict[str, Any] = {"keys_per_batch": KEYS}
    sizes = [size for size in SIZES if size <= largest]
    for size in sizes:
        measured = report.in_child(measure, size)
        found = {**measured.value, "peak_mib": round(measured.peak_mib)}
        if size <= MERGED:
            merged = report.in_child(merge, size)
            taken = _ms(report.percentile(merged.value, 0.5))
            found |= {"merge_ms": taken, "merge_peak_mib": round(merged.peak_mib)}
            found["ratio"] = round(taken / found["headrace_ms"], 1)
        result[f"rows_{size}"] = found
    first, last = (result[f"rows_{size}"] for size in (sizes[0], sizes[-1]))
    for what in ("headrace_ms", "processor_p50_ms"):
        result[f"growth_{what}"] = round(last[what] / first[what], 2)
    report.write("apply", result, keep=largest == SIZES[-1])
