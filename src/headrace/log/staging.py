"""Which data files are written but not yet committed, and how many of them are still in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from itertools import count

from headrace.errors import LogError
from headrace.log.feed import batch_bytes
from headrace.log.layout import staged_under
from headrace.model import ChangeBatch


class Staging:
    """Files between `stage` and `commit`; safe in threads.

    A file's name holds the number of the commit that was next when it was begun, so it never is
    greater than the number of the commit that names it. `settled` rests on that.

    A put of a manifest that failed may have succeeded all the same. Until the next commit is known,
    what such a manifest names is in doubt, and must not be removed.
    """

    def __init__(self, next_commit: int, limit: int) -> None:
        self._lock = threading.Lock()
        self._next = next_commit
        self._count = 0
        self._pending: dict[str, int] = {}
        self._doubtful: set[str] = set()
        self._unwanted: set[str] = set()
        self._batches: dict[str, ChangeBatch] = {}
        self._limit = limit
        self._held = 0

    def begin(self, name: Callable[[int, int], str]) -> str:
        """The path of a new file: `name` of the next commit's number and a number of its own.

        An earlier writer that ended before that commit gave the same numbers: what was adopted of
        its files must not be written over.
        """
        with self._lock:
            paths = (name(self._next, number) for number in count(self._count))
            path = next(path for path in paths if path not in self._pending)
            self._count += 1
            self._pending[path] = self._next
        return path

    def adopt(self, paths: Iterable[str]) -> None:
        """Take over what an earlier writer staged, and something else than a manifest names."""
        with self._lock:
            self._pending.update({path: staged_under(path) or 0 for path in paths})

    def hold(self, path: str, batch: ChangeBatch) -> None:
        """Keep a batch for readers beside the writer, if there is room."""
        size = batch_bytes(batch)
        with self._lock:
            if self._held + size <= self._limit:
                self._batches[path] = batch
                self._held += size

    def drop(self, paths: Iterable[str]) -> None:
        """Files are gone."""
        with self._lock:
            for path in paths:
                self._pending.pop(path, None)
                self._take(path)

    def _take(self, path: str) -> ChangeBatch | None:
        batch = self._batches.pop(path, None)
        if batch is not None:
            self._held -= batch_bytes(batch)
        return batch

    def settled(self, naming: Collection[str]) -> int:
        """The number up to which nothing is pending once the next commit names `naming`.

        Raises:
            LogError: a named file was not staged by this writer, or was committed before.
        """
        with self._lock:
            unknown = [path for path in naming if path not in self._pending]
            if unknown:
                raise LogError(f"{unknown[0]} is not staged, or is committed already")
            others = (n for path, n in self._pending.items() if path not in naming)
            return min(min(others, default=self._next), self._next) - 1

    def doubt(self, paths: Iterable[str]) -> None:
        """A manifest that names them is about to be put."""
        with self._lock:
            self._doubtful.update(paths)

    def removable(self, paths: Iterable[str]) -> list[str]:
        """Those of `paths` that no manifest can name; those in doubt are kept in mind."""
        with self._lock:
            staged = [path for path in paths if path in self._pending]
            self._unwanted.update(self._doubtful.intersection(staged))
            return [path for path in staged if path not in self._doubtful]

    def unwanted(self) -> list[str]:
        """What may be removed now and could not while it was in doubt."""
        with self._lock:
            left = [path for path in self._unwanted if path in self._pending]
            self._unwanted.clear()
            return left

    def committed(self, paths: Iterable[str]) -> dict[str, ChangeBatch]:
        """The next commit is durable and names `paths`; the batches of them that were held."""
        with self._lock:
            self._next += 1
            self._count = 0
            self._doubtful.clear()
            held = {}
            for path in paths:
                del self._pending[path]
                batch = self._take(path)
                if batch is not None:
                    held[path] = batch
            return held
