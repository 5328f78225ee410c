"""Storage on a local disk, where `close` and `rename` promise nothing about a power cut.

A file is written under a temporary name in its own folder, fsynced, given its name, and then its
folder is fsynced. Putting if absent uses link(2), which unlike rename(2) never replaces a file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from headrace import failpoints
from headrace.errors import LogError, LogFullError, ObjectExistsError, ObjectMissingError
from headrace.log.interface import Entry
from headrace.log.lock import FileLock

_TEMPORARY = ".tmp"  # with a leading dot: `.orders.json.5f3a9c.tmp`, hidden from listings
# A hard link cannot be: across file systems, on one that has none, or one too many.
_NO_LINK: Final = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)

# An fsync waits for the disk, and those that wait together are served by one write of the file
# system's journal: 1,000 took 3 s one after the other, and 0.1 s like this.
_SYNCS: Final = 8
_FEW: Final = 4  # what threads cost more than they save for

T = TypeVar("T")


def local_path(location: str) -> Path | None:
    """The path that a path or a file:// URL means; None for another kind of URL."""
    if location.startswith("file://"):
        return Path(unquote(urlsplit(location).path))
    return None if "://" in location else Path(location)


@contextlib.contextmanager
def local_errors(operation: str, path: object) -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissingError(
            f"cannot {operation} {path}: it does not exist", hint="", path=str(path)
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = LogFullError if full else LogError
        folder = Path(str(path)).parent  # which is there, where the file may not be
        look = f"see what is in the way: ls -la {folder}"
        if full:
            look = f"free some space: df -h {folder}"
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            look = "allow more open files, with ulimit -n or LimitNOFILE= of its systemd unit"
        raise kind(
            f"cannot {operation} {path}: {error.strerror or error}", hint=look, path=str(path)
        ) from error


class _TemporaryFile(io.FileIO):
    """A raw file whose errors are ours, whoever writes to it."""

    def write(self, data: Any, /) -> int:
        with local_errors("write", self.name):
            return super().write(data)


@dataclass(frozen=True)
class _Pending:
    file: IO[bytes]
    temporary: Path
    final: Path
    create: bool


class _LocalGroup:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._pending: list[_Pending] = []

    def open(self, path: str, *, create: bool = False) -> IO[bytes]:
        final = self._root / path
        with local_errors("create", final):
            _make_folder(final.parent)
            temporary = final.with_name(f".{final.name}.{secrets.token_hex(8)}{_TEMPORARY}")
            file = io.BufferedWriter(_TemporaryFile(temporary, "xb"), 1 << 18)
        self._pending.append(_Pending(file, temporary, final, create))
        return file

    def publish(self, on_synced: Callable[[], None]) -> None:
        _each(_sync_file, self._pending)
        with local_errors("write", self._root):
            on_synced()
        try:
            for pending in self._pending:
                _give_name(pending)
        finally:  # what has its name keeps it, and whoever tries again finds it there
            _each(_sync_folder, {pending.final.parent for pending in self._pending})

    def discard(self) -> None:
        """Remove what has not got its name; the error that led here is the one to tell."""
        for pending in self._pending:
            with contextlib.suppress(OSError, LogError):
                pending.file.close()
            with contextlib.suppress(OSError):
                pending.temporary.unlink(missing_ok=True)


def _each(sync: Callable[[T], None], items: Collection[T]) -> None:
    """Make many things durable side by side; raises what the first one to fail raises."""
    if len(items) <= _FEW:
        for item in items:
            sync(item)
        return
    with ThreadPoolExecutor(_SYNCS, "headrace-fsync") as pool:
        for _ in pool.map(sync, items):
            pass


def _sync_file(pending: _Pending) -> None:
    with local_errors("write", pending.final):
        pending.file.flush()
        os.fsync(pending.file.fileno())
        pending.file.close()


def _give_name(pending: _Pending) -> None:
    if not pending.create:
        with local_errors("rename to", pending.final):
            pending.temporary.rename(pending.final)
        return
    try:
        with local_errors("link to", pending.final):
            pending.final.hardlink_to(pending.temporary)
            pending.temporary.unlink()
    except LogError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise ObjectExistsError(
                f"{pending.final} exists already", path=str(pending.final)
            ) from error.__cause__
        raise


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable in its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # another thread was faster
        folder.mkdir()
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync(2), "calling fsync() does not necessarily…")."""
    with local_errors("sync", folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(_TEMPORARY)


class LocalStorage:
    """Files below a folder; the folder itself is made when the first file is written."""

    latency = 0.001

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = str(self.root)

    def get(self, path: str) -> bytes:
        with local_errors("read", self.root / path):
            return (self.root / path).read_bytes()

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        with local_errors("read", self.root / path), (self.root / path).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[pa.MemoryMappedFile]:
        with local_errors("read", self.root / path):
            file = pa.memory_map(self.location(path))
        with file:
            yield file

    def put(self, path: str, data: bytes, *, create: bool = False) -> None:
        with self.write() as group:
            group.open(path, create=create).write(data)
        failpoints.hit("log.document_put")

    @contextlib.contextmanager
    def write(self, on_synced: Callable[[], None] = lambda: None) -> Iterator[_LocalGroup]:
        group = _LocalGroup(self.root)
        try:
            yield group
            group.publish(on_synced)
        except BaseException:
            group.discard()
            raise

    def take_over(self, sources: Mapping[str, str]) -> Sequence[str]:
        left = [path for path, source in sources.items() if not self._link(source, path)]
        _each(_sync_folder, {(self.root / path).parent for path in sources.keys() - left})
        return left

    def _link(self, source: str, path: str) -> bool:
        found, target = local_path(source), self.root / path
        if found is None:
            return False
        with local_errors("link", target):
            _make_folder(target.parent)
            try:
                target.hardlink_to(found)
            except OSError as error:
                if error.errno in _NO_LINK:
                    return False
                raise
        return True

    def list(self, prefix: str) -> list[Entry]:
        with local_errors("list", self.root / prefix):
            return sorted(
                (
                    Entry(path.relative_to(self.root).as_posix(), path.stat().st_size)
                    for path in self._files(prefix)
                    if not _is_temporary(path.name)
                ),
                key=lambda entry: entry.path,
            )

    def _files(self, prefix: str) -> Iterator[Path]:
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                yield Path(folder, name)

    def folders(self, folder: str) -> Sequence[str]:
        place = self.root / folder
        with local_errors("list", place):
            return (
                [path.name for path in place.iterdir() if path.is_dir()] if place.is_dir() else []
            )

    def exists(self, path: str) -> bool:
        with local_errors("look for", self.root / path):
            return (self.root / path).is_file()

    def size(self, path: str) -> int:
        with local_errors("look at", self.root / path):
            return (self.root / path).stat().st_size

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with local_errors("delete", self.root / path):
                (self.root / path).unlink(missing_ok=True)

    def recover(self, prefix: str) -> None:
        """A process that died between link and fsync left a name that may yet go: fsync it now."""
        folders = [Path(folder) for folder, _, _ in os.walk(self.root / prefix)]
        with local_errors("recover", self.root / prefix):
            for path in filter(lambda path: _is_temporary(path.name), self._files(prefix)):
                path.unlink(missing_ok=True)
        _each(_sync_folder, folders)

    def location(self, path: str) -> str:
        return str(self.root / path)

    def lock(self, path: str) -> FileLock:
        with local_errors("lock", self.root / path):
            _make_folder((self.root / path).parent)
            return FileLock(self.root / path)
