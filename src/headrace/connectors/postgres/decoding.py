"""From the decoder's raw text columns to change batches: the last pure step on the way in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.connectors.postgres.types import TypeMapping
from headrace.errors import UnrepresentableValueError
from headrace.model import ChangeBatch, TableSchema, TransactionEnd, change_schema
from headrace.model.batch import BEFORE, COMMIT_LSN, COMMIT_TS, OP, ORDINAL, UNCHANGED, XID
from headrace.pgcopy import CopiedColumn, CopiedRows, Wanted
from headrace.pgoutput import RawBatch, RawColumn

UNCHANGED_KIND = ord("u")


@dataclass(frozen=True)
class BoundSchema:
    """A schema version together with how each of its columns is read from text."""

    schema: TableSchema
    mappings: tuple[TypeMapping, ...]

    def read(self, column: int, text: pa.BinaryArray) -> pa.Array:
        """A column's values from the texts that the stream has. Raises as `naming` tells."""
        with self.naming(column):
            return self.mappings[column].from_text(text)

    @property
    def wanted(self) -> list[Wanted]:
        """What a COPY of a snapshot's SELECT is to be decoded to."""
        return [mapping.wanted for mapping in self.mappings]

    def copied(self, rows: CopiedRows) -> pa.RecordBatch:
        """The rows that a snapshot's SELECT gave. Raises as `naming` tells."""
        arrays = [self._copied(index, column) for index, column in enumerate(rows.columns)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema.arrow())

    def _copied(self, index: int, column: CopiedColumn) -> pa.Array:
        with self.naming(index):
            return self.mappings[index].from_copy(column)

    @contextmanager
    def naming(self, column: int) -> Iterator[None]:
        """Casts do not know whose values they are given: name the column in their errors.

        Raises:
            UnrepresentableValueError: a value has no exact Arrow form.
        """
        try:
            yield
        except UnrepresentableValueError as error:
            name = self.schema.names[column]
            text_already = pa.types.is_string(self.mappings[column].arrow)
            way_out = f"; read as text, it can: columns: {{as: {{{name}: text}}}}"
            raise UnrepresentableValueError(
                f"{self.schema.table}: column {name!r}: {error.message}"
                f"{'' if text_already else way_out}",
                hint=f"headrace resync {self.schema.table}, when that or the value is changed",
                table=str(self.schema.table),
                column=name,
                **error.context,
            ) from error


def decode_batch(raw: RawBatch, bound: BoundSchema) -> ChangeBatch:
    """All rows of `raw` as one change batch.

    Raises:
        UnrepresentableValueError: a value has no exact Arrow form.
    """
    layout = change_schema(bound.schema)
    arrays = {
        **_columns(raw.new, bound),
        OP: _ops(raw.ops),
        COMMIT_LSN: pa.array(raw.commit_lsns, pa.uint64()),
        ORDINAL: pa.array(raw.ordinals, pa.uint64()),
        COMMIT_TS: pa.array(raw.commit_ts, pa.int64()).cast(layout.field(COMMIT_TS).type),
        XID: pa.array(raw.xids, pa.uint32()),
        UNCHANGED: unchanged_bitmaps(len(raw.ops), [column.kinds for column in raw.new]),
        BEFORE: _before(raw, bound, layout.field(BEFORE).type),
    }
    data = pa.RecordBatch.from_arrays([arrays[name] for name in layout.names], schema=layout)
    return ChangeBatch(bound.schema, data)


def without_commit(batch: ChangeBatch) -> ChangeBatch:
    """The batch of a transaction whose commit is still to come: what only that tells is null."""
    return _with(batch, {COMMIT_LSN: None, COMMIT_TS: None})


def with_end(batch: ChangeBatch, end: TransactionEnd) -> ChangeBatch:
    """The batch of a transaction, now that its commit has come."""
    known = {COMMIT_LSN: int(end.commit_lsn), COMMIT_TS: end.commit_ts, XID: end.xid}
    return _with(batch, known)


def _with(batch: ChangeBatch, values: Mapping[str, Any]) -> ChangeBatch:
    data = batch.data
    for name, value in values.items():
        index = data.schema.get_field_index(name)
        field = data.schema.field(index)
        column = pa.repeat(pa.scalar(value, field.type), data.num_rows)
        data = data.set_column(index, field, column)
    return ChangeBatch(batch.schema, data)


def _columns(raw: Sequence[RawColumn], bound: BoundSchema) -> dict[str, pa.Array]:
    return {
        name: bound.read(index, column.text())
        for index, (name, column) in enumerate(zip(bound.schema.names, raw, strict=True))
    }


def _ops(ops: npt.NDArray[np.uint8]) -> pa.Array:
    offsets = np.arange(len(ops) + 1, dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(ops), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(ops))
    )


def unchanged_bitmaps(rows: int, kinds: Sequence[npt.NDArray[np.uint8]]) -> pa.Array:
    """Per row a little-endian bitmap of the columns that were not sent, or null if all were."""
    marked = [column for column, kind in enumerate(kinds) if (kind == UNCHANGED_KIND).any()]
    if not marked:
        return pa.nulls(rows, pa.binary())
    flags = np.zeros((rows, len(kinds)), dtype=bool)
    for column in marked:
        flags[:, column] = kinds[column] == UNCHANGED_KIND
    packed = np.packbits(flags, axis=1, bitorder="little")
    fixed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(packed.shape[1]),
        rows,
        [_validity(np.logical_or.reduce(flags, axis=1)), pa.py_buffer(packed)],
    )
    return fixed.cast(pa.binary())


def _validity(valid: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(valid, bitorder="little"))


def _before(raw: RawBatch, bound: BoundSchema, kind: pa.StructType) -> pa.Array:
    if raw.old is None:
        return pa.nulls(len(raw.ops), kind)
    positions = [bound.schema.names.index(field.name) for field in kind]
    values = [bound.read(i, raw.old[i].text()) for i in positions]
    absent = pa.array(raw.old_kind == 0)
    return pa.StructArray.from_arrays(values, fields=list(kind), mask=absent)
