"""Storage on an object store, where a put is atomic and durable when it is answered.

Single puts are conditional where they must be (`If-None-Match`, `If-Match`). Files are gathered in
memory, or in a temporary file when they are large, and uploaded whole, so that no reader ever sees
a part of one.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import IO, Any, Final
from urllib.parse import urlsplit

import obstore
from obstore import exceptions as refused
from obstore.store import from_url

from headrace import failpoints
from headrace.errors import (
    LogError,
    LogUnavailableError,
    ObjectExistsError,
    ObjectMissingError,
)
from headrace.log.interface import Entry
from headrace.log.local import local_errors
from headrace.log.lock import Lease
from headrace.log.told import is_expired, is_unsupported, told

SPOOL: Final = 32 << 20  # bytes of one file kept in memory before it goes to a temporary file
UPLOADS: Final = 8  # of one group, at a time

# Settings of the HTTP client rather than of the store (obstore's ClientConfig).
_CLIENT: Final = re.compile(
    r"^(?:aws_|azure_|google_)?(allow_http|allow_invalid_certificates|connect_timeout|timeout|"
    r"read_timeout|proxy_url|proxy_ca_certificate|proxy_excludes|pool_idle_timeout|"
    r"pool_max_idle_per_host|user_agent)$"
)

# Settings of how often a request is tried again, in deltalake's names; all are its users' to set.
_RETRY: Final = re.compile(
    r"^(?:(max_retries|retry_timeout)|backoff_config\.(init_backoff|max_backoff|base))$"
)
_SECONDS: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|sec|secs|m|min)?")

# Throttling and restarts of a store pass in seconds; what lasts longer is told, and the engine goes
# on trying by itself. object_store's own limits are 10 retries and 3 minutes.
RETRIES: Final = {"max_retries": "10", "retry_timeout": "20s"}


def _open_store(url: str, config: Any, client: Any, retry: Any) -> Any:
    """obstore checks the keys of all three dictionaries itself."""
    try:
        return from_url(url, config=config, client_options=client or None, retry_config=retry)
    except (refused.BaseError, ValueError) as error:
        hint = "storage_options take the keys of Delta's: https://docs.rs/object_store"
        raise LogError(_told("open", url, error), hint=hint, path=url) from None


def _retry_config(options: Mapping[str, str]) -> dict[str, Any]:
    """obstore's RetryConfig of deltalake's options. Raises LogError."""
    found = {m[0]: value for key, value in options.items() if (m := _RETRY.match(key.lower()))}
    given = {**RETRIES, **found}
    try:
        backoff = {
            name.partition(".")[2]: float(value) if name.endswith("base") else _duration(value)
            for name, value in given.items()
            if "." in name
        }
        limits = {
            "max_retries": int(given["max_retries"]),
            "retry_timeout": _duration(given["retry_timeout"]),
        }
    except ValueError as error:
        raise LogError(
            f"a retry option among storage_options is wrong: {error}",
            hint="max_retries: '10', retry_timeout: 20s, backoff_config.max_backoff: 5s",
        ) from None
    return limits | ({"backoff": backoff} if backoff else {})


def _duration(text: str) -> timedelta:
    match = _SECONDS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a duration: {text!r}")
    scale = {"ms": 0.001, "m": 60.0, "min": 60.0}.get(match[2] or "s", 1.0)
    return timedelta(seconds=float(match[1]) * scale)


@contextlib.contextmanager
def object_errors(operation: str, where: str) -> Iterator[None]:
    """Turn obstore's errors into ours, without query strings: they may hold signatures."""
    try:
        yield
    except FileNotFoundError as error:
        if operation == "put":  # nothing else need be there already
            what = f"cannot put {where}: its bucket or container does not exist"
            raise LogError(what, hint="create it, or correct the location", path=where) from None
        raise ObjectMissingError(f"cannot {operation} {where}: not found", path=where) from error
    except refused.AlreadyExistsError as error:
        raise ObjectExistsError(f"{where} exists already", path=where) from error
    except (refused.PermissionDeniedError, refused.UnauthenticatedError) as error:
        hint = _EXPIRED_HINT if is_expired(error) else _RIGHTS_HINT
        raise LogError(_told(operation, where, error), hint=hint, path=where) from None
    except NotImplementedError as error:
        raise LogError(_told(operation, where, error), hint=_PUT_HINT, path=where) from None
    except refused.GenericError as error:
        if is_expired(error) or is_unsupported(error):
            hint = _EXPIRED_HINT if is_expired(error) else _PUT_HINT
            raise LogError(_told(operation, where, error), hint=hint, path=where) from None
        hint = "check the network and the store's address; Headrace goes on trying"
        raise LogUnavailableError(_told(operation, where, error), hint=hint, path=where) from None
    except (refused.BaseError, OSError, ValueError) as error:
        raise LogError(_told(operation, where, error), path=where) from None


_RIGHTS_HINT: Final = "check the credentials in storage_options and what they may do there"
_EXPIRED_HINT: Final = (
    "put new credentials where storage_options name them, and start again; those of the machine or "
    "of a web identity, which are taken where none are given, are renewed without a restart"
)
_PUT_HINT: Final = (
    "commits need conditional puts (If-None-Match): do not switch them off in storage_options, and "
    "use a store that has them"
)


def _told(operation: str, where: str, error: BaseException) -> str:
    return f"cannot {operation} {where}: {told(error)}"


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    def write(self, data: Any) -> int:
        with local_errors("write", tempfile.gettempdir()):
            return super().write(data)


