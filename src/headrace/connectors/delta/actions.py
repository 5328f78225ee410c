"""The actions of a Delta commit, as the JSON objects that the log holds.

PROTOCOL.md, "Actions". An action is a dictionary with one key, its kind; those that others wrote
pass through with every field they had.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from headrace import __version__
from headrace.connectors.delta.stats import stats_of
from headrace.connectors.delta.vectors import unique_id
from headrace.model import Checkpoint, Lsn

Action = dict[str, Any]
File = Mapping[str, Any]  # what an add action says of a data file
LSN_SUFFIX = "#lsn"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def log_path(version: int) -> str:
    return f"_delta_log/{version:020d}.json"


def encode(actions: Iterable[Action]) -> bytes:
    lines = (json.dumps(action, separators=(",", ":"), ensure_ascii=False) for action in actions)
    return ("\n".join(lines) + "\n").encode()


def decode(data: bytes) -> list[Action]:
    return [json.loads(line) for line in data.splitlines() if line.strip()]


def add(
    path: str,
    size: int,
    stats: str,
    *,
    data_change: bool = True,
    partition_values: Mapping[str, str | None] | None = None,
) -> Action:
    """A new data file; `size` in bytes, `stats` as "Per-file Statistics" has them."""
    return {
        "add": {
            "path": path,
            "partitionValues": dict(partition_values or {}),
            "size": size,
            "modificationTime": now_ms(),
            "dataChange": data_change,
            "stats": stats,
        }
    }


def with_vector(
    file: Mapping[str, Any],
    descriptor: Mapping[str, Any],
    rows: int,
    *,
    data_change: bool = True,
) -> Action:
    """A file already in the table, with another deletion vector; `rows` it has in all.

    "Writer Requirement for Deletion Vectors": numRecords must be there. Bounds are wide from now.
    """
    stats = stats_of(file) | {"numRecords": rows, "tightBounds": False}
    text = json.dumps(stats, separators=(",", ":"), ensure_ascii=False)
    vector = {"stats": text, "deletionVector": dict(descriptor)}
    return {"add": {**file, "dataChange": data_change, **vector}}


def change_file(path: str, size: int, partition_values: Mapping[str, str | None]) -> Action:
    """A change data file; `size` in bytes. PROTOCOL.md, "Add CDC File"."""
    values = dict(partition_values)
    return {"cdc": {"path": path, "partitionValues": values, "size": size, "dataChange": False}}


def remove(file: Mapping[str, Any], *, data_change: bool = True) -> Action:
    """The tombstone of a file (with the deletion vector that it has)."""
    tombstone = {
        "path": file["path"],
        "deletionTimestamp": now_ms(),
        "dataChange": data_change,
        "extendedFileMetadata": True,
        "partitionValues": file.get("partitionValues") or {},
        "size": file["size"],
    }
    if file.get("tags"):
        tombstone["tags"] = file["tags"]
    if unique_id(file.get("deletionVector")):
        tombstone["deletionVector"] = file["deletionVector"]
    return {"remove": tombstone}


def transactions(app_id: str, at: Checkpoint) -> list[Action]:
    """The checkpoint, as two transaction identifiers: the log's commit, and the LSN."""
    return [
        {"txn": {"appId": identity, "version": version, "lastUpdated": now_ms()}}
        for identity, version in ((app_id, at.commit), (app_id + LSN_SUFFIX, int(at.lsn)))
    ]


def commit_info(
    operation: str,
    *,
    at: Checkpoint | None = None,
    after: Lsn | None = None,
    parameters: Mapping[str, Any] | None = None,
    metrics: Mapping[str, int] | None = None,
) -> Action:
    """Provenance: which of our operations this is, and the source position it brings.

    Up to the position `after` the version before is still what the source was.
    """
    info: dict[str, Any] = {
        "timestamp": now_ms(),
        "operation": operation,
        "operationParameters": dict(parameters or {}),
        "operationMetrics": {name: str(value) for name, value in (metrics or {}).items()},
        "isBlindAppend": False,
        "engineInfo": f"headrace/{__version__}",
    }
    if at is not None:
        info["headrace"] = {"logId": at.log_id, "commit": at.commit, "lsn": str(at.lsn)}
        if after is not None:
            info["headrace"]["after"] = str(after)
    return {"commitInfo": info}
