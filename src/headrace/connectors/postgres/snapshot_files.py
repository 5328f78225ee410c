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

BATCH_ROWS: Final = 1 << 16


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
            yield from file.iter_batches(BATCH_ROWS)
    except (pa.ArrowException, OSError) as error:
        raise LogError(f"cannot read {location}: {error}", path=location) from error
