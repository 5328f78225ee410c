"""Being the only run of a pipeline that writes to a database.

An advisory lock, held by a session of its own, so that it goes with the process, however that ends.
A server that restarts forgets it, and so does one that lost sight of us: whoever makes a new
connection for the run first makes sure that the claim still stands (`Claim.ensure`). In between,
two runs are kept apart by the checkpoints' compare-and-set.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import Final

import psycopg

from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres.config import address
from headrace.connectors.postgres.target_session import (
    Connection,
    connect_target,
    only_row,
    target_errors,
)
from headrace.errors import DestinationLockedError, DestinationUnavailableError

_TRY_CLAIM: Final = """
SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('headrace ' || %s, 0)),
       pg_catalog.set_config('application_name', %s, false)
"""

_RELEASE: Final = "SELECT pg_catalog.pg_advisory_unlock_all()"

# An advisory lock of one bigint key stands in pg_locks as its two halves (objsubid 1).
_HOLDER: Final = """
SELECT a.pid, coalesce(a.client_hostname, host(a.client_addr), 'this machine''s socket'),
       a.application_name
  FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid),
       pg_catalog.hashtextextended('headrace ' || %s, 0) AS key
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND (l.classid::bigint << 32) | l.objid::bigint = key
"""


class Claim:
    """One run's, from `take` to `release`; `ensure` is called by any thread."""

    def __init__(self, settings: PostgresConnection, pipeline: str) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._name = f"headrace {pipeline}@{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def take(self) -> None:
        """Claim the pipeline.

        Raises:
            DestinationLockedError: another run holds it; says which.
            DestinationUnavailableError: the server cannot be reached.
            DestinationError: the server refuses us.
        """
        with self._lock:
            self._take()

    def ensure(self) -> None:
        """Hold the claim still, or take it anew where its session was lost.

        Raises as `take`; DestinationUnavailableError also where the server has not noticed yet that
        our former session is gone.
        """
        with self._lock:
            if not self._stands():
                self._take(again=True)

    def release(self) -> None:
        """Give the claim back; once this returns, the next run may have it."""
        with self._lock:
            if self._connection is not None:
                with suppress(psycopg.Error):  # a server that is away forgets it by itself
                    self._connection.execute(_RELEASE)  # which it does only later after a close
            self._drop()

    def _stands(self) -> bool:
        try:
            return self._connection is not None and bool(self._connection.execute("SELECT"))
        except psycopg.Error:
            return False

    def _take(self, *, again: bool = False) -> None:
        self._drop()
        self._connection = connect_target(self._settings)
        try:
            with target_errors(self._settings):
                self._claim(self._connection, again)
        except BaseException:
            self._drop()
            raise

    def _claim(self, connection: Connection, again: bool) -> None:
        with connection.cursor() as cursor:
            if only_row(cursor.execute(_TRY_CLAIM, [self._pipeline, self._name]))[0]:
                return
            holder = cursor.execute(_HOLDER, [self._pipeline]).fetchone()
        pid, host, application = holder or ("unknown", "unknown", "unknown")
        told = f"server process {pid}, from {host}, application {application!r}"
        where = address(self._settings)
        if again and application == self._name:
            raise DestinationUnavailableError(
                f"{where} still holds a former session of this run of {self._pipeline!r}: {told}",
                hint=f"it ends by itself, or by SELECT pg_terminate_backend({pid})",
            )
        raise DestinationLockedError(
            f"another run of the pipeline {self._pipeline!r} writes to {where}: {told}",
            hint=f"stop that run first; if it is a remnant: SELECT pg_terminate_backend({pid})",
            pid=pid,
            host=host,
            application=application,
        )

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()
