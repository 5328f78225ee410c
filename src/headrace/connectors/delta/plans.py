"""Commits other than those of a batch of changes, as lists of actions made from a table's state."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final

from headrace.connectors.delta import actions, conversion
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.maintenance import RETENTION_PROPERTIES
from headrace.connectors.delta.schema import (
    delta_schema,
    protocol_for,
    with_features_of,
)
from headrace.connectors.delta.state import TableState
from headrace.model import Checkpoint, TableFormat, TableSchema

KIND: Final = "headrace.mode"  # the table property that says what its rows mean
PIPELINE: Final = "headrace.pipeline"  # the table property that says whose a table is
LOG_ID: Final = "headrace.log"  # and from which change log its content comes
SOURCE: Final = "headrace.source"  # and which table it is there


def replacement(
    old: TableState,
    schema: TableSchema,
    adds: Sequence[Action],
    at: Checkpoint,
    *,
    pipeline: str,
    layout: TableFormat,
    kind: str,
    keeps_files: bool = False,
) -> list[Action]:
    """A commit that makes the table, or swaps all of its content and its schema for others.

    With `keeps_files` the content that stands stays beside the other, and the schema too.
    """
    needed = protocol_for(schema)
    standing = with_features_of(old.protocol, needed) or old.protocol
    protocol = conversion.protocol(standing, layout)
    configuration = {
        **RETENTION_PROPERTIES,
        **conversion.properties(old.configuration, layout),
        PIPELINE: pipeline,
        KIND: kind,
        LOG_ID: at.log_id,
        SOURCE: str(schema.table),
    }
    metadata = {
        "format": {"provider": "parquet", "options": {}},
        "createdTime": actions.now_ms(),
        "id": str(uuid.uuid4()),
        **old.metadata,
        "partitionColumns": list(layout.partition_by),
        "schemaString": old.metadata["schemaString"] if keeps_files else delta_schema(schema),
        "configuration": configuration,
    }
    replaced = [] if keeps_files else list(old.files.values())
    metrics = {"numFiles": len(adds), "numRemovedFiles": len(replaced)}
    verb = "CREATE" if old.version < 0 else "CREATE OR REPLACE"
    return [
        actions.commit_info(f"{verb} TABLE AS SELECT", at=at, metrics=metrics),
        *([] if protocol == old.protocol else [{"protocol": protocol}]),
        {"metaData": metadata},
        *(actions.remove(file) for file in replaced),
        *adds,
    ]
