"""Snapshot files of the change log become data files of the table, without being encoded again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.arrangement import check_layout, divided, in_order, pieces
from headrace.connectors.delta.constants import with_constants
from headrace.connectors.delta.files import open_parquet, take_over
from headrace.connectors.delta.names import new_name
from headrace.connectors.delta.rewriting import write_anew
from headrace.connectors.delta.rows import live_rows
from headrace.connectors.delta.stats import file_stats
from headrace.connectors.delta.types import same_in_parquet, stored_schema
from headrace.connectors.delta.writer import LASTING_COMPRESSION, DataWriter
from headrace.failpoints import hit
from headrace.log.storage import Storage
from headrace.model import TableFormat, TableSchema

ARRANGED_BYTES: Final = 128 << 20  # in memory, while rows are put in order; two or three such
IN_MEMORY: Final = 4  # times what rows take in a file, roughly


def adopt(
    storage: Storage,
    options: Mapping[str, str],
    schema: TableSchema,
    files: Sequence[str],
    layout: TableFormat,
) -> list[Action]:
    """Put snapshot files into the table's folder; returns the add actions of those with rows.

    Those whose columns Delta cannot read as they stand, such as times of day, are rewritten, and so
    are those that lack a column in which `schema.missing` has a value for all of their rows: Delta
    reads null in a column that a file lacks. Where rows are to be in partitions, or in order, all
    files are.

    Raises:
        LogError: a file cannot be read or written.
        DestinationError: Delta cannot hold a column's type, or a value does not fit it.
    """
    stored = stored_schema(schema.arrow())
    check_layout(stored, layout)
    names = [new_name() for _ in files]
    take_over(storage, options, files, names)
    if layout.partition_by or layout.cluster_by:
        adds = list(_arranged(storage, names, stored, schema.missing, layout))
        storage.delete(names)
    else:
        adds = [a for name in names for a in _adopted(storage, name, stored, schema.missing)]
    hit("delta.load_linked")
    return adds


def snapshot_rows(
    storage: Storage,
    options: Mapping[str, str],
    schema: TableSchema,
    stored: pa.Schema,
    files: Sequence[str],
) -> Iterator[pa.Table]:
    """The rows of snapshot files in large pieces, with `schema.missing` in columns that they lack.

    Raises:
        LogError: a file cannot be read.
        DestinationError: a value does not fit its column.
    """
    names = [new_name() for _ in files]
    take_over(storage, options, files, names)
    yield from _chunks(rows for n in names for rows in _rows(storage, n, stored, schema.missing))
    storage.delete(names)


def _arranged(
    storage: Storage,
    names: Sequence[str],
    stored: pa.Schema,
    missing: Mapping[str, pa.Scalar],
    layout: TableFormat,
) -> Iterator[Action]:
    clustering = layout.clustering
    batches = (rows for name in names for rows in _rows(storage, name, stored, missing))
    for chunk in _chunks(batches):
        with storage.write() as group:
            for values, positions in divided(chunk, layout.partition_by):
                rows = chunk.take(pa.array(positions))
                for piece in pieces(in_order(rows, clustering), rows.nbytes // IN_MEMORY):
                    path = new_name()
                    writer = DataWriter(group.open(path), path, stored, LASTING_COMPRESSION, values)
                    writer.write(rows.take(pa.array(piece)))
                    yield writer.finish()


def _chunks(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows in as large pieces as are arranged at a time."""
    held: list[pa.Table] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size > ARRANGED_BYTES:
            yield pa.concat_tables(held)
            held, size = [], 0
    if held:
        yield pa.concat_tables(held)


def _adopted(
    storage: Storage, name: str, stored: pa.Schema, missing: Mapping[str, pa.Scalar]
) -> list[Action]:
    with open_parquet(storage, name) as file:
        metadata, arrow = file.metadata, file.schema_arrow
    as_it_stands = _readable_as(arrow, stored) and not missing.keys() - set(arrow.names)
    if metadata.num_rows and as_it_stands:
        return [actions.add(name, storage.size(name), file_stats(metadata))]
    rows = _rows(storage, name, stored, missing)
    adds = write_anew(storage, rows, stored, {}) if metadata.num_rows else []
    storage.delete([name])
    return adds


def _rows(
    storage: Storage, name: str, stored: pa.Schema, missing: Mapping[str, pa.Scalar]
) -> Iterator[pa.Table]:
    """All rows of a snapshot's file, with the values of the columns that it lacks."""
    with open_parquet(storage, name) as file:
        has = set(file.schema_arrow.names)
    constants = {n: value for n, value in missing.items() if n not in has}
    for rows in live_rows(storage, {"path": name}, stored):
        yield with_constants(rows, constants)


def _readable_as(arrow: pa.Schema, stored: pa.Schema) -> bool:
    """A column that the file lacks is null in Delta; one that the table lacks is not read."""
    shared = [field for field in stored if field.name in arrow.names]
    return all(same_in_parquet(arrow.field(f.name).type, f.type) for f in shared)
