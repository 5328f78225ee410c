"""Snapshot files of the change log become data files of the table, without being encoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.files import open_parquet, take_over
from headrace.connectors.delta.names import new_name
from headrace.connectors.delta.rows import live_rows
from headrace.connectors.delta.stats import file_stats
from headrace.connectors.delta.types import same_in_parquet, stored_schema
from headrace.connectors.delta.writer import LASTING_COMPRESSION, DataWriter
from headrace.failpoints import hit
from headrace.log.storage import Storage
from headrace.model import TableSchema


def adopt(
    storage: Storage, options: Mapping[str, str], schema: TableSchema, files: Sequence[str]
) -> list[Action]:
    """Put snapshot files into the table's folder; returns the add actions of those with rows.

    Those whose columns Delta cannot read as they stand, such as times of day, are rewritten.

    Raises:
        LogError: a file cannot be read or written.
        DestinationError: Delta cannot hold a column's type, or a value does not fit it.
    """
    stored = stored_schema(schema.arrow())
    names = [new_name() for _ in files]
    take_over(storage, options, files, names)
    adds = [_adopted(storage, name, stored) for name in names]
    hit("delta.load_linked")
    return [add for add in adds if add is not None]


def _adopted(storage: Storage, name: str, stored: pa.Schema) -> Action | None:
    with open_parquet(storage, name) as file:
        metadata, arrow = file.metadata, file.schema_arrow
    if metadata.num_rows and _readable_as(arrow, stored):
        return actions.add(name, storage.size(name), file_stats(metadata))
    add = _rewritten(storage, name, stored) if metadata.num_rows else None
    storage.delete([name])
    return add


def _rewritten(storage: Storage, name: str, stored: pa.Schema) -> Action:
    path = new_name()
    with storage.write() as group:
        writer = DataWriter(group.open(path), path, stored, LASTING_COMPRESSION)
        for rows in live_rows(storage, {"path": name}, stored):
            writer.write(rows)
        return writer.finish()


def _readable_as(arrow: pa.Schema, stored: pa.Schema) -> bool:
    """A column that the file lacks is null in Delta; one that the table lacks is not read."""
    shared = [field for field in stored if field.name in arrow.names]
    return all(same_in_parquet(arrow.field(f.name).type, f.type) for f in shared)