class _ObjectGroup:
    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage
        self._pending: list[tuple[str, _Spool, bool]] = []

    def open(self, path: str, *, create: bool = False) -> IO[bytes]:
        spool = _Spool(max_size=SPOOL)
        self._pending.append((path, spool, create))
        return spool

    def publish(self, on_synced: Callable[[], None]) -> None:
        with local_errors("write", self._storage.url):
            on_synced()
        if len(self._pending) == 1:
            self._upload(self._pending[0])
            return
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(self._upload, self._pending))

    def _upload(self, pending: tuple[str, _Spool, bool]) -> None:
        path, spool, create = pending
        spool.seek(0)
        with object_errors("put", self._storage.location(path)):
            obstore.put(self._storage.store, path, spool, mode="create" if create else "overwrite")

    def close(self) -> None:
        for _, spool, _ in self._pending:
            spool.close()


class _ObjectFile(io.RawIOBase):
    """An object read by ranges, as Parquet's reader wants a file."""

    def __init__(self, storage: ObjectStorage, path: str) -> None:
        self._storage, self._path = storage, path
        self._at, self._size = 0, storage.size(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        length = min(len(buffer), self._size - self._at)
        if length > 0:
            buffer[:length] = self._storage.get_range(self._path, self._at, length)
            self._at += length
        return max(length, 0)


class ObjectStorage:
    """Objects below a URL's prefix."""

    latency = 0.05

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self.url = url.rstrip("/")
        self._options = dict(options)
        client: dict[str, Any] = {}
        config: dict[str, str] = {}
        for key, value in options.items():
            if _RETRY.match(key.lower()):
                continue
            match = _CLIENT.match(key.lower())
            (client if match else config)[match[1] if match else key] = value
        if "allow_http" in client:
            client["allow_http"] = str(client["allow_http"]).lower() == "true"
        self.store = _open_store(self.url, config, client, _retry_config(options))

    def get(self, path: str) -> bytes:
        with object_errors("get", self.location(path)):
            return bytes(obstore.get(self.store, path).bytes())

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        with object_errors("get", self.location(path)):
            return bytes(obstore.get_range(self.store, path, start=offset, length=length))

    def open(self, path: str) -> _ObjectFile:
        return _ObjectFile(self, path)

    def put(self, path: str, data: bytes, *, create: bool = False) -> None:
        with object_errors("put", self.location(path)):
            obstore.put(self.store, path, data, mode="create" if create else "overwrite")
        failpoints.hit("log.document_put")

    @contextlib.contextmanager
    def write(self, on_synced: Callable[[], None] = lambda: None) -> Iterator[_ObjectGroup]:
        group = _ObjectGroup(self)
        try:
            yield group
            group.publish(on_synced)
        finally:
            group.close()

    def take_over(self, sources: Mapping[str, str]) -> Sequence[str]:
        return [path for path, source in sources.items() if not self._copy(source, path)]

    def _copy(self, source: str, path: str) -> bool:
        here, there = urlsplit(source), urlsplit(self.location(path))
        if here[:2] != there[:2]:
            return False
        bucket = ObjectStorage(f"{there.scheme}://{there.netloc}", self._options)
        with object_errors("copy", source):
            obstore.copy(bucket.store, here.path.lstrip("/"), there.path.lstrip("/"))
        return True

    def list(self, prefix: str) -> list[Entry]:
        with object_errors("list", self.location(prefix)):
            found = [
                Entry(meta["path"], meta["size"])
                for page in obstore.list(self.store, prefix, chunk_size=1000)
                for meta in page
            ]
        return sorted(found, key=lambda entry: entry.path)

    def folders(self, folder: str) -> Sequence[str]:
        with object_errors("list", self.location(folder)):
            found = obstore.list_with_delimiter(self.store, folder or None)
        return [prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]

    def exists(self, path: str) -> bool:
        try:
            with object_errors("look for", self.location(path)):
                obstore.head(self.store, path)
        except ObjectMissingError:
            return False
        return True

    def size(self, path: str) -> int:
        with object_errors("look at", self.location(path)):
            return int(obstore.head(self.store, path)["size"])

    def delete(self, paths: Iterable[str]) -> None:
        """Some stores tell of a missing object, and then not which of the others are gone."""
        gone = list(paths)
        try:
            with object_errors("delete", self.url):
                obstore.delete(self.store, gone)
        except ObjectMissingError:
            for path in gone:
                with contextlib.suppress(ObjectMissingError), object_errors("delete", path):
                    obstore.delete(self.store, path)

    def recover(self, prefix: str) -> None:
        """Nothing is half-written or less than durable here."""

    def location(self, path: str) -> str:
        return f"{self.url}/{path}"

    def lock(self, path: str) -> Lease:
        return Lease(self.location(path), _LeaseObject(self, path))


class _LeaseObject:
    def __init__(self, storage: ObjectStorage, path: str) -> None:
        self._storage, self._path = storage, path

    def read_lease(self) -> tuple[bytes, str] | None:
        try:
            with object_errors("get", self._storage.location(self._path)):
                found = obstore.get(self._storage.store, self._path)
                return bytes(found.bytes()), found.meta["e_tag"] or ""
        except ObjectMissingError:
            return None

    def swap_lease(self, data: bytes, version: str | None) -> str | None:
        mode: Any = "create" if version is None else {"e_tag": version}
        try:
            with object_errors("put", self._storage.location(self._path)):
                return obstore.put(self._storage.store, self._path, data, mode=mode)["e_tag"] or ""
        except (ObjectExistsError, ObjectMissingError):
            return None
        except LogError as error:
            if isinstance(error.__context__, refused.PreconditionError):
                return None
            raise

    def delete_lease(self) -> None:
        self._storage.delete([self._path])
