"""What a table must hold that keeps every change as a row: its first load, then the whole feed.

That can be told only while the source still tells it: the version that was loaded, and every change
since (`delta.logRetentionDuration`, VACUUM).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from headrace.connectors.delta.source import DeltaSourceTable
from headrace.engine.compare import ReadRows
from headrace.engine.netting import append_rows, as_feed
from headrace.engine.sync_table import transform_of
from headrace.engine.transform import Transform
from headrace.errors import VerificationImpossibleError
from headrace.model import (
    Checkpoint,
    Lsn,
    Mode,
    RowRules,
    Segment,
    TableId,
    TableSchema,
)
from headrace.model.feed import tables


def appended_rows(
    source: DeltaSourceTable, name: TableId, rules: RowRules, loaded: int | None, at: Checkpoint
) -> tuple[TableSchema, ReadRows]:
    """The schema and the rows of the table `name`, which was loaded as of version `loaded`.

    Raises:
        VerificationImpossibleError: the source no longer tells every change since.
        HistoryLostError: it no longer tells the version that was loaded.
    """
    if loaded is None:
        raise _untold(name, "nobody knows as of which version it was loaded")
    plan = source.plan(Checkpoint(at.log_id, loaded, Lsn(loaded)), at.commit)
    if plan.loss is not None:
        raise _untold(name, plan.loss.reason)
    schema = _transform(source.schema(at.commit), name, rules).schema

    def read() -> Iterator[pa.Table]:
        for rows in _told(source, name, rules, loaded, plan.segments):
            yield _as_of(rows, schema)

    return schema, read


def _told(
    source: DeltaSourceTable,
    name: TableId,
    rules: RowRules,
    loaded: int,
    segments: Sequence[Segment],
) -> Iterator[tuple[TableSchema, pa.Table]]:
    """The rows as they were appended, each with the schema of its time."""
    first, stamp = source.schema(loaded), source.version(loaded)
    transform = _transform(first, name, rules)
    for rows in tables(source.rows(loaded)):
        yield from _appended(transform, first, as_feed(first, rows, stamp))
    for segment in segments:
        transform = _transform(segment.schema, name, rules)
        began = segment.versions[0].number
        for batch in source.changes(segment.schema, began, segment.last):
            yield from _appended(transform, segment.schema, pa.Table.from_batches([batch]))


def _appended(
    transform: Transform, schema: TableSchema, feed: pa.Table
) -> Iterator[tuple[TableSchema, pa.Table]]:
    changes = transform.changes(append_rows(schema, feed))
    for rows in (changes.upserts, *(rejected.rows for rejected in changes.rejected)):
        yield transform.schema, rows


def _transform(schema: TableSchema, name: TableId, rules: RowRules) -> Transform:
    return transform_of(replace(schema, table=name), rules, Mode.APPEND)


def _as_of(told: tuple[TableSchema, pa.Table], newest: TableSchema) -> pa.Table:
    """Rows of an older schema as the table has them since: it followed each change of columns."""
    schema, rows = told
    former = {column.attnum or column.name: column.name for column in schema.columns}
    columns = []
    for column in newest.columns:
        name = former.get(column.attnum or column.name)
        there = pa.nulls(rows.num_rows, column.type) if name is None else rows.column(name)
        columns.append(there.cast(column.type))
    return pa.Table.from_arrays(columns, schema=newest.arrow())


def _untold(name: TableId, why: str) -> VerificationImpossibleError:
    return VerificationImpossibleError(
        f"{name}: {why}; what was appended can be compared only while the source tells all of it",
        hint=f"headrace resync {name} begins anew with the rows that there are now",
        table=str(name),
    )
