"""The rows that several benchmarks move: eight columns, about 60 bytes each in Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.model import Column, TableId, TableSchema

ROWS_PER_FILE = 525_000  # about 32 MB of these rows, in files as a bulk load leaves them
TABLE = TableId("public", "wide")

SCHEMA = TableSchema(
    TABLE,
    1,
    (
        Column("id", pa.int64(), "bigint", 1),
        Column("a", pa.int32(), "integer", 2),
        Column("status", pa.string(), "text", 3),
        Column("amount", pa.decimal128(18, 4), "numeric(18,4)", 4),
        Column("placed", pa.timestamp("us", "UTC"), "timestamptz", 5),
        Column("shipped", pa.timestamp("us", "UTC"), "timestamptz", 6),
        Column("paid", pa.bool_(), "boolean", 7),
        Column("note", pa.string(), "text", 8),
    ),
    ("id",),
)


def rows(ids: np.ndarray, seed: int) -> pa.Table:
    """Rows under these keys, with the other columns' values from the seed."""
    random = np.random.default_rng(seed)
    n = len(ids)
    times = (1_767_225_600_000_000 + ids * 1_000_000).astype("datetime64[us]")
    return pa.table(
        [
            pa.array(ids, pa.int64()),
            pa.array(random.integers(0, 1000, n), pa.int32()),
            pa.array(np.array(["new", "paid", "sent", "back", "lost"])[ids % 5]),
            pa.array(random.integers(0, 10**6, n))
            .cast(pa.decimal128(38, 4))
            .cast(pa.decimal128(18, 4)),
            pa.array(times, pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
            pa.array(times, pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
            pa.array(ids % 2 == 0),
            pa.array(np.char.add("note number ", random.integers(10**17, 10**18, n).astype(str))),
        ],
        schema=SCHEMA.arrow(),
    )


def fill(folder: str, size: int) -> list[str]:
    """Parquet files of `size` rows, sorted by id."""
    files = []
    for first in range(0, size, ROWS_PER_FILE):
        path = Path(folder) / f"{first:010d}.parquet"
        pq.write_table(rows(np.arange(first, min(first + ROWS_PER_FILE, size)), first), path)
        files.append(str(path))
    return files
