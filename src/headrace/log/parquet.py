"""The log's Parquet files: changes are written for speed, snapshots to be read for years."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.errors import LogCorruptError, LogError
from headrace.model import (
    BEFORE,
    COMMIT_LSN,
    COMMIT_TS,
    OP,
    XID,
    ChangeBatch,
    Lsn,
    TableSchema,
    TransactionEnd,
    change_schema,
)

# Measured on 60,000 rows of 11 columns: lz4 5 ms, snappy 5.5, zstd 8; with dictionaries 11.5.
# Checksums take 1 ms of that and tell a rotten page from data.
_CHANGES: Final[dict[str, Any]] = {
    "compression": "lz4",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}

# A reader prunes and parallelizes by row groups; a writing thread holds one in memory.
GROUP_ROWS: Final = 1 << 20
GROUP_BYTES: Final = 32 << 20  # of Arrow memory
SAMPLE_ROWS: Final = 256  # of a column, up to about so many bytes, tell in 0.1 ms
SAMPLE_BYTES: Final = 1 << 14  # whether it is worth compressing
WORTH: Final = 0.85  # at most so much must be left of it: 9 % of a hash took 3 ns a byte
BATCH_ROWS: Final = 1 << 16  # of a reader; wide rows take some 100 MB


def write_changes(file: IO[bytes], batch: ChangeBatch) -> None:
    """Write a batch as one Parquet file."""
    data = batch.data
    if not data.schema.field(BEFORE).type.num_fields:  # a table without columns: not in Parquet
        data = data.drop_columns([BEFORE])
    pq.write_table(pa.Table.from_batches([data]), file, **_CHANGES)


def count_ops(data: pa.RecordBatch) -> dict[str, int]:
    """Rows by operation."""
    counts = pc.value_counts(data.column(OP))
    return dict(Counter({entry["values"]: entry["counts"] for entry in counts.to_pylist()}))


def lsn_range(data: pa.RecordBatch) -> tuple[Lsn, Lsn] | None:
    """First and last commit LSN, or None while the transaction has not committed.

    Raises:
        LogError: some rows have one and others do not, or there are no rows.
    """
    column = data.column(COMMIT_LSN)
    if not len(column):
        raise LogError("an empty change batch is not staged")
    if column.null_count == 0:
        return Lsn(column[0].as_py()), Lsn(column[-1].as_py())
    if column.null_count == len(column):
        return None
    raise LogError("a change batch mixes committed changes with those of an open transaction")


def read_changes(
    data: bytes,
    schema: TableSchema,
    end: TransactionEnd | None,
    columns: Sequence[str] | None,
    where: str,
) -> pa.Table:
    """Read a file that `write_changes` wrote; `end` fills in what was not known then."""
    wanted = change_schema(schema)
    if columns is not None:
        wanted = pa.schema([wanted.field(name) for name in columns])
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            stored = set(file.schema_arrow.names)  # made anew each time that it is asked for
            names = [n for n in wanted.names if n in stored]
            # What Arrow's threads allocate they keep, when it is let go of elsewhere (mimalloc).
            table = file.read(columns=names, use_threads=False)
            rows = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise LogCorruptError(
            f"{where} is damaged: {error}", hint="headrace resync its table", path=where
        ) from error
    return _conform(table, wanted, rows, end)


def read_rows(file: Any, schema: pa.Schema, where: str) -> Iterator[pa.Table]:
    """The rows of a file that `RowWriter` wrote, or those columns of them, a batch at a time."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=schema.names):
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
    except (pa.ArrowException, OSError) as error:
        raise LogCorruptError(
            f"{where} is damaged: {error}", hint="headrace resync its table", path=where
        ) from error


def _conform(table: pa.Table, wanted: pa.Schema, rows: int, end: TransactionEnd | None) -> pa.Table:
    known = {} if end is None else _end_values(end)
    arrays = []
    for field in wanted:
        if field.name in known:
            value = pa.scalar(known[field.name], field.type)
            arrays.append(pa.repeat(value, rows))
        elif field.name in table.column_names:
            arrays.append(table.column(field.name))
        else:
            arrays.append(pa.nulls(rows, field.type))
    return pa.table(arrays, schema=wanted)


def _end_values(end: TransactionEnd) -> dict[str, Any]:
    return {COMMIT_LSN: int(end.commit_lsn), COMMIT_TS: end.commit_ts, XID: end.xid}


def _codecs(batch: pa.RecordBatch, codec: str) -> str | dict[str, str]:
    """How each column is compressed, judged by the first rows: not at all where it is no use.

    Hashes, random keys and what was compressed before cost more to try than all else about them.
    """
    if any(pa.types.is_nested(kind) for kind in batch.schema.types):
        return codec  # their leaves have paths of their own
    worth = (_shrinks(column, codec) for column in batch.columns)
    return {n: codec if w else "none" for n, w in zip(batch.schema.names, worth, strict=True)}


def _shrinks(column: pa.Array, codec: str) -> bool:
    """Whether to compress; columns of fixed width, which cost little, and where nothing is known,
    are."""
    if not (pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
        return True
    first = column.slice(0, SAMPLE_ROWS)
    few = max(1, SAMPLE_ROWS * SAMPLE_BYTES // max(first.nbytes, 1))
    values = [v for v in first.slice(0, few).view(pa.binary()).to_pylist() if v is not None]
    # As Parquet has it: the lengths, most of which go away, are part of it.
    sample = b"".join(len(v).to_bytes(4, "little") + v[:SAMPLE_BYTES] for v in values)
    return not sample or len(pa.compress(sample, codec, asbytes=True)) <= WORTH * len(sample)


class FileWriter(pq.ParquetWriter):  # type: ignore[misc]  # pyarrow has no types
    """Leaves a file as it is that nobody closes: a write failed, and it is about to be removed.

    Else its footer would be written when this is collected, and that fail where nobody can know.
    """

    def __del__(self) -> None:
        """Nothing."""


class RowWriter:
    """Writes record batches of one schema into a Parquet file, in row groups of a good size."""

    def __init__(self, file: IO[bytes], schema: TableSchema, compression: str) -> None:
        self._table = schema.table
        self._schema = schema.arrow()
        self._file = file
        self._compression = compression
        self._writer: FileWriter | None = None
        self._held: list[pa.RecordBatch] = []
        self._held_rows = self._held_bytes = 0
        self.rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. Raises LogError if their columns are not those of the table's schema."""
        if not batch.schema.equals(self._schema):
            raise LogError(
                f"{self._table}: rows for a snapshot have columns {batch.schema} "
                f"where the schema has {self._schema}"
            )
        self._held.append(batch)
        self._held_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        self.rows += batch.num_rows
        if self._held_rows >= GROUP_ROWS or self._held_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            table = pa.Table.from_batches(self._held, self._schema)
            self._opened().write_table(table, row_group_size=table.num_rows or 1)
        self._held, self._held_rows, self._held_bytes = [], 0, 0

    def _opened(self) -> FileWriter:
        if self._writer is None:
            codec, sample = self._compression, self._held[0] if self._held else None
            self._writer = FileWriter(
                self._file,
                self._schema,
                compression=codec if sample is None else _codecs(sample, codec),
                use_dictionary=False,
                write_page_checksum=True,
            )
        return self._writer

    def finish(self) -> None:
        """Write what is held and the footer."""
        self._flush()
        self._opened().close()
