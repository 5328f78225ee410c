"""Reading a table's files in parts, and taking files of the change log over into a table.

What is much is decoded by the thread that reads it: what Arrow's own threads allocate, they keep
when it is let go of elsewhere (mimalloc), some 60 MB of a large transaction.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.connectors.delta.types import to_stored
from headrace.errors import LogError
from headrace.log.storage import Storage, open_storage

BATCH_ROWS: Final = 1 << 16  # rows in memory at a time where wide rows are read
FEW_ROWS: Final = 1 << 13  # of a file, that a small batch waits for: decoded by Arrow's threads
COPIED_AT_ONCE: Final = 8 << 20  # bytes, each a request where the source is an object store


def inside(storage: Storage, path: str) -> str:
    """A path as the Delta log writes it (a URI, relative or absolute) as the storage knows it."""
    return unquote(path).removeprefix("file://").removeprefix(f"{storage.url}/")


@contextlib.contextmanager
def open_parquet(storage: Storage, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of the storage, read in parts. `path` as the Delta log writes it.

    Raises:
        LogError: it cannot be read.
    """
    path = inside(storage, path)
    try:
        with (
            storage.open(path) as source,
            pq.ParquetFile(source, coerce_int96_timestamp_unit="us") as file,
        ):
            yield file
    except (pa.ArrowException, OSError) as error:
        raise LogError(
            f"cannot read {storage.location(path)}: {error}", path=storage.location(path)
        ) from error


def read_range(storage: Storage, path: str, offset: int, length: int) -> bytes:
    """Bytes of a file, as the caller of `vectors.read_vector` asks for them."""
    return storage.get_range(inside(storage, path), offset, length)


def read_columns(
    storage: Storage, path: str, schema: pa.Schema, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.Table]:
    """The columns of `schema` of all rows of a file, dead ones too, in order, a batch at a time."""
    with open_parquet(storage, path) as file:
        names = _both(schema, file)
        for batch in file.iter_batches(batch_rows, columns=names, use_threads=False):
            yield to_stored(_with_rows(batch), schema)


def _both(schema: pa.Schema, file: pq.ParquetFile) -> list[str]:
    """The columns of a schema that a file has; what it has is made anew each time it is asked."""
    stored = set(file.schema_arrow.names)
    return [name for name in schema.names if name in stored]


def _with_rows(batch: pa.RecordBatch) -> pa.Table:
    """A table that keeps its number of rows where none of the columns is in the file."""
    if batch.num_columns:
        return pa.Table.from_batches([batch])
    return pa.table({"": pa.nulls(batch.num_rows)})


def read_rows(
    storage: Storage, path: str, schema: pa.Schema, rows: npt.NDArray[np.int64]
) -> pa.Table:
    """Some rows of a file, in the order asked; only row groups that hold one are read."""
    order = np.argsort(rows, kind="stable")
    wanted = rows[order]
    parts, few = [schema.empty_table()], len(rows) < FEW_ROWS
    with open_parquet(storage, path) as file:
        names = _both(schema, file)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        start = 0
        for group, size in enumerate(sizes):
            inside = wanted[(wanted >= start) & (wanted < start + size)]
            if len(inside):
                parts += _take_from_group(file, group, names, schema, inside - start, few=few)
            start += size
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.concat_tables(parts).take(pa.array(back))


def _take_from_group(
    file: pq.ParquetFile,
    group: int,
    names: Sequence[str],
    schema: pa.Schema,
    rows: npt.NDArray[np.int64],
    *,
    few: bool,
) -> Iterator[pa.Table]:
    """`rows` of one row group, sorted; stops after the last of them."""
    start = 0
    for batch in file.iter_batches(8192, row_groups=[group], columns=names, use_threads=few):
        inside = rows[(rows >= start) & (rows < start + batch.num_rows)]
        if len(inside):
            # As stored first: other writers' text may be read as views, which Arrow cannot take.
            yield to_stored(_with_rows(batch), schema).take(pa.array(inside - start))
        start += batch.num_rows
        if start > rows[-1]:
            return


def take_over(
    storage: Storage, options: Mapping[str, str], sources: Sequence[str], names: Sequence[str]
) -> None:
    """Make files of the change log files of the table, where possible without reading them.

    Raises:
        LogError: a file cannot be read or written.
    """
    wanted = dict(zip(names, sources, strict=True))
    for name in storage.take_over(wanted):
        folder, _, source = wanted[name].rpartition("/")
        with storage.write() as group, open_storage(folder, options).open(source) as data:
            shutil.copyfileobj(data, group.open(name), COPIED_AT_ONCE)
