"""A table's storage where its place is found anew, as often as the credentials for it run out.

What writes a table keeps its storage for as long as a run goes on; credentials that a catalog lends
last an hour or so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from headrace.connectors.delta.places import Locator
from headrace.errors import ObjectMissingError
from headrace.log.storage import Entry, FileGroup, Lock, Storage

LATENCY: Final = 0.05  # seconds, as of an object store


class LeasedStorage:
    """Fulfils `Storage`; empty where `place` raises ObjectMissingError, and not to be written."""

    latency = LATENCY

    def __init__(self, place: Locator) -> None:
        self._place = place

    @property
    def url(self) -> str:
        return self._place().url

    @property
    def _now(self) -> Storage:
        return self._place().storage

    def get(self, path: str) -> bytes:
        return self._now.get(path)

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        return self._now.get_range(path, offset, length)

    def open(self, path: str) -> AbstractContextManager[Any]:
        return self._now.open(path)

    def put(self, path: str, data: bytes, *, create: bool = False) -> None:
        self._now.put(path, data, create=create)

    def write(
        self, on_synced: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[FileGroup]:
        return self._now.write(on_synced)

    def take_over(self, sources: Mapping[str, str]) -> Sequence[str]:
        return self._now.take_over(sources)

    def list(self, prefix: str) -> list[Entry]:
        try:
            return self._now.list(prefix)
        except ObjectMissingError:
            return []

    def folders(self, folder: str) -> Sequence[str]:
        try:
            return self._now.folders(folder)
        except ObjectMissingError:
            return ()

    def exists(self, path: str) -> bool:
        try:
            return self._now.exists(path)
        except ObjectMissingError:
            return False

    def size(self, path: str) -> int:
        return self._now.size(path)

    def delete(self, paths: Iterable[str]) -> None:
        self._now.delete(paths)

    def recover(self, prefix: str) -> None:
        self._now.recover(prefix)

    def location(self, path: str) -> str:
        return self._now.location(path)

    def lock(self, path: str) -> Lock:
        return self._now.lock(path)


class LeasedOptions(Mapping[str, str]):
    """The storage options of a place that is found anew; who goes through them gets those of one
    moment, whatever other threads do meanwhile."""

    def __init__(self, place: Locator) -> None:
        self._place = place
        self._gone_through = threading.local()

    def __iter__(self) -> Iterator[str]:
        self._gone_through.options = dict(self._place().options)
        return iter(self._gone_through.options)

    def __getitem__(self, name: str) -> str:
        options: Mapping[str, str] = getattr(self._gone_through, "options", {})
        return options[name] if name in options else self._place().options[name]

    def __len__(self) -> int:
        return len(self._place().options)
