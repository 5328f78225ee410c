"""Rows of a transaction in progress that cannot be read yet: kept on disk as they came.

A table that the transaction itself has altered looks, until it commits, like nothing that another
session can see in the catalog. After a crash the server sends the transaction again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.log.storage import temporary_errors, temporary_file
from headrace.pgoutput import RawBatch, RawColumn, Relation

_ROWS: Final = ("ops", "ordinals", "commit_lsns", "commit_ts", "xids", "old_kind")


class RawSpill:
    """Raw batches in a temporary file, read back in order; one thread."""

    def __init__(self) -> None:
        self._file = temporary_file()
        self._relations: list[Relation] = []

    def add(self, batch: RawBatch) -> None:
        """Raises LogFullError: there is no room for temporary files."""
        columns = [*batch.new, *(batch.old or ())]
        arrays = [pa.array(getattr(batch, name)) for name in _ROWS]
        arrays += [array for column in columns for array in (_kinds(column), _values(column))]
        data = pa.RecordBatch.from_arrays(arrays, [str(i) for i in range(len(arrays))])
        file = pa.PythonFile(self._file, "w")
        with temporary_errors(), pa.ipc.new_stream(file, data.schema) as writer:
            writer.write_batch(data)
        self._relations.append(batch.relation)

    def read(self) -> Iterator[RawBatch]:
        """What was added; nothing may be added afterwards."""
        self._file.seek(0)
        for relation in self._relations:
            with pa.ipc.open_stream(pa.PythonFile(self._file, "r")) as reader:
                yield _raw(relation, reader.read_next_batch())
                assert not list(reader)  # its end is read too

    def close(self) -> None:
        self._file.close()


def _kinds(column: RawColumn) -> pa.Array:
    return pa.array(column.kinds)


def _values(column: RawColumn) -> pa.Array:
    """All values, those that are not there as empty ones."""
    buffers = [None, pa.py_buffer(column.offsets), column.data]
    return pa.Array.from_buffers(pa.binary(), len(column.kinds), buffers, 0)


def _raw(relation: Relation, data: pa.RecordBatch) -> RawBatch:
    rows = {name: data.column(i).to_numpy(zero_copy_only=False) for i, name in enumerate(_ROWS)}
    pairs = [
        _column(data.column(i), data.column(i + 1)) for i in range(len(_ROWS), data.num_columns, 2)
    ]
    width = len(relation.columns)
    old = pairs[width:] if rows["old_kind"].any() else None
    return RawBatch(relation, 0, **rows, new=pairs[:width], old=old)


def _column(kinds: pa.Array, values: pa.BinaryArray) -> RawColumn:
    _, offsets, data = values.buffers()
    found: npt.NDArray[np.int32] = np.frombuffer(offsets, np.int32, len(values) + 1)
    return RawColumn(
        kinds.to_numpy(zero_copy_only=False),
        found,
        pa.py_buffer(b"") if data is None else data,
    )
