"""A snapshot's Parquet files as parts of a table's rows, wherever the change log lives."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import LogError
from headrace.log.storage import open_storage
from headrace.model import RowPart

# Rows of one batch, and what they may come to as they are stored: several files are read at once.
BATCH_ROWS: Final = 1 << 13
BATCH_BYTES: Final = 4 << 20


def snapshot_part(location: str) -> RowPart:
    """The rows of one file, by its path or URL.

    Raises (as it is read):
        LogError: the file cannot be read.
    """
    return RowPart(partial(_read, location))


def _read(location: str) -> Iterator[pa.RecordBatch]:
    folder, _, name = location.rpartition("/")
    try:
        with open_storage(folder).open(name) as source, pq.ParquetFile(source) as file:
            yield from file.iter_batches(_batch_rows(file.metadata))
    except (pa.ArrowException, OSError) as error:
        raise LogError(f"cannot read {location}: {error}", path=location) from error


def _batch_rows(file: pq.FileMetaData) -> int:
    """Fewer where rows are wide."""
    groups = [file.row_group(number) for number in range(file.num_row_groups)]
    widest = max((g.total_byte_size // max(g.num_rows, 1) for g in groups), default=0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(widest, 1)))
