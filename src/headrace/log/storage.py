"""Where bytes become durable: one interface over a local disk and object stores.

Nothing here knows what the files mean, so that whoever must write durably (the change log, a table
format's own log) can use it. DESIGN.md §6, "local durability order".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import unquote, urlsplit

from headrace.log.lock import Lock


@dataclass(frozen=True)
class Entry:
    """A file in a listing; `path` is relative to the storage's root, `size` in bytes."""

    path: str
    size: int


class FileGroup(Protocol):
    """Files being written together."""

    def open(self, path: str, *, create: bool = False) -> IO[bytes]:
        """A file to write to. `create` refuses to replace one of the same name when it is done."""
        ...


class Storage(Protocol):
    """Files under one root, named by relative paths with `/`; safe to use from several threads.

    Every method raises LogError, naming the path and the operation; LogFullError where no room is
    left; LogUnavailableError where an object store does not answer.
    """

    url: str  # of the root: an absolute path, or s3://bucket/prefix
    latency: float  # seconds that one request takes, roughly: paces polling and reading ahead

    def get(self, path: str) -> bytes:
        """The whole content. Raises ObjectMissingError."""
        ...

    def put(self, path: str, data: bytes, *, create: bool = False) -> None:
        """Write durably and atomically; with `create`, raises ObjectExistsError over a file."""
        ...

    def write(
        self, on_synced: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[FileGroup]:
        """Files that appear, durable and complete, when the context ends without an error.

        An error leaves nothing behind. `on_synced` is called when the bytes of all files are
        durable, before any has its name.
        """
        ...

    def list(self, prefix: str) -> list[Entry]:
        """All files in the folder `prefix` and below, sorted by path; none if there is none."""
        ...

    def exists(self, path: str) -> bool: ...

    def delete(self, paths: Iterable[str]) -> None:
        """Remove files; those that are not there are no error."""
        ...

    def recover(self, prefix: str) -> None:
        """After a crash of the only writer below `prefix`: make durable what is visible there,
        and remove its half-written files."""
        ...

    def location(self, path: str) -> str:
        """The absolute path or URL under which other programs read the file."""
        ...

    def lock(self, path: str) -> Lock:
        """Become the one holder of `path`. Raises LogLockedError, naming who holds it."""
        ...


def open_storage(location: str | Path, options: Mapping[str, str] | None = None) -> Storage:
    """The storage at a path, a file:// URL or an object store's URL (s3, gs, az, abfss, …).

    `options` are the object store's settings, in the names that Delta's `storage_options` have;
    without them it reads the usual environment variables.
    """
    from headrace.log.local import LocalStorage  # both import this module
    from headrace.log.objects import ObjectStorage

    text = str(location)
    if "://" not in text:
        return LocalStorage(Path(text))
    parts = urlsplit(text)
    if parts.scheme == "file":
        return LocalStorage(Path(unquote(parts.path)))
    return ObjectStorage(text, options or {})
