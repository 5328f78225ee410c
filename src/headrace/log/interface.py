"""What a place where bytes become durable can do, be it a local disk or an object store.

Nothing here knows what the files mean, so that whoever must write durably (the change log, a table
format's own log) can use it. DESIGN.md §6, "local durability order".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any, Protocol

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

    latency: float  # seconds that one request takes, roughly: paces polling and reading ahead

    @property
    def url(self) -> str:
        """Of the root: an absolute path, or s3://bucket/prefix."""
        ...

    def get(self, path: str) -> bytes:
        """The whole content. Raises ObjectMissingError."""
        ...

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on. Raises ObjectMissingError."""
        ...

    def open(self, path: str) -> AbstractContextManager[Any]:
        """A file to read from, by ranges, as Parquet's reader wants it; seekable, unbuffered.

        Raises:
            ObjectMissingError: there is none.
        """
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

    def take_over(self, sources: Mapping[str, str]) -> Sequence[str]:
        """Make files from elsewhere files of this storage, by path, without reading their bytes.

        On one local file system these are hard links, in one bucket copies made by its server.
        Gives the paths for which there is no such way; the others are durable. `sources` are
        absolute paths or URLs.
        """
        ...

    def list(self, prefix: str) -> list[Entry]:
        """All files in the folder `prefix` and below, sorted by path; none if there is none."""
        ...

    def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders in a folder, "" being the root; none where it does not exist."""
        ...

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int:
        """In bytes. Raises ObjectMissingError."""
        ...

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
