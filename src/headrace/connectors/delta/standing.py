"""What a Delta table holds as of one version, to be compared with its source and mended in place.

It is read by the deltalake library, not by what wrote it: what other readers see is what counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from headrace.connectors.delta.plans import LOG_ID
from headrace.connectors.delta.reading import read_all
from headrace.connectors.delta.schema import ATTNUM, delta_schema
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.types import stored_schema, to_stored
from headrace.model import TableSchema


@dataclass(frozen=True)
class StandingContent:
    """Fulfils `Content`: the rows of `version`; `schema` has the stored types."""

    url: str
    options: Mapping[str, str]
    version: int
    schema: TableSchema

    def rows(self) -> Iterator[pa.Table]:
        """All rows, in pieces; raises as `read_all` does."""
        options = dict(self.options) or None
        table = DeltaTable(self.url, version=self.version, storage_options=options)
        return map(self.held, read_all(table))

    def held(self, rows: pa.Table) -> pa.Table:
        return to_stored(rows, self.schema.arrow())


def stored_columns(schema: TableSchema) -> TableSchema:
    """The schema in the types that a Delta table holds its columns in."""
    stored = stored_schema(schema.arrow())
    columns = tuple(replace(c, type=stored.field(c.name).type) for c in schema.columns)
    return replace(schema, columns=columns)


def has_columns(state: TableState, schema: TableSchema) -> bool:
    """Whether the table has just the columns of `schema`, in their types."""
    there = {field.name: field.type for field in state.columns}
    wanted = {field.name: field.type for field in stored_schema(schema.arrow())}
    return there == wanted


def redescribed(state: TableState, schema: TableSchema, log_id: str) -> list[dict[str, Any]]:
    """The metaData that says what a mended table follows from now on; none where it does already.

    A restored source numbers its columns anew, and a lost change log has another identity.
    """
    if not _numbered_alike(state.metadata["schemaString"], delta_schema(schema)):
        metadata = {**state.metadata, "schemaString": delta_schema(schema)}
    elif state.configuration.get(LOG_ID) == log_id:
        return []
    else:
        metadata = dict(state.metadata)
    return [{"metaData": {**metadata, "configuration": {**state.configuration, LOG_ID: log_id}}}]


def _numbered_alike(before: str, now: str) -> bool:
    """Whether two schemas of the same columns hold the same catalog numbers of them."""

    def numbers(text: str) -> dict[str, Any]:
        fields = json.loads(text)["fields"]
        return {field["name"]: field["metadata"].get(ATTNUM) for field in fields}

    return numbers(before) == numbers(now)
