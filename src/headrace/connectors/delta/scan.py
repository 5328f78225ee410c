"""The rows of data files, read side by side: our own reading of a Delta table's Parquet.

PROTOCOL.md, "Data Files", "Deletion Vectors", "Column Mapping", "Type Widening". A scan is cut into
parts of about equal size, small files together and big ones by their row groups; each part is read
in batches whose memory is bounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from headrace.connectors.delta.actions import File
from headrace.connectors.delta.columns import (
    DataColumn,
    Layout,
    in_file,
    partition_scalar,
    to_column,
)
from headrace.connectors.delta.failures import source_errors
from headrace.connectors.delta.files import BATCH_ROWS, open_parquet
from headrace.connectors.delta.rows import load_vector
from headrace.connectors.delta.stats import known_rows
from headrace.connectors.delta.vectors import cardinality
from headrace.log.storage import Storage
from headrace.model import RowPart, TableId

PART_BYTES: Final = 64 << 20  # of Parquet in one part: seconds of work for whoever writes it
BATCH_BYTES: Final = 16 << 20  # of values in one batch, roughly
_FEWEST_ROWS: Final = 64  # in a batch, however wide its rows are

# Features of readers that this scan knows.
READABLE: Final = frozenset(
    {
        "columnMapping",
        "deletionVectors",
        "timestampNtz",
        "typeWidening",
        "typeWidening-preview",
        "v2Checkpoint",
        "vacuumProtocolCheck",
        "variantType",
        "variantType-preview",
    }
)

OpenStorage = Callable[[], Storage]  # credentials may be renewed between two readings


@dataclass(frozen=True)
class FileRows:
    """Rows of a data file: those that its deletion vector leaves, or those in the `vectors` given.

    `between` is a pair of descriptors: the rows that the second takes away and the first does not.
    `groups` are row groups, all where None.
    """

    add: File
    between: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None] | None = None
    groups: tuple[int, ...] | None = None

    @property
    def vectors(self) -> tuple[Mapping[str, Any], ...]:
        """The deletion vectors that say which rows are meant."""
        mine = (self.add.get("deletionVector"),)
        return tuple(vector for vector in self.between or mine if vector)

    @property
    def rows(self) -> int | None:
        """As the statistics and the descriptors tell it; None where they do not."""
        if self.between is not None:
            before, after = (cardinality(vector) for vector in self.between)
            return max(after - before, 0)
        records = known_rows(self.add)
        return None if records is None else records - cardinality(self.add.get("deletionVector"))

    def keep(self, storage: Storage) -> Callable[[int, int], npt.NDArray[np.bool_] | None]:
        """Which of the rows from one to before another are wanted; None for all."""
        if self.between is None:
            deleted = load_vector(storage, self.add.get("deletionVector"))
            return functools.partial(_mask, deleted, False) if deleted else lambda *_: None
        before, after = (load_vector(storage, vector) for vector in self.between)
        return functools.partial(_mask, after - before, True)


def _mask(rows: BitMap, wanted: bool, start: int, end: int) -> npt.NDArray[np.bool_]:
    mask = np.full(end - start, not wanted)
    inside = rows & BitMap(range(start, end))
    mask[np.frombuffer(inside.to_array(), np.uint32).astype(np.int64) - start] = wanted
    return mask


def row_parts(
    table: TableId, storage: OpenStorage, layout: Layout, files: Iterable[FileRows]
) -> tuple[RowPart, ...]:
    """The rows of files in parts. Footers of big files are read here, all else when a part is.

    Raises:
        SourceUnavailableError: the storage does not answer, or a file is gone.
        SourceError: a file cannot be read.
    """
    parts: list[list[FileRows]] = []
    filled = PART_BYTES
    with source_errors(table):
        for piece, size in (cut for file in files for cut in _pieces(storage(), file)):
            if filled + size > PART_BYTES:
                parts.append([])
                filled = 0
            parts[-1].append(piece)
            filled += size
    return tuple(_part(table, storage, layout, tuple(pieces)) for pieces in parts)


def _pieces(storage: Storage, file: FileRows) -> Iterator[tuple[FileRows, int]]:
    """A file whole, or a big one by row groups; with the bytes of each."""
    size = int(file.add["size"])
    if size < 2 * PART_BYTES:
        yield file, size
        return
    with open_parquet(storage, file.add["path"]) as parquet:
        groups = range(parquet.num_row_groups)
    for group in groups:
        yield FileRows(file.add, file.between, (group,)), size // len(groups)


def _part(
    table: TableId, storage: OpenStorage, layout: Layout, pieces: tuple[FileRows, ...]
) -> RowPart:
    counts = [None if piece.groups is not None else piece.rows for piece in pieces]
    known = [count for count in counts if count is not None]
    return RowPart(
        functools.partial(_read, table, storage, layout, pieces),
        sum(known) if len(known) == len(counts) else None,
    )


def _read(
    table: TableId, storage: OpenStorage, layout: Layout, pieces: tuple[FileRows, ...]
) -> Iterator[pa.RecordBatch]:
    for piece in pieces:
        with source_errors(table):
            yield from read_file(storage(), layout, piece)


def read_file(storage: Storage, layout: Layout, piece: FileRows) -> Iterator[pa.RecordBatch]:
    """The wanted rows of a file as the layout's columns.

    Raises:
        LogError: the file or its deletion vector cannot be read.
        DestinationError: the deletion vector is damaged.
        pa.ArrowException: the file is damaged, or a value does not fit its column.
    """
    keep = piece.keep(storage)
    with open_parquet(storage, piece.add["path"]) as file:
        held = in_file(layout, file.schema_arrow)
        groups = range(file.num_row_groups) if piece.groups is None else piece.groups
        for group in groups:
            at = sum(file.metadata.row_group(g).num_rows for g in range(group))
            for batch in _batches(file, group, held):
                wanted = keep(at, at + batch.num_rows)
                at += batch.num_rows
                chosen = batch if wanted is None else batch.filter(pa.array(wanted))
                if chosen.num_rows:
                    yield _as_table(chosen, layout, held, piece.add)


def _batches(
    file: pq.ParquetFile, group: int, held: Mapping[str, pa.Field]
) -> Iterator[pa.RecordBatch]:
    described = file.metadata.row_group(group)
    width = described.total_byte_size // max(described.num_rows, 1) + 1
    size = min(BATCH_ROWS, max(_FEWEST_ROWS, BATCH_BYTES // width))
    names = [field.name for field in held.values()]
    yield from file.iter_batches(size, row_groups=[group], columns=names)


def _as_table(
    batch: pa.RecordBatch, layout: Layout, held: Mapping[str, pa.Field], add: File
) -> pa.RecordBatch:
    def values(column: DataColumn) -> pa.Array:
        if column.name in held:
            field = held[column.name]
            return to_column(batch.column(field.name), field, column, by_id=layout.by_id)
        if column.name in layout.partitioned_by:
            value = partition_scalar(column, add.get("partitionValues") or {})
            return pa.repeat(value, batch.num_rows)
        return pa.nulls(batch.num_rows, column.type)

    return pa.record_batch([values(c) for c in layout.columns], schema=layout.arrow())
