"""The newest commits in memory: readers beside the writer are told, and read nothing back."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from headrace.log.manifest import Manifest
from headrace.model import ChangeBatch

DEFAULT_LIMIT: Final = 64 << 20  # bytes of Arrow memory: two full buffers of a capture
_MANIFEST_BYTES: Final = 2048  # roughly, of one manifest as Python objects; more with its files


@dataclass(frozen=True)
class _Recent:
    manifest: Manifest
    batches: Mapping[str, ChangeBatch]  # by path
    size: int


class LogFeed:
    """Shared by one writer and any number of readers in one process; safe in threads."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self._changed = threading.Condition()
        self._head: int | None = None
        self._recent: OrderedDict[int, _Recent] = OrderedDict()
        self._batches: dict[str, ChangeBatch] = {}
        self._size = 0

    @property
    def head(self) -> int | None:
        """The newest commit; None while no writer is attached."""
        with self._changed:
            return self._head

    def attach(self, head: int) -> None:
        """A writer begins at this commit."""
        with self._changed:
            self._head = head
            self._changed.notify_all()

    def detach(self) -> None:
        """The writer is gone; another process may write from now on."""
        with self._changed:
            self._head = None
            self._recent.clear()
            self._batches.clear()
            self._size = 0
            self._changed.notify_all()

    def publish(self, manifest: Manifest, batches: Mapping[str, ChangeBatch]) -> None:
        """Take a durable commit, with as many of its batches as the writer still had."""
        size = _MANIFEST_BYTES * (1 + len(manifest.files)) + sum(map(batch_bytes, batches.values()))
        with self._changed:
            self._recent[manifest.commit] = _Recent(manifest, batches, size)
            self._batches.update(batches)
            self._size += size
            while self._size > self.limit:
                _, oldest = self._recent.popitem(last=False)
                self._size -= oldest.size
                for path in oldest.batches:
                    del self._batches[path]
            self._head = manifest.commit
            self._changed.notify_all()

    def wait(self, after: int, timeout: float, ended: threading.Event) -> bool:
        """Whether a commit after `after` exists, within `timeout` seconds.

        Comes back early when the writer detaches, and when `ended` is set and `interrupt` called.
        """

        def over() -> bool:
            return self._head is None or self._head > after or ended.is_set()

        with self._changed:
            self._changed.wait_for(over, timeout)
            return self._head is not None and self._head > after

    def interrupt(self) -> None:
        """Make those who wait look whether they are to end."""
        with self._changed:
            self._changed.notify_all()

    def manifest(self, commit: int) -> Manifest | None:
        with self._changed:
            recent = self._recent.get(commit)
            return recent.manifest if recent else None

    def batch(self, path: str) -> ChangeBatch | None:
        with self._changed:
            return self._batches.get(path)


def batch_bytes(batch: ChangeBatch) -> int:
    """Memory that a batch keeps alive, be it a slice of larger buffers."""
    return int(batch.data.get_total_buffer_size())
