"""Writes change feeds as rows, and takes their net effect the naive way: dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from change_samples import canonical

from headrace.model import FEED_COLUMNS, NetChanges, TableSchema

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

# (change type, version, row)
FeedRow = tuple[str, int, Mapping[str, Any]]


def stamp(version: int) -> datetime:
    """When a version was committed, in these tests."""
    return EPOCH + timedelta(seconds=version)


def feed_schema(schema: TableSchema) -> pa.Schema:
    return pa.schema([*schema.arrow(), *FEED_COLUMNS])


def feed(schema: TableSchema, rows: Sequence[FeedRow]) -> pa.Table:
    """Missing columns are null."""
    names = schema.names
    data = [
        {n: row.get(n) for n in names}
        | {"_change_type": kind, "_commit_version": version, "_commit_timestamp": stamp(version)}
        for kind, version, row in rows
    ]
    return pa.Table.from_pylist(data, schema=feed_schema(schema))


def applied(rows: Mapping[Any, Any], changes: NetChanges) -> dict[Any, Any]:
    """A table by key, after the net changes."""
    key = list(changes.schema.key)
    after = dict(rows)
    for row in changes.deletes.to_pylist():
        after.pop(canonical([row[n] for n in key]), None)
    for row in changes.upserts.to_pylist():
        after[canonical([row[n] for n in key])] = row
    return after
