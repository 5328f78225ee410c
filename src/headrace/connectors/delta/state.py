"""A Delta table's state: the replay of its log up to one version.

PROTOCOL.md, "Action Reconciliation" and "Checkpoints". The state is read once, from the newest
classic checkpoint and the commits after it, and then follows the log commit by commit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa

from headrace.connectors.delta.actions import Action, decode, log_path
from headrace.connectors.delta.checkpoints import (
    LOG,
    checkpoints_by_uuid,
    classic_checkpoints,
    classic_path,
    is_v2,
    read_checkpoint,
)
from headrace.connectors.delta.schema import arrow_schema
from headrace.connectors.delta.vectors import unique_id, vector_path
from headrace.errors import DestinationError, ObjectMissingError
from headrace.log.storage import Storage

_LAST_CHECKPOINT: Final = f"{LOG}/_last_checkpoint"
_COMMIT: Final = re.compile(rf"{LOG}/(\d{{20}})\.json")


@dataclass
class TableState:
    """What the log says as of `version`.

    `files` holds the add action of each live file under its path as the log writes it. `retired`
    tells when files (data or deletion vectors, as decoded paths) left the table, in ms since the
    epoch: older versions that readers may still use name them.
    """

    version: int = -1
    protocol: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    txns: dict[str, int] = field(default_factory=dict)
    retired: dict[str, int] = field(default_factory=dict)
    checkpoint_version: int = -1

    @property
    def configuration(self) -> Mapping[str, str]:
        return self.metadata.get("configuration") or {}

    @property
    def partition_by(self) -> Sequence[str]:
        return self.metadata.get("partitionColumns") or ()

    @property
    def columns(self) -> pa.Schema:
        """The columns that files are written with: also those that the source dropped."""
        return arrow_schema(self.metadata["schemaString"])

    def replay(self, version: int, actions: Iterable[Action]) -> None:
        """Go to `version` by its actions; their order inside a commit means nothing."""
        adds = []
        for action in actions:
            if "remove" in action:
                self._remove(action["remove"])
            elif "add" in action:
                adds.append(action["add"])
            elif "txn" in action:
                self.txns[action["txn"]["appId"]] = action["txn"]["version"]
            elif "metaData" in action:
                self.metadata = action["metaData"]
            elif "protocol" in action:
                self.protocol = action["protocol"]
        for add in adds:
            self.files[add["path"]] = {k: v for k, v in add.items() if v is not None}
        self.version = version

    def _remove(self, remove: Mapping[str, Any]) -> None:
        path, vector = remove["path"], remove.get("deletionVector")
        at = remove.get("deletionTimestamp") or 0
        live = self.files.get(path)
        if live is not None and unique_id(live.get("deletionVector")) == unique_id(vector):
            del self.files[path]
        gone = [unquote(path)]
        if vector and vector["storageType"] == "u":
            gone.append(vector_path(vector["pathOrInlineDv"]))
        for name in gone:
            self.retired[name] = max(at, self.retired.get(name, 0))

    def named_paths(self) -> set[str]:
        """Files that this version names: data files and deletion vectors, decoded."""
        named = {unquote(path) for path in self.files}
        vectors = (add.get("deletionVector") for add in self.files.values())
        return named | {
            vector_path(v["pathOrInlineDv"]) for v in vectors if v and v["storageType"] == "u"
        }


def load_state(storage: Storage) -> TableState | None:
    """The newest state of the table at the storage's root; None if there is no table.

    Raises:
        DestinationError: the log is not one that we can read.
    """
    state = _from_last_checkpoint(storage) or _from_listing(storage)
    if state is None:
        return None
    follow(storage, state)
    if state.version < 0:
        return None
    if not (state.protocol and state.metadata):
        raise DestinationError(
            f"the Delta log of {storage.url} lacks its protocol or metadata",
            hint=f"restore {storage.url}/{LOG} from a backup, or move the folder away",
        )
    return state


def follow(storage: Storage, state: TableState) -> list[Action]:
    """Replay the commits after the state's version; returns their actions.

    Raises:
        DestinationError: a commit is damaged.
    """
    seen: list[Action] = []
    while True:
        try:
            data = storage.get(log_path(state.version + 1))
        except ObjectMissingError:
            return seen
        actions = _decoded(storage, state.version + 1, data)
        state.replay(state.version + 1, actions)
        seen += actions


def _decoded(storage: Storage, version: int, data: bytes) -> list[Action]:
    try:
        return decode(data)
    except ValueError as error:
        raise DestinationError(
            f"{storage.location(log_path(version))} is damaged: {error}",
            hint=f"restore {storage.url}/{LOG} from a backup, or move the folder away",
        ) from error


def commit_versions(paths: Iterable[str]) -> list[int]:
    """The versions whose commits are among the paths of a log, in order."""
    return sorted(int(m[1]) for m in map(_COMMIT.fullmatch, paths) if m)


def _from_last_checkpoint(storage: Storage) -> TableState | None:
    """By the pointer, which saves the listing; it is a hint and may be absent or stale."""
    try:
        pointer = json.loads(storage.get(_LAST_CHECKPOINT))
        if pointer.get("parts") or pointer.get("v2Checkpoint"):
            return None
        return _read_checkpoint(storage, pointer["version"], [classic_path(pointer["version"])])
    except (ObjectMissingError, ValueError, KeyError):
        return None


def _from_listing(storage: Storage) -> TableState | None:
    paths = [entry.path for entry in storage.list(LOG)]
    commits = commit_versions(paths)
    if commits and commits[0] == 0:
        return TableState()
    checkpoints = classic_checkpoints(paths)
    if checkpoints:
        version = max(checkpoints)
        return _read_checkpoint(storage, version, checkpoints[version])
    if checkpoints_by_uuid(paths):
        raise _v2_error(storage)
    if commits:
        raise DestinationError(
            f"the Delta log of {storage.url} begins at version {commits[0]} without a checkpoint",
            hint=f"restore {storage.url}/{LOG} from a backup, or move the folder away",
        )
    return None


def _v2_error(storage: Storage) -> DestinationError:
    return DestinationError(
        f"{storage.url} has v2 checkpoints, which Headrace does not read",
        hint="set delta.checkpointPolicy=classic and drop the feature v2Checkpoint",
    )


def _read_checkpoint(storage: Storage, version: int, paths: Iterable[str]) -> TableState:
    state = TableState(checkpoint_version=version)
    actions = list(read_checkpoint(storage, paths))
    if any(map(is_v2, actions)):
        raise _v2_error(storage)
    state.replay(version, actions)
    return state
