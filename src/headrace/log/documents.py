"""The JSON documents beside the commits (identity, floor, schemas), and finding the head."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from headrace.errors import LogCorruptError, LogError, ObjectExistsError, ObjectMissingError
from headrace.log.layout import Layout, manifest_number
from headrace.log.manifest import FORMAT, Manifest, decode, parse_document
from headrace.log.storage import Storage
from headrace.model import TableId, TableSchema


@dataclass(frozen=True)
class Floor:
    """What retention has removed: commits up to `commit`, snapshot files of those to `snapshots`.

    It is written before anything is removed.
    """

    commit: int = 0
    snapshots: int = 0


def read_identity(storage: Storage, layout: Layout) -> str:
    """The log's UUID. Raises ObjectMissingError if there is no log."""
    where = storage.location(layout.identity)
    return parse_document(storage.get(layout.identity), where, lambda d: str(d["log_id"]))


def create_identity(storage: Storage, layout: Layout) -> str:
    """Begin a log, under an id of its own; one whose other files are there is not begun anew."""
    if storage.list(layout.commits):
        raise LogCorruptError(
            f"{storage.location(layout.identity)} is missing, but the log holds commits",
            hint=f"restore it, or move {storage.location(layout.root)} away and resync",
        )
    identity = {
        "format": FORMAT,
        "log_id": str(uuid.uuid4()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        storage.put(layout.identity, json.dumps(identity).encode(), create=True)
    except ObjectExistsError:  # a retried request that had succeeded
        return read_identity(storage, layout)
    return identity["log_id"]


def read_floor(storage: Storage, layout: Layout) -> Floor:
    try:
        data = storage.get(layout.floor)
    except ObjectMissingError:
        return Floor()
    where = storage.location(layout.floor)
    return parse_document(data, where, lambda d: Floor(d["commit"], d["snapshots"]))


def write_floor(storage: Storage, layout: Layout, floor: Floor) -> None:
    data = {"format": FORMAT, "commit": floor.commit, "snapshots": floor.snapshots}
    storage.put(layout.floor, json.dumps(data).encode())


def read_manifest(storage: Storage, layout: Layout, commit: int) -> Manifest:
    """Raises ObjectMissingError; LogCorruptError where it is not what its name says."""
    path = layout.manifest(commit)
    manifest = decode(storage.get(path), storage.location(path))
    if manifest.commit != commit:
        raise LogCorruptError(
            f"{storage.location(path)} says that it is commit {manifest.commit}",
            hint="restore it from a backup",
            path=path,
        )
    return manifest


def list_commits(storage: Storage, layout: Layout) -> list[int]:
    """The numbers of all manifests, sorted."""
    numbers = (manifest_number(entry.path) for entry in storage.list(layout.commits))
    return [number for number in numbers if number is not None]


def check_continuous(numbers: Iterable[int], floor: Floor, where: str) -> int:
    """The head of a listing of commits, of which none may be missing above the floor.

    Raises:
        LogCorruptError: one is.
    """
    head = floor.commit
    for number in numbers:
        if number > floor.commit:
            if number != head + 1:
                raise LogCorruptError(
                    f"{where}: commit {head + 1} is missing, commit {number} is there",
                    hint="restore it from a backup, or move the log away and resync",
                )
            head = number
    return head


def write_schemas(storage: Storage, layout: Layout, schemas: Iterable[TableSchema]) -> None:
    """Put schema versions; the same ones again are no error. Raises LogError if one differs.

    Not for several threads at once.
    """
    new = [schema for schema in schemas if not _recorded(storage, layout, schema)]
    if not new:
        return
    try:
        with storage.write() as group:
            for schema in new:
                document = {"format": FORMAT, **schema.to_json()}
                file = group.open(layout.schema(schema.table, schema.version), create=True)
                file.write(json.dumps(document, ensure_ascii=False).encode())
    except ObjectExistsError:  # a retried request that had succeeded
        write_schemas(storage, layout, new)


def _recorded(storage: Storage, layout: Layout, schema: TableSchema) -> bool:
    path = layout.schema(schema.table, schema.version)
    if not storage.exists(path):
        return False
    # As JSON, where a NaN that older rows have is equal to itself.
    if read_schema(storage, path).to_json() != schema.to_json():
        raise LogError(
            f"{schema.table}: version {schema.version} of its schema is in the log already "
            "and differs; a new version must have a new number"
        )
    return True


def read_schema(storage: Storage, path: str) -> TableSchema:
    return parse_document(storage.get(path), storage.location(path), TableSchema.from_json)


def latest_schemas(storage: Storage, layout: Layout) -> dict[TableId, TableSchema]:
    """The newest schema version of each table that the log has ever seen."""
    newest: dict[str, tuple[int, str]] = {}
    for entry in storage.list(layout.schemas):
        folder, _, name = entry.path.rpartition("/")
        version = int(name.removesuffix(".json"))
        newest[folder] = max(newest.get(folder, (0, "")), (version, entry.path))
    schemas = (read_schema(storage, path) for _, path in newest.values())
    return {schema.table: schema for schema in schemas}
