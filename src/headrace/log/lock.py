"""One writer at a time: flock(2) on a local disk, a lease with an expiry on object stores.

The local lock ends with its process, whatever kills it. A lease can outlive its holder, and a
holder can outlive its lease (a long pause), so `took_over` tells the new one to fence the old.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from headrace.errors import LogError, LogLockedError

LEASE: Final = timedelta(
    seconds=15
)  # how long a crashed writer on an object store keeps others out
RENEWALS: Final = 3  # in that time, so that two requests may fail


class Lock(Protocol):
    """A held lock."""

    took_over: bool  # the one before may still run, unaware

    def check(self) -> None:
        """Raises LogLockedError if another one holds the lock by now."""
        ...

    def release(self) -> None: ...


def _holder() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _locked(where: str, holder: Mapping[str, Any], hint: str) -> LogLockedError:
    who = "host {host}, process {pid}, since {since}".format(
        **{"host": "?", "pid": "?", "since": "?", **holder}
    )
    return LogLockedError(f"{where} is held by another writer: {who}", hint=hint, **holder)


class FileLock:
    """flock(2) on a file that holds who holds it."""

    took_over = False

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _parse(os.read(self._descriptor, 4096))
            os.close(self._descriptor)
            stop = f"stop it first: kill {holder['pid']}" if "pid" in holder else "stop it first"
            raise _locked(str(path), holder, stop) from error
        except OSError:  # a file system without locks
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(_holder()).encode(), 0)

    def check(self) -> None:
        """Nobody can take a flock away."""

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class LeaseStore(Protocol):
    """What a lease needs of an object store: compare and swap on one object."""

    def read_lease(self) -> tuple[bytes, str] | None:
        """Content and version, or None."""
        ...

    def swap_lease(self, data: bytes, version: str | None) -> str | None:
        """Write where `version` still stands (None: nothing); the new version, None if refused."""
        ...

    def delete_lease(self) -> None: ...


class Lease:
    """A lock object that its holder renews in the background, and anyone may take once expired."""

    def __init__(self, where: str, store: LeaseStore, duration: timedelta = LEASE) -> None:
        self._where, self._store, self._duration = where, store, duration
        self._content = {**_holder(), "holder": str(uuid.uuid4())}
        self._lost: Mapping[str, Any] | None = None
        self._stop = threading.Event()
        self.took_over, self._version = self._take()
        self._thread = threading.Thread(target=self._keep, name=f"lease {where}", daemon=True)
        self._thread.start()

    def _take(self) -> tuple[bool, str]:
        found = self._store.read_lease()
        if found is not None:
            self._refuse_unless_expired(_parse(found[0]))
        version = self._store.swap_lease(self._renewed(), found and found[1])
        if version is None:
            taken = self._store.read_lease()
            raise _locked(self._where, _parse(taken[0]) if taken else {}, "stop it first")
        return found is not None, version

    def _refuse_unless_expired(self, holder: Mapping[str, Any]) -> None:
        expires = holder.get("expires", "")
        if expires > datetime.now(UTC).isoformat():
            raise _locked(
                self._where, holder, f"stop that process; if it is dead, wait until {expires}"
            )

    def _renewed(self) -> bytes:
        expires = (datetime.now(UTC) + self._duration).isoformat()
        return json.dumps({**self._content, "expires": expires}).encode()

    def _keep(self) -> None:
        pause = self._duration.total_seconds() / RENEWALS
        while not self._stop.wait(pause):
            # Unavailable for now: should it last, the next holder takes over and fences us out.
            with contextlib.suppress(LogError):
                if not self._renew():
                    return

    def _renew(self) -> bool:
        version = self._store.swap_lease(self._renewed(), self._version)
        if version is None:
            found = self._store.read_lease()
            if found is None or not self._is_ours(found):
                self._lost = _parse(found[0]) if found else {}
                return False
            version = found[1]  # our own write whose answer was lost
        self._version = version
        return True

    def check(self) -> None:
        if self._lost is not None:
            raise _locked(self._where, self._lost, "this writer was taken for dead; restart it")

    def release(self) -> None:
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(LogError):  # it expires by itself
            if self._is_ours(self._store.read_lease()):
                self._store.delete_lease()

    def _is_ours(self, found: tuple[bytes, str] | None) -> bool:
        return found is not None and _parse(found[0]).get("holder") == self._content["holder"]


def _parse(data: bytes) -> dict[str, Any]:
    """Who holds a lock; nothing if the file is being written at this moment."""
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
