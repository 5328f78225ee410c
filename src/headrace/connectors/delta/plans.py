"""Commits other than those of a batch of changes, as lists of actions made from a table's state."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from headrace.connectors.delta import actions, conversion
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.constants import with_constants
from headrace.connectors.delta.maintenance import RETENTION_PROPERTIES
from headrace.connectors.delta.names import new_name
from headrace.connectors.delta.rows import live_rows
from headrace.connectors.delta.schema import (
    delta_schema,
    protocol_for,
    schema_change,
    with_features_of,
)
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.types import stored_schema
from headrace.connectors.delta.writer import LASTING_COMPRESSION, DataWriter
from headrace.log.storage import Storage
from headrace.model import Checkpoint, TableFormat, TableSchema

PIPELINE: Final = "headrace.pipeline"  # the table property that says whose a table is
LOG_ID: Final = "headrace.log"  # and from which change log its content comes
SOURCE: Final = "headrace.source"  # and which table it is there


def replacement(
    state: TableState | None,
    schema: TableSchema,
    adds: Sequence[Action],
    checkpoint: Sequence[Action],
    at: Checkpoint,
    *,
    pipeline: str,
    layout: TableFormat,
) -> list[Action]:
    """A commit that makes the table, or swaps all of its content and its schema for others."""
    old = state or TableState()
    needed = protocol_for(schema)
    standing = with_features_of(old.protocol, needed) or old.protocol
    protocol = conversion.protocol(standing, layout)
    configuration = {
        **RETENTION_PROPERTIES,
        **conversion.properties(old.configuration, layout),
        PIPELINE: pipeline,
        LOG_ID: at.log_id,
        SOURCE: str(schema.table),
    }
    metadata = {
        "format": {"provider": "parquet", "options": {}},
        "createdTime": actions.now_ms(),
        "id": str(uuid.uuid4()),
        **old.metadata,
        "partitionColumns": list(layout.partition_by),
        "schemaString": delta_schema(schema),
        "configuration": configuration,
    }
    metrics = {"numFiles": len(adds), "numRemovedFiles": len(old.files)}
    operation = "CREATE OR REPLACE TABLE AS SELECT" if state else "CREATE TABLE AS SELECT"
    return [
        actions.commit_info(operation, at=at, metrics=metrics),
        *_of_protocol(None if protocol == old.protocol else protocol),
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
    needed = protocol_for(schema)
    commit = [
        actions.commit_info("ADD COLUMNS", parameters={"columns": ", ".join(added)}),
        *_of_protocol(with_features_of(state.protocol, needed)),
        {"metaData": metadata},
    ]
    if constants:
        stored = stored_schema(schema.arrow())
        for file in state.files.values():
            batches = live_rows(storage, file, stored)
            filled = (with_constants(rows, constants) for rows in batches)
            values = file.get("partitionValues") or {}
            commit += [actions.remove(file), *_rewritten(storage, filled, stored, values)]
    return commit


def _rewritten(
    storage: Storage,
    rows: Iterable[pa.Table],
    schema: pa.Schema,
    values: Mapping[str, str | None],
) -> list[Action]:
    """The add action of a new file with these rows of one partition; none if there are no rows."""
    path = new_name(values)
    with storage.write() as group:
        writer = DataWriter(group.open(path), path, schema, LASTING_COMPRESSION, values)
        for batch in rows:
            writer.write(batch)
        add = writer.finish()
    if writer.rows:
        return [add]
    storage.delete([path])
    return []
