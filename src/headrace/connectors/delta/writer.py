"""Writing what a commit names, and the commit itself.

Data files and deletion vectors become durable together; then the log entry is put where none is. A
put whose answer was lost is settled by reading the entry back: it is ours, byte for byte, or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.arrangement import PartitionValues, Positions, divided
from headrace.connectors.delta.names import new_name
from headrace.connectors.delta.stats import file_stats
from headrace.connectors.delta.vectors import encode_file
from headrace.errors import LogError, ObjectExistsError, ObjectMissingError
from headrace.failpoints import hit
from headrace.log.storage import FileGroup, FileWriter, Storage

SMALL_COMPRESSION: Final = "snappy"  # files of one batch: 5.5 ms for 60,000 rows, zstd takes 8
ROW_GROUP_ROWS: Final = 1 << 17  # what a reader skips or reads inside a file
LASTING_COMPRESSION: Final = "zstd"  # files that are written to stay


class CommitLostError(Exception):
    """Another writer made this version; never leaves the connector."""


class DataWriter:
    """Writes one data file of the table, a table of rows at a time."""

    def __init__(
        self,
        file: IO[bytes],
        path: str,
        schema: pa.Schema,
        compression: str,
        partition_values: Mapping[str, str | None] | None = None,
    ) -> None:
        self._file, self._path = file, path
        self._partition_values = partition_values or {}
        self._metadata: list[pq.FileMetaData] = []
        self._writer = FileWriter(
            file, schema, compression=compression, metadata_collector=self._metadata
        )
        self.rows = 0

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, ROW_GROUP_ROWS)
        self.rows += rows.num_rows

    def finish(self, *, data_change: bool = True) -> Action:
        """Write the footer; returns the file's add action."""
        self._writer.close()
        return actions.add(
            self._path,
            self._file.tell(),
            file_stats(self._metadata[0], self._partition_values),
            data_change=data_change,
            partition_values=self._partition_values,
        )


@dataclass(frozen=True)
class Written:
    """Files of a commit to come: add actions, each with the positions of its rows among the new
    ones, and vectors by data file."""

    adds: Sequence[tuple[Action, Positions]]
    descriptors: Mapping[str, Mapping[str, Any]]

    @property
    def actions(self) -> list[Action]:
        return [add for add, _ in self.adds]


def write_files(
    storage: Storage,
    rows: pa.Table,
    vectors: Mapping[str, BitMap],
    partition_by: Sequence[str] = (),
) -> Written:
    """Make new rows and deletion vectors durable.

    Raises:
        LogError: they cannot be written.
        DestinationError: a partition column has a value that cannot name a partition.
    """
    with storage.write() as group:
        descriptors = _write_vectors(group, vectors)
        adds = [
            (_write_rows(group, rows, values, positions), positions)
            for values, positions in divided(rows, partition_by)
        ]
    if vectors:
        hit("delta.dv_written")
    if adds:
        hit("delta.data_written")
    return Written(adds, descriptors)


def write_vectors(
    storage: Storage, vectors: Mapping[str, BitMap]
) -> Mapping[str, Mapping[str, Any]]:
    """Make deletion vectors durable; gives their descriptors by data file. Raises LogError."""
    with storage.write() as group:
        return _write_vectors(group, vectors)


def _write_vectors(
    group: FileGroup, vectors: Mapping[str, BitMap]
) -> Mapping[str, Mapping[str, Any]]:
    if not vectors:
        return {}
    path, content, descriptors = encode_file(vectors)
    group.open(path).write(content)
    return descriptors


def _write_rows(
    group: FileGroup, rows: pa.Table, values: PartitionValues, positions: Positions
) -> Action:
    path = new_name()
    writer = DataWriter(group.open(path), path, rows.schema, SMALL_COMPRESSION, values)
    writer.write(rows.take(pa.array(positions)) if values else rows)
    return writer.finish()


def put_commit(storage: Storage, version: int, commit: Iterable[Action]) -> int:
    """Put the log entry of `version`; gives its size in bytes.

    Raises:
        CommitLostError: another writer has made this version.
        LogError: the put failed, and the version does not exist.
    """
    path, data = actions.log_path(version), actions.encode(commit)
    try:
        storage.put(path, data, create=True)
    except LogError as error:
        standing = _read(storage, path)
        if standing is None and not isinstance(error, ObjectExistsError):
            raise
        if standing != data:
            raise CommitLostError(path) from error
    hit("delta.log_put")
    return len(data)


def _read(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.get(path)
    except ObjectMissingError:
        return None
