"""Mode append: every change becomes a row, and no row ever changes.

A row holds what the source told of one change, whatever the others of its batch: so a change gives
the same row however the stream was cut. A value that the source did not send (unchanged TOAST) is
taken from the old row where that is told whole (REPLICA IDENTITY FULL); elsewhere it is null and
its column is named in `_unchanged`: the value stands in an earlier row of the same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.engine.conform import conform, with_common_identity
from headrace.engine.decorating import SNAPSHOT_OP, require_free
from headrace.engine.unchanged import unsent_columns, unsent_names
from headrace.model import (
    BEFORE,
    COMMIT_LSN,
    COMMIT_TS,
    OP,
    ORDINAL,
    UNCHANGED,
    XID,
    ChangeBatch,
    Column,
    Lsn,
    NetChanges,
    TableSchema,
)
from headrace.model.batch import before_type

LSN: Final = "_lsn"

# In the order of the table, with the batches' columns that they come from.
_TOLD: Final = {
    OP: (OP, pa.string()),
    LSN: (COMMIT_LSN, pa.int64()),
    ORDINAL: (ORDINAL, pa.int64()),
    COMMIT_TS: (COMMIT_TS, pa.timestamp("us", "UTC")),
    XID: (XID, pa.int64()),
}
SNAPSHOT_ORDINAL: Final = 1  # a snapshot's rows share it: they stand behind the mark at 0


def append_schema(schema: TableSchema, at: Lsn | None = None) -> TableSchema:
    """The schema of the table that holds every change; `missing` tells what rows of a snapshot as
    of `at` have. The table has no key.

    Raises:
        UnsuitableShapeError: a column of the source has the name of one that is added.
    """
    columns = [Column(name, kind, str(kind)) for name, (_, kind) in _TOLD.items()]
    columns.append(Column(BEFORE, before_type(schema), "record"))
    columns.append(Column(UNCHANGED, pa.list_(pa.string()), "text[]"))
    require_free(schema, [column.name for column in columns])
    known = dict(schema.missing)
    if at is not None:
        known |= {
            OP: pa.scalar(SNAPSHOT_OP),
            LSN: pa.scalar(int(at), pa.int64()),
            ORDINAL: pa.scalar(SNAPSHOT_ORDINAL, pa.int64()),
        }
    return replace(schema, columns=(*schema.columns, *columns), key=(), missing=known)


def append_changes(schema: TableSchema, batches: Sequence[ChangeBatch], after: Lsn) -> NetChanges:
    """The changes in `batches` that were committed after `after`, each as a row, in their order.

    `batches` are in position order and may have older versions of `schema`, which is the newest.

    Raises:
        UnsupportedSchemaChangeError: an older batch differs by more than added columns.
    """
    common = with_common_identity(schema, batches)
    told = append_schema(common)
    rows = [_rows(conform(batch, common), told, after) for batch in batches]
    upserts = pa.Table.from_batches(rows, schema=told.arrow())
    return NetChanges(told, upserts, upserts.slice(0, 0))


def _rows(batch: ChangeBatch, told: TableSchema, after: Lsn) -> pa.RecordBatch:
    data = batch.data.filter(pa.array(batch.data[COMMIT_LSN].to_numpy() > np.uint64(after)))
    before = data[BEFORE]
    columns = {name: data[name] for name in batch.schema.names}
    whole = {field.name for field in before.type} if _tells_whole_rows(batch.schema) else set()
    unsent = unsent_columns(pa.chunked_array([data[UNCHANGED]]), batch.schema.names)
    for name in unsent.keys() & whole:
        place = np.arange(data.num_rows)
        told_before = before.is_valid().to_numpy(zero_copy_only=False)
        source = place + (unsent[name] & told_before) * data.num_rows
        values = pa.concat_arrays([columns[name], before.field(name)])
        columns[name] = values.take(pa.array(source))
    for name, (source_name, kind) in _TOLD.items():
        columns[name] = data[source_name].cast(kind)
    columns[BEFORE] = before
    named = unsent_names(pa.chunked_array([data[UNCHANGED]]), batch.schema.names)
    columns[UNCHANGED] = pa.nulls(data.num_rows, named.type) if whole else named
    return pa.RecordBatch.from_arrays([columns[n] for n in told.names], schema=told.arrow())


def _tells_whole_rows(schema: TableSchema) -> bool:
    return len(before_type(schema)) == len(schema.names)
