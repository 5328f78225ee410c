"""Keeping a table fit to read: which files to rewrite, checkpoints, and sweeping of dead files.

All of it is done beside the commits of the table's writer (see `upkeep`), in bounded portions.
deltalake's `vacuum(full=True)` is never called: it deletes deletion vectors that are in use.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from headrace.connectors.delta.actions import File
from headrace.connectors.delta.arrangement import CLUSTERED_BYTES
from headrace.connectors.delta.failures import plain
from headrace.connectors.delta.names import made_at_ms
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.stats import PREFIX, known_rows, stats_of
from headrace.connectors.delta.vectors import cardinality
from headrace.errors import DestinationUnavailableError
from headrace.log.storage import Storage

# A busy table makes a commit a second or more: a week of them would be more log than table. The
# user's own setting of these properties stands.
RETENTION_PROPERTIES: Final = {
    "delta.logRetentionDuration": "interval 1 day",
    "delta.deletedFileRetentionDuration": "interval 1 day",
}

CHECKPOINT_EVERY: Final = 100  # commits; opening 500 without one takes 0.17 s, with one 0.01 s
SWEEP_EVERY: Final = 1000  # commits; one listing of the table's folder
_DEFAULT_RETENTION: Final = "interval 7 days"  # Delta's, of deletedFileRetentionDuration
_DURATION: Final = re.compile(r"(?:interval\s+)?(\d+)\s+(week|day|hour|minute|second)s?", re.I)
_UNIT_MS: Final = {
    "week": 604_800_000,
    "day": 86_400_000,
    "hour": 3_600_000,
    "minute": 60_000,
    "second": 1_000,
}


@dataclass(frozen=True)
class Policy:
    """When files are worth rewriting, and how much of it is done at a time.

    Small files become one when `together` of like size (within a power of 16) are in a partition: a
    row is rewritten once for each of these powers that it passes on its way up, and of each there
    are never many. A file is worn when more than this share of its rows are deleted, unless it is
    so small that a reader spends most of its time on opening it.
    """

    together: int = 16
    small: int = 64 << 20  # bytes
    tiny: int = 1 << 20
    worn: float = 0.3  # each row deleted costs two or three rewritten ones
    bytes: int = 128 << 20  # that one commit rewrites: a few seconds beside the applies
    rows: int = 1 << 20  # likewise: 60 bytes of memory for each, while the index takes them in
    every: int = 10  # commits between two looks that found nothing to do
    overlap: int = 4  # files of a clustered table over one value of its first column

    @classmethod
    def of(cls, cluster_by: Sequence[str]) -> Policy:
        """Rows are ordered in memory, where they take some ten times as much as in a file."""
        return cls(small=CLUSTERED_BYTES // 2, bytes=64 << 20) if cluster_by else cls()

    def is_worn(self, file: File) -> bool:
        return file["size"] > self.tiny and _deleted_share(file) > self.worn

    def is_small(self, file: File) -> bool:
        return file["size"] < self.small and (known_rows(file) or 0) < self.rows // 2


def choose(
    files: Iterable[File], policy: Policy, cluster_by: Sequence[str] = ()
) -> list[list[File]]:
    """Groups of data files, each of which is to become one, or a few that are ordered."""
    files = list(files)
    tiers: defaultdict[tuple[Any, ...], list[File]] = defaultdict(list)
    worn: defaultdict[tuple[Any, ...], list[File]] = defaultdict(list)
    for file in files:
        if policy.is_small(file):
            tiers[(*_partition(file), file["size"].bit_length() // 4)].append(file)
        if policy.is_worn(file):
            worn[_partition(file)].append(file)
    crowded = [group for group in tiers.values() if len(group) >= policy.together]
    return (
        _within(sorted(crowded, key=len, reverse=True), policy)
        or _within(sorted(worn.values(), key=len, reverse=True), policy, least=1)
        or _within(_overlapping(files, policy, cluster_by), policy)
    )


def _partition(file: File) -> tuple[Any, ...]:
    return tuple(sorted((file.get("partitionValues") or {}).items()))


def _within(
    groups: Iterable[Sequence[File]], policy: Policy, *, least: int = 2
) -> list[list[File]]:
    """As much of the groups as fits into one commit, of each at least so many files."""
    chosen: list[list[File]] = []
    size = rows = 0
    for group in groups:
        fitting: list[File] = []
        for file in group:
            size, rows = size + file["size"], rows + (known_rows(file) or 0)
            if (chosen or fitting) and (size > policy.bytes or rows > policy.rows):
                return [*chosen, fitting] if len(fitting) >= least else chosen
            fitting.append(file)
        if len(fitting) >= least:
            chosen.append(fitting)
    return chosen


def _overlapping(
    files: Iterable[File], policy: Policy, cluster_by: Sequence[str]
) -> list[list[File]]:
    """Files over the value of the first clustering column that most files of a partition cover."""
    if not cluster_by:
        return []
    spans: defaultdict[tuple[Any, ...], list[tuple[Any, Any, File]]] = defaultdict(list)
    for file in files:
        stats = stats_of(file)
        low, high = (stats.get(kind, {}).get(cluster_by[0]) for kind in ("minValues", "maxValues"))
        if low is not None and high is not None and low < high and not _is_cut(low, high):
            spans[_partition(file)].append((low, high, file))
    groups = [_deepest(of_partition) for of_partition in spans.values()]
    return sorted((g for g in groups if len(g) >= policy.overlap), key=len, reverse=True)[:1]


def _is_cut(*bounds: Any) -> bool:
    """Whether bounds of long texts may overlap though the texts do not."""
    return any(isinstance(bound, str) and len(bound) >= PREFIX for bound in bounds)


def _deepest(spans: Iterable[tuple[Any, Any, File]]) -> list[File]:
    """The files whose spans have a point in common, at a point where the most do.

    Bounds that only touch do not count: neighbours share a value.
    """
    covering: list[tuple[Any, File]] = []
    best: list[File] = []
    for low, high, file in sorted(spans, key=lambda span: (span[0], span[1])):
        covering = [(end, other) for end, other in covering if end > low] + [(high, file)]
        if len(covering) > len(best):
            best = [other for _, other in covering]
    return best


def _deleted_share(file: File) -> float:
    deleted = cardinality(file.get("deletionVector"))
    rows = known_rows(file) if deleted else None
    return deleted / rows if rows else 0.0


def write_checkpoint(url: str, options: Mapping[str, str]) -> None:
    """A checkpoint of the newest version. Raises DestinationUnavailableError."""
    with _upkeep("write a checkpoint of", url):
        DeltaTable(url, storage_options=dict(options) or None).create_checkpoint()


def clean_log(url: str, options: Mapping[str, str]) -> None:
    """Remove log entries past their retention. Raises DestinationUnavailableError."""
    with _upkeep("clean the log of", url):
        DeltaTable(url, storage_options=dict(options) or None).cleanup_metadata()


@contextmanager
def _upkeep(what: str, url: str) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError) as error:
        raise DestinationUnavailableError(
            f"cannot {what} {url}: {plain(error)}",
            hint="the table stands; look at the storage, a later commit tries again",
        ) from error


def retention_ms(configuration: Mapping[str, str]) -> int:
    """How long files are kept that only older versions name; forever if nobody can tell."""
    return duration_ms(configuration.get("delta.deletedFileRetentionDuration", _DEFAULT_RETENTION))


def duration_ms(text: str) -> int:
    """A property such as `interval 30 days`; what nobody understands lasts forever."""
    match = _DURATION.fullmatch(text.strip())
    return int(match[1]) * _UNIT_MS[match[2].lower()] if match else 1 << 62


@dataclass(frozen=True)
class Sweep:
    """What a table named, and for how long its older versions keep what it names no more, when a
    sweep was begun; `before` in ms since the epoch."""

    named: Collection[str]
    retired: Mapping[str, int]
    before: int

    @classmethod
    def of(cls, state: TableState, now: int) -> Sweep:
        """Taken between two commits: what is made later is younger than `before`, whatever the
        retention."""
        before = now - retention_ms(state.configuration)
        return cls(state.named_paths(), dict(state.retired), before)

    def run(self, storage: Storage) -> list[str]:
        """Delete files of ours that no version inside the retention names; returns their paths.

        Only files whose name tells that we made them, and when: what another writer is about to
        commit is never touched.
        """
        dead = [
            entry.path
            for entry in storage.list("")
            if _made_before(entry.path, self.before)
            and entry.path not in self.named
            and self.retired.get(entry.path, 0) < self.before
        ]
        storage.delete(dead)
        return dead


def _made_before(path: str, horizon: int) -> bool:
    """By the UUID version 7 in `part-<uuid>-headrace.parquet`, `deletion_vector_<uuid>.bin`."""
    path = path.rpartition("/")[2]
    if path.startswith("part-") and path.endswith("-headrace.parquet"):
        made = made_at_ms(path[len("part-") : -len("-headrace.parquet")])
    elif path.startswith("deletion_vector_") and path.endswith(".bin"):
        made = made_at_ms(path[len("deletion_vector_") : -len(".bin")])
    else:
        return False
    return made is not None and made < horizon
