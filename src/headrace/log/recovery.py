"""What a writer does before its first commit: find the head, shut the former writer out, sweep.

A data file exists once a manifest names it. Those that none names are left of a crash; `settled` in
the newest manifest says from which commit number on they can be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from headrace.errors import LogCorruptError, ObjectMissingError
from headrace.log.anew import finish_anew
from headrace.log.documents import (
    Floor,
    check_continuous,
    create_identity,
    list_commits,
    read_floor,
    read_identity,
    read_manifest,
)
from headrace.log.layout import Layout, staged_under
from headrace.log.manifest import Manifest
from headrace.log.retention import passed_by_any, remove_commits
from headrace.log.storage import Storage

_REQUESTS: Final = 16  # at a time, so that an object store's latency does not add up


@dataclass(frozen=True)
class Recovered:
    """Where the log stands."""

    log_id: str
    floor: Floor
    head: Manifest | None


def recover(storage: Storage, layout: Layout) -> Recovered:
    """Find the head, having made durable what a crashed process left visible. Needs the lock.

    A manifest that can be seen may have been read; it must not vanish by a power cut later on.
    """
    finish_anew(storage, layout)
    try:
        log_id = read_identity(storage, layout)
    except ObjectMissingError:
        log_id = create_identity(storage, layout)
    for folder in (layout.commits, layout.schemas, layout.unfinished, *layout.data):
        storage.recover(folder)
    floor = read_floor(storage, layout)
    numbers = list_commits(storage, layout)
    number = check_continuous(numbers, floor, storage.location(layout.commits))
    remove_commits(storage, layout, [n for n in numbers if n <= floor.commit])
    head = read_manifest(storage, layout, number) if number > floor.commit else None
    _require_end(storage, layout, number)
    return Recovered(log_id, floor, head)


def _require_end(storage: Storage, layout: Layout, head: int) -> None:
    """A log that lost its newest commits must not give their numbers again.

    A destination would take the new ones for those that it has applied, and leave them out.
    """
    passed = passed_by_any(storage, layout)
    if passed > head:
        raise LogCorruptError(
            f"{storage.location(layout.commits)} ends with commit {head}, but commit {passed} has "
            "been read from it",
            hint="restore it from a backup; or headrace destroy, then headrace run copies the "
            "tables again",
        )


def sweep(
    storage: Storage,
    layout: Layout,
    floor: Floor,
    head: Manifest | None,
    kept: Collection[str] = (),
) -> list[str]:
    """Remove the data files that no manifest names, but for those `kept`; their paths. Needs the
    lock.

    The former writer must not be able to commit any more, or what it names could be swept. What
    expired commits named is gone already, so that what is left is named above the floor or nowhere.
    """
    settled = head.settled if head else 0
    suspects = {
        entry.path
        for folder in layout.data
        for entry in storage.list(folder)
        if (number := staged_under(entry.path)) is not None and number > settled
    }.difference(kept)
    if suspects and head:
        first = max(settled, floor.commit) + 1
        for manifest in _manifests(storage, layout, first, head.commit):
            suspects -= manifest.paths
    orphans = sorted(suspects)
    storage.delete(orphans)
    return orphans


def _manifests(storage: Storage, layout: Layout, first: int, last: int) -> Iterator[Manifest]:
    with ThreadPoolExecutor(_REQUESTS) as pool:
        yield from pool.map(lambda n: read_manifest(storage, layout, n), range(first, last + 1))
