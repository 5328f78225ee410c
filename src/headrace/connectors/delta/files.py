"""Reading a table's files in parts, and taking files of the change log over into a table."""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import obstore
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.connectors.delta.types import to_stored
from headrace.errors import LogError
from headrace.log.local import LocalStorage, local_errors, sync_folder
from headrace.log.objects import ObjectStorage, object_errors
from headrace.log.storage import Storage

BATCH_ROWS: Final = 1 << 16  # rows in memory at a time where wide rows are read


def inside(storage: Storage, path: str) -> str:
    """A path as the Delta log writes it (a URI, relative or absolute) as the storage knows it."""
    return unquote(path).removeprefix("file://").removeprefix(f"{storage.url}/")


class _ObjectFile(io.RawIOBase):
    """An object read by ranges, as Parquet's reader wants a file."""

    def __init__(self, storage: ObjectStorage, path: str) -> None:
        self._storage, self._path = storage, path
        self._at, self._size = 0, file_size(storage, path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        length = min(len(buffer), self._size - self._at)
        if length > 0:
            buffer[:length] = read_range(self._storage, self._path, self._at, length)
            self._at += length
        return max(length, 0)


@contextlib.contextmanager
def open_parquet(storage: Storage, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of the storage, read in parts. `path` as the Delta log writes it.

    Raises:
        LogError: it cannot be read.
    """
    path = inside(storage, path)
    source: Any = storage.location(path)
    if isinstance(storage, ObjectStorage):
        source = _ObjectFile(storage, path)
    try:
        with pq.ParquetFile(source, memory_map=isinstance(source, str)) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise LogError(
            f"cannot read {storage.location(path)}: {error}", path=storage.location(path)
        ) from error


def folders(storage: Storage, folder: str) -> list[str]:
    """Names of the folders in a folder; none where it does not exist."""
    if isinstance(storage, ObjectStorage):
        with object_errors("list", storage.location(folder)):
            listed = obstore.list_with_delimiter(storage.store, folder or None)
        return [prefix.rstrip("/").rpartition("/")[2] for prefix in listed["common_prefixes"]]
    with local_errors("list", storage.location(folder)):
        place = Path(storage.location(folder))
        return [p.name for p in place.iterdir() if p.is_dir()] if place.is_dir() else []


def file_size(storage: Storage, path: str) -> int:
    """In bytes."""
    if isinstance(storage, ObjectStorage):
        with object_errors("look at", storage.location(path)):
            return int(obstore.head(storage.store, path)["size"])
    with local_errors("look at", storage.location(path)):
        return Path(storage.location(path)).stat().st_size


def read_range(storage: Storage, path: str, offset: int, length: int) -> bytes:
    """Bytes of a file, as the caller of `vectors.read_vector` asks for them."""
    path = inside(storage, path)
    if isinstance(storage, ObjectStorage):
        with object_errors("get", storage.location(path)):
            return bytes(obstore.get_range(storage.store, path, start=offset, length=length))
    with local_errors("read", storage.location(path)), open(storage.location(path), "rb") as file:  # noqa: PTH123
        file.seek(offset)
        return file.read(length)


def read_columns(
    storage: Storage, path: str, schema: pa.Schema, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.Table]:
    """The columns of `schema` of all rows of a file, dead ones too, in order, a batch at a time."""
    with open_parquet(storage, path) as file:
        names = [n for n in schema.names if n in file.schema_arrow.names]
        for batch in file.iter_batches(batch_rows, columns=names):
            yield to_stored(_with_rows(batch), schema)


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
    parts = [schema.empty_table()]
    with open_parquet(storage, path) as file:
        names = [n for n in schema.names if n in file.schema_arrow.names]
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        start = 0
        for group, size in enumerate(sizes):
            inside = wanted[(wanted >= start) & (wanted < start + size)]
            if len(inside):
                parts += _take_from_group(file, group, names, schema, inside - start)
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
) -> Iterator[pa.Table]:
    """`rows` of one row group, sorted; stops after the last of them."""
    start = 0
    for batch in file.iter_batches(8192, row_groups=[group], columns=names):
        inside = rows[(rows >= start) & (rows < start + batch.num_rows)]
        if len(inside):
            yield to_stored(_with_rows(batch).take(pa.array(inside - start)), schema)
        start += batch.num_rows
        if start > rows[-1]:
            return


def take_over(
    storage: Storage, options: Mapping[str, str], sources: Sequence[str], names: Sequence[str]
) -> None:
    """Make files of the change log files of the table, where possible without reading them.

    On one local filesystem these are hard links, in one bucket copies made by its server.

    Raises:
        LogError: a file cannot be read or written.
    """
    for source, name in zip(sources, names, strict=True):
        if _linked(source, storage, name) or _copied_by_server(source, storage, options, name):
            continue
        with storage.write() as group, open_source(source, options) as data:
            shutil.copyfileobj(data, group.open(name), 1 << 20)
    if isinstance(storage, LocalStorage) and names:
        with local_errors("sync", storage.root):
            sync_folder(storage.root)


def _local_path(source: str) -> Path | None:
    if source.startswith("file://"):
        return Path(unquote(urlsplit(source).path))
    return None if "://" in source else Path(source)


def _linked(source: str, storage: Storage, name: str) -> bool:
    """False where a link cannot be: across filesystems, or on one that has none."""
    path = _local_path(source)
    if path is None or not isinstance(storage, LocalStorage):
        return False
    target = storage.root / name
    with local_errors("link", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(path)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                return False
            raise
    return True


def _copied_by_server(source: str, storage: Storage, options: Mapping[str, str], name: str) -> bool:
    here, there = urlsplit(source), urlsplit(storage.location(name))
    if not isinstance(storage, ObjectStorage) or here[:2] != there[:2]:
        return False
    bucket = ObjectStorage(f"{there.scheme}://{there.netloc}", options)
    with object_errors("copy", source):
        obstore.copy(bucket.store, here.path.lstrip("/"), there.path.lstrip("/"))
    return True


@contextlib.contextmanager
def open_source(source: str, options: Mapping[str, str]) -> Iterator[Any]:
    """A file of the change log, wherever it lives, opened for reading."""
    path = _local_path(source)
    if path is not None:
        with local_errors("read", path), path.open("rb") as file:
            yield file
        return
    folder, _, name = source.rpartition("/")
    yield io.BufferedReader(_ObjectFile(ObjectStorage(folder, options), name), 8 << 20)
