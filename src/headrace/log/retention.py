"""What leaves the change log, and when: nothing that a registered reader has yet to see.

Order of removal: the floor is recorded, then data files go, then the manifests that name them. A
crash leaves manifests at or below the floor, which the next start finds and finishes; no commit
above the floor is ever incomplete. DESIGN.md §6, "retention".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from headrace.errors import LogCorruptError, ObjectMissingError
from headrace.log.documents import Floor, read_floor, read_manifest, write_floor
from headrace.log.layout import Layout
from headrace.log.manifest import FORMAT, Manifest, parse_document
from headrace.log.storage import Storage

if TYPE_CHECKING:
    from headrace.log.writer import LogWriter

REPLAY_WINDOW: Final = timedelta(hours=24)
LIMIT: Final = 10_000  # commits of one call: a second or so on a disk; the rest is for the next


def write_position(
    storage: Storage, layout: Layout, name: str, position: Mapping[str, Any]
) -> None:
    """Register a reader, or record how far it has come.

    `position` is JSON of the reader's own; each entry of its `tables` has a number `passed`: up to
    that commit, inclusive, the table needs the log no more.
    """
    data = {**position, "format": FORMAT, "name": name}
    storage.put(layout.reader(name), json.dumps(data, ensure_ascii=False).encode())


def read_position(storage: Storage, layout: Layout, name: str) -> dict[str, Any] | None:
    try:
        return _read(storage, layout.reader(name))
    except ObjectMissingError:
        return None


def forget_position(storage: Storage, layout: Layout, name: str) -> None:
    """Unregister a reader, for good: the log no longer waits for it."""
    storage.delete([layout.reader(name)])


def _read(storage: Storage, path: str) -> dict[str, Any]:
    return parse_document(storage.get(path), storage.location(path), dict)


def passed_by_all(storage: Storage, layout: Layout) -> int:
    """The newest commit that every table of every reader has passed; 0 without a reader."""
    return min((min(passed, default=0) for passed in _passed(storage, layout)), default=0)


def passed_by_any(storage: Storage, layout: Layout) -> int:
    """The newest commit that a table of a reader has passed; 0 without a reader."""
    return max((max(passed, default=0) for passed in _passed(storage, layout)), default=0)


def _passed(storage: Storage, layout: Layout) -> Iterator[list[int]]:
    """By reader, what each of its tables has passed."""
    for entry in storage.list(layout.readers):
        tables = _read(storage, entry.path).get("tables") or {}
        yield [int(table.get("passed") or 0) for table in tables.values()]


@dataclass(frozen=True)
class Expired:
    """What a call of `expire` removed."""

    commits: int
    snapshot_files: int


def expire(
    log: LogWriter,
    now: datetime,
    replay_window: timedelta = REPLAY_WINDOW,
    limit: int = LIMIT,
) -> Expired:
    """Remove what every reader has passed: snapshot files at once, commits after the window.

    May run beside the writer's commits, in one thread at a time. The head always stays.
    """
    storage, layout, head = log.storage, log.layout, log.head
    floor = read_floor(storage, layout)
    # Ranges of a table's copy lack what came after them.
    needed = [copy.after for copy in log.unfinished.values()]
    passed = min([passed_by_all(storage, layout), *needed])
    if head is None or not passed:
        return Expired(0, 0)
    snapshots = min(max(floor.snapshots, floor.commit) + limit, passed, head.commit)
    chunks = _chunks(storage, layout, range(max(floor.snapshots, floor.commit) + 1, snapshots + 1))
    last = min(floor.commit + limit, passed, head.commit - 1)
    old = _older(storage, layout, range(floor.commit + 1, last + 1), now - replay_window)
    commits = range(floor.commit + 1, floor.commit + len(old) + 1)
    new = Floor(floor.commit + len(old), max(snapshots, floor.snapshots))
    if new != floor:
        write_floor(storage, layout, new)
        storage.delete(chunks)
        remove_commits(storage, layout, commits)
    return Expired(len(commits), len(chunks))


def _chunks(storage: Storage, layout: Layout, commits: range) -> list[str]:
    manifests = (read_manifest(storage, layout, number) for number in commits)
    return [file.path for m in manifests for event in m.snapshots for file in event.files]


def _older(storage: Storage, layout: Layout, commits: range, than: datetime) -> list[Manifest]:
    found: list[Manifest] = []
    for number in commits:
        manifest = read_manifest(storage, layout, number)
        if manifest.written_at > than:
            break
        found.append(manifest)
    return found


def remove_commits(storage: Storage, layout: Layout, commits: Sequence[int]) -> None:
    """Remove commits at or below the floor: files first, then the manifests that name them."""
    paths: list[str] = []
    for number in commits:
        try:
            paths.extend(read_manifest(storage, layout, number).paths)
        except LogCorruptError:
            continue  # nobody can read it any more; its files stay, and only cost room
    storage.delete(paths)
    storage.delete([layout.manifest(number) for number in commits])
