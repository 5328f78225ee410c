"""Keeping a table fit to read: checkpoints, merging of small files, and sweeping of dead ones.

All of it is done by the table's one writer, between two of its commits, in bounded portions.
deltalake's `vacuum(full=True)` is never called: it deletes deletion vectors that are in use.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Final

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from headrace.connectors.delta.names import made_at_ms
from headrace.connectors.delta.state import TableState
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

SMALL: Final = 32 << 20  # bytes
MANY_SMALL: Final = 50
MERGE_CHECK_EVERY: Final = 10  # commits
MERGED_BYTES: Final = 128 << 20  # that one merge reads: its memory is a batch, its time a second
MOSTLY_DELETED: Final = 0.5


def choose_merge(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Paths of data files to become one: many small ones of like size, or those worn by deletions.

    Small files are taken from the most crowded power of eight of sizes, so that a row is rewritten
    once for each of these that it passes on its way up, not once for each merge.
    """
    small = [path for path, file in files.items() if file["size"] < SMALL]
    if len(small) > MANY_SMALL:
        tiers: defaultdict[int, list[str]] = defaultdict(list)
        for path in small:
            tiers[files[path]["size"].bit_length() // 3].append(path)
        return _within(files, max(tiers.values(), key=len))
    return _within(files, [p for p, file in files.items() if _deleted_share(file) > MOSTLY_DELETED])


def _within(files: Mapping[str, Mapping[str, Any]], paths: list[str]) -> list[str]:
    """The first of these paths, and as many more as fit with it into one merge."""
    sizes = accumulate(files[path]["size"] for path in paths)
    fitting = sum(size <= MERGED_BYTES for size in sizes)
    return paths[: max(fitting, 1)]


def _deleted_share(file: Mapping[str, Any]) -> float:
    vector = file.get("deletionVector")
    rows = known_rows(file) if vector else None
    return vector["cardinality"] / rows if vector and rows else 0.0


def known_rows(file: Mapping[str, Any]) -> int | None:
    """Rows of a data file, dead ones too, if its statistics tell."""
    rows = json.loads(file.get("stats") or "{}").get("numRecords")
    return None if rows is None else int(rows)


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
            f"cannot {what} {url}: {error}",
            hint="the table stands; look at the storage, a later commit tries again",
        ) from error


def retention_ms(configuration: Mapping[str, str]) -> int:
    """How long files are kept that only older versions name; forever if nobody can tell."""
    return duration_ms(configuration.get("delta.deletedFileRetentionDuration", _DEFAULT_RETENTION))


def duration_ms(text: str) -> int:
    """A property such as `interval 30 days`; what nobody understands lasts forever."""
    match = _DURATION.fullmatch(text.strip())
    return int(match[1]) * _UNIT_MS[match[2].lower()] if match else 1 << 62


def sweep(storage: Storage, state: TableState, now: int) -> list[str]:
    """Delete files of ours that no version inside the retention names; returns their paths.

    Only files whose name tells that we made them, and when: what another writer is about to commit
    is never touched. `now` in ms since the epoch.
    """
    horizon = now - retention_ms(state.configuration)
    named = state.named_paths()
    dead = [
        entry.path
        for entry in storage.list("")
        if _made_before(entry.path, horizon)
        and entry.path not in named
        and state.retired.get(entry.path, 0) < horizon
    ]
    storage.delete(dead)
    for path in [path for path, at in state.retired.items() if at < horizon]:
        del state.retired[path]
    return dead


def _made_before(path: str, horizon: int) -> bool:
    """By the UUID version 7 in `part-<uuid>-headrace.parquet`, `deletion_vector_<uuid>.bin`."""
    if path.startswith("part-") and path.endswith("-headrace.parquet"):
        made = made_at_ms(path[len("part-") : -len("-headrace.parquet")])
    elif path.startswith("deletion_vector_") and path.endswith(".bin"):
        made = made_at_ms(path[len("deletion_vector_") : -len(".bin")])
    else:
        return False
    return made is not None and made < horizon
