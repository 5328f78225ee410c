"""Creating a logical slot: a command that waits for every transaction that is open on the server.

It may take as long as the longest of them, in whatever database. While it waits, the log names who
holds it up, and a run that is to end takes the command back, which leaves no slot behind.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from typing import Any, Final

import psycopg
from psycopg import pq

from headrace.connectors.postgres.failures import command_error
from headrace.errors import CopyStoppedError, SourceUnavailableError

LOOK_INTERVAL: Final = 0.2  # seconds until a stop is noticed
TELL_AFTER: Final = 3.0  # a slot takes milliseconds where nobody holds it up
TELL_INTERVAL: Final = 60.0
CANCEL_TIMEOUT: Final = 5.0

# Who the creating backend waits for; one that is blocked through others is not of interest.
BLOCKERS: Final = """
SELECT a.pid, a.usename::text, a.datname::text, a.application_name, a.state,
       pg_catalog.to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
  FROM pg_catalog.pg_stat_activity a
 WHERE a.pid = ANY (pg_catalog.pg_blocking_pids(%s))
"""
PREPARED: Final = """
SELECT gid, owner::text, database::text FROM pg_catalog.pg_prepared_xacts ORDER BY prepared LIMIT 1
"""

_log = logging.getLogger("headrace.run")


def create_slot(
    replication: psycopg.Connection[Any],
    session: psycopg.Connection[Any],
    command: str,
    stop: threading.Event,
) -> pq.abc.PGresult:
    """The result of CREATE_REPLICATION_SLOT; `session` looks at who holds it up.

    Raises:
        CopyStoppedError: `stop` was set meanwhile; there is no slot.
        SourceError, SourceUnavailableError: the server refused, or the connection was lost.
    """
    pg, result = replication.pgconn, None
    tell_at = time.monotonic() + TELL_AFTER
    try:
        pg.send_query(command.encode())
        while pg.is_busy():
            select.select([pg.socket], [], [], LOOK_INTERVAL)
            pg.consume_input()
            if stop.is_set():
                replication.cancel_safe(timeout=CANCEL_TIMEOUT)
                _drain(pg)
                raise CopyStoppedError("the run ended before the replication slot was created")
            if time.monotonic() > tell_at:
                tell_at = time.monotonic() + TELL_INTERVAL
                _tell(session, pg.backend_pid)
        result = pg.get_result()
        _drain(pg)
    except psycopg.OperationalError as error:
        raise SourceUnavailableError(
            f"the connection was lost while a replication slot was created: {error}",
            hint="Headrace tries again; see the server's log",
        ) from error
    if result is None or result.status != pq.ExecStatus.TUPLES_OK:
        raise command_error(result or pg.make_empty_result(0), pg.error_message)
    return result


def _drain(pg: pq.abc.PGconn) -> None:
    """Take all results, as libpq wants it before the next command."""
    while pg.get_result() is not None:
        continue


def _tell(session: psycopg.Connection[Any], backend: int) -> None:
    for pid, user, database, application, state, since in session.execute(BLOCKERS, (backend,)):
        _log.warning(
            "slot_waits_for_transaction pid=%s user=%s database=%s application=%r state=%r "
            'since=%s hint="SELECT pg_terminate_backend(%s) ends it"',
            *(pid, user, database, application, state, since, pid),
        )
    for gid, owner, database in session.execute(PREPARED):
        _log.warning(
            'slot_waits_for_transaction prepared=%r user=%s database=%s hint="COMMIT PREPARED or '
            'ROLLBACK PREPARED it, if it is the one"',
            *(gid, owner, database),
        )
