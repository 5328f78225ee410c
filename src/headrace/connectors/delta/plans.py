"""Commits other than those of a batch of changes, as lists of actions made from a table's state."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.maintenance import RETENTION_PROPERTIES
from headrace.connectors.delta.names import new_name
from headrace.connectors.delta.rows import live_rows
from headrace.connectors.delta.schema import (
    arrow_schema,
    delta_schema,
    protocol_for,
    schema_change,
    with_features_of,
)
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.types import stored_schema, stored_type
from headrace.connectors.delta.writer import LASTING_COMPRESSION, DataWriter
from headrace.log.storage import Storage
from headrace.model import Checkpoint, TableSchema

PIPELINE: Final = "headrace.pipeline"  # the table property that says whose a table is
DELETION_VECTORS: Final = "delta.enableDeletionVectors"
LOG_ID: Final = "headrace.log"  # and from which change log its content comes
SOURCE: Final = "headrace.source"  # and which table it is there
_CHANGE_DATA_FEED: Final = "delta.enableChangeDataFeed"


def replacement(
    state: TableState | None,
    schema: TableSchema,
    adds: Sequence[Action],
    checkpoint: Sequence[Action],
    at: Checkpoint,
    *,
    pipeline: str,
    change_data_feed: bool,
) -> list[Action]:
    """A commit that makes the table, or swaps all of its content and its schema for others."""
    old = state or TableState()
    needed = protocol_for(schema, change_data_feed=change_data_feed)
    protocol = with_features_of(old.protocol, needed) if state else needed
    configuration = {
        **RETENTION_PROPERTIES,
        **old.configuration,
        DELETION_VECTORS: "true",
        PIPELINE: pipeline,
        LOG_ID: at.log_id,
        SOURCE: str(schema.table),
        **({_CHANGE_DATA_FEED: "true"} if change_data_feed else {}),
    }
    metadata = {
        "format": {"provider": "parquet", "options": {}},
        "createdTime": actions.now_ms(),
        "id": str(uuid.uuid4()),
        **old.metadata,
        "partitionColumns": [],
        "schemaString": delta_schema(schema),
        "configuration": configuration,
    }
    metrics = {"numFiles": len(adds), "numRemovedFiles": len(old.files)}
    operation = "CREATE OR REPLACE TABLE AS SELECT" if state else "CREATE TABLE AS SELECT"
    return [
        actions.commit_info(operation, at=at, metrics=metrics),
        *_of_protocol(protocol),
        {"metaData": metadata},
        *(actions.remove(file) for file in old.files.values()),
        *adds,
        *checkpoint,
    ]


def _of_protocol(protocol: Mapping[str, Any] | None) -> list[Action]:
    return [] if protocol is None else [{"protocol": dict(protocol)}]


def evolution(storage: Storage, state: TableState, schema: TableSchema) -> list[Action]:
    """A commit that adds the columns that `schema` has beyond the table; none if it has none.

    Rows that stand read NULL in a new column. Where the source has a constant for them instead,
    their files are rewritten with it, a batch of rows in memory at a time.

    Raises:
        UnsupportedSchemaChangeError: a column was dropped, renamed or got another type.
    """
    added = schema_change(state.metadata["schemaString"], schema).added
    if not added:
        return []
    constants = {name: schema.missing[name] for name in added if name in schema.missing}
    metadata = {**state.metadata, "schemaString": delta_schema(schema)}
    needed = protocol_for(schema, change_data_feed=False)
    commit = [
        actions.commit_info("ADD COLUMNS", parameters={"columns": ", ".join(added)}),
        *_of_protocol(with_features_of(state.protocol, needed)),
        {"metaData": metadata},
    ]
    if constants:
        stored = stored_schema(schema.arrow())
        for file in state.files.values():
            batches = live_rows(storage, file, stored)
            filled = (_with_constants(rows, constants) for rows in batches)
            commit += [actions.remove(file), *_rewritten(storage, filled, stored)]
    return commit


def _with_constants(rows: pa.Table, constants: Mapping[str, pa.Scalar]) -> pa.Table:
    for name, value in constants.items():
        field = rows.schema.field(name)
        column = pa.repeat(value.cast(stored_type(field.type)), rows.num_rows)
        rows = rows.set_column(rows.schema.get_field_index(name), field, column)
    return rows


def merging(storage: Storage, state: TableState, paths: Iterable[str]) -> list[Action]:
    """A commit that makes one file of the live rows of several, and changes no row."""
    files = [state.files[path] for path in paths]
    stored = arrow_schema(state.metadata["schemaString"])
    rows = (batch for file in files for batch in live_rows(storage, file, stored))
    return [
        actions.commit_info("OPTIMIZE", metrics={"numRemovedFiles": len(files)}),
        *(actions.remove(file, data_change=False) for file in files),
        *_rewritten(storage, rows, stored, data_change=False),
    ]


def _rewritten(
    storage: Storage, rows: Iterable[pa.Table], schema: pa.Schema, *, data_change: bool = True
) -> list[Action]:
    """The add action of a new file with these rows; none if there are no rows."""
    path = new_name()
    with storage.write() as group:
        writer = DataWriter(group.open(path), path, schema, LASTING_COMPRESSION)
        for batch in rows:
            writer.write(batch)
        add = writer.finish(data_change=data_change)
    if writer.rows:
        return [add]
    storage.delete([path])
    return []
