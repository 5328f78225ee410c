"""Checkpoints of a Delta log, of every kind: which versions have one, and what it holds.

PROTOCOL.md, "Checkpoints": classic ones (one file, or several parts), and v2 ones (Parquet or JSON,
named by a UUID or as a classic one), whose file actions may be in sidecar files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.connectors.delta.actions import Action, decode
from headrace.connectors.delta.files import open_parquet
from headrace.log.storage import Storage

LOG: Final = "_delta_log"
_CLASSIC: Final = re.compile(rf"{LOG}/(\d{{20}})\.checkpoint(?:\.(\d{{10}})\.(\d{{10}}))?\.parquet")
_BY_UUID: Final = re.compile(rf"{LOG}/(\d{{20}})\.checkpoint\.[0-9a-f-]{{36}}\.(?:json|parquet)")

HEADER: Final = ("protocol", "metaData")
EVERYTHING: Final = (*HEADER, "txn", "remove", "add")
_V2: Final = ("checkpointMetadata", "sidecar")


def classic_path(version: int) -> str:
    return f"{LOG}/{version:020d}.checkpoint.parquet"


def classic_checkpoints(paths: Iterable[str]) -> dict[int, Sequence[str]]:
    """By version, the files of each classic checkpoint that has all of its parts."""
    whole: dict[int, Sequence[str]] = {}
    parts: dict[tuple[int, int], list[str]] = {}
    for match in filter(None, map(_CLASSIC.fullmatch, sorted(paths))):
        if match[3] is None:
            whole[int(match[1])] = [match[0]]
        else:
            parts.setdefault((int(match[1]), int(match[3])), []).append(match[0])
    for (version, count), found in parts.items():
        if len(found) == count:
            whole.setdefault(version, found)
    return whole


def checkpoints_by_uuid(paths: Iterable[str]) -> dict[int, Sequence[str]]:
    """By version, the top file of a v2 checkpoint; any one of several will do."""
    return {int(match[1]): [match[0]] for match in filter(None, map(_BY_UUID.fullmatch, paths))}


def is_v2(action: Action) -> bool:
    """Whether only a v2 checkpoint has such an action."""
    return any(kind in action for kind in _V2)


def read_checkpoint(
    storage: Storage, paths: Iterable[str], kinds: Sequence[str] = EVERYTHING
) -> Iterator[Action]:
    """The actions of some kinds, and those that only v2 checkpoints have, sidecars not followed.

    Raises:
        LogError: a file is missing or damaged.
    """
    for path in paths:
        if path.endswith(".json"):
            wanted = (*kinds, *_V2)
            yield from (a for a in decode(storage.get(path)) if any(k in a for k in wanted))
        else:
            yield from _parquet_actions(storage, path, (*_V2, *kinds))


def with_sidecars(
    storage: Storage, actions: Iterable[Action], kinds: Sequence[str] = EVERYTHING
) -> Iterator[Action]:
    """`actions` of a checkpoint, and in place of each sidecar its file actions of these kinds."""
    for action in actions:
        if "sidecar" not in action:
            yield action
        elif set(kinds) - set(HEADER):
            name = action["sidecar"]["path"].rpartition("/")[2]
            yield from _parquet_actions(storage, f"{LOG}/_sidecars/{name}", kinds)


def _parquet_actions(storage: Storage, path: str, kinds: Sequence[str]) -> Iterator[Action]:
    with open_parquet(storage, path) as file:
        present = [kind for kind in kinds if kind in file.schema_arrow.names]
        for kind in present:
            yield from ({kind: value} for value in _values(file, kind))


def _values(file: pq.ParquetFile, kind: str) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(columns=[kind]):
        column: pa.Array = batch.column(0).drop_null()
        yield from column.to_pylist(maps_as_pydicts="strict")
