"""Creating a logical slot: a command that waits for every transaction that is open on the server.

It may take as long as the longest of them, in whatever database, and on a standby until its primary
says which there are. While it waits, the log names who holds it up, and a run that is to end takes
the command back, which leaves no slot behind.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from typing import Any, Final

import psycopg
from psycopg import pq, sql

from headrace.connectors.postgres.failures import command_error
from headrace.errors import CopyStoppedError, SourceError, SourceUnavailableError

LOOK_INTERVAL: Final = 0.2  # seconds until a stop is noticed
TELL_AFTER: Final = 3.0  # a slot takes milliseconds where nobody holds it up
TELL_INTERVAL: Final = 60.0
CANCEL_TIMEOUT: Final = 5.0
RELEASE_PATIENCE: Final = 10.0  # a walsender takes a moment to see that its client is gone

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

# A standby decodes from the primary's next record of open transactions on, which an idle primary
# does not write by itself (Postgres documentation, "Logical Decoding Concepts").
LOG_SNAPSHOT: Final = "SELECT pg_log_standby_snapshot()"
IN_RECOVERY: Final = "SELECT pg_catalog.pg_is_in_recovery()"

FAILOVER_SINCE: Final = 17

_log = logging.getLogger("headrace.run")


def creation(session: psycopg.Connection[Any], slot: str, *, failover: bool) -> str:
    """The command that creates a slot to stay; with `failover`, where the server offers that, one
    that its standbys hold ready (Postgres documentation, "Logical Replication Failover").

    A standby's own slots are not handed on.
    """
    command = f"CREATE_REPLICATION_SLOT {sql.Identifier(slot).as_string(session)} LOGICAL pgoutput"
    if (
        failover
        and session.info.server_version // 10000 >= FAILOVER_SINCE
        and not in_recovery(session)
    ):
        return f"{command} (SNAPSHOT 'nothing', FAILOVER true)"
    return f"{command} NOEXPORT_SNAPSHOT"


def in_recovery(session: psycopg.Connection[Any]) -> bool:
    """Whether the server is a standby."""
    row = session.execute(IN_RECOVERY).fetchone()
    return bool(row and row[0])


def set_failover(replication: psycopg.Connection[Any], slot: str, wanted: bool) -> None:
    """Have a slot that exists handed on to standbys, or not. Nobody may use it meanwhile.

    Raises:
        SourceUnavailableError: somebody uses it.
        SourceError: the server is too old, or a standby.
    """
    if replication.info.server_version // 10000 < FAILOVER_SINCE:
        raise SourceError(
            f"slot {slot!r} cannot be handed on to a standby: that came with Postgres 17",
            hint="take failover: out of the connection in headrace.yaml",
        )
    alter_slot(replication, slot, f"FAILOVER {'true' if wanted else 'false'}")


def alter_slot(replication: psycopg.Connection[Any], slot: str, option: str) -> None:
    """Change what a slot does. Nobody may use it meanwhile.

    Raises:
        SourceUnavailableError: somebody uses it.
        SourceError: the server refused.
    """
    name = sql.Identifier(slot).as_string(replication)
    command = f"ALTER_REPLICATION_SLOT {name} ({option})"
    result = replication.pgconn.exec_(command.encode())
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise command_error(result, replication.pgconn.error_message)


def drop_slot(session: psycopg.Connection[Any], slot: str) -> None:
    """Drop a slot, once whoever used it last has let it go. One that was still being created, by
    whoever is gone, goes by itself.

    Raises:
        SourceUnavailableError: somebody goes on using it.
    """
    deadline = time.monotonic() + RELEASE_PATIENCE
    while True:
        try:
            session.execute("SELECT pg_catalog.pg_drop_replication_slot(%s)", (slot,))
            return
        except psycopg.errors.UndefinedObject:
            return
        except psycopg.errors.ObjectInUse as error:
            if time.monotonic() > deadline:
                raise SourceUnavailableError(
                    f"slot {slot!r} cannot be dropped: {error}",
                    hint="stop who uses it: SELECT pg_terminate_backend(active_pid) "  # noqa: S608
                    f"FROM pg_replication_slots WHERE slot_name = '{slot}'",
                ) from error
        time.sleep(LOOK_INTERVAL)


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
    if in_recovery(session):
        _log.warning('slot_waits_for_primary hint="run on the primary: %s"', LOG_SNAPSHOT)
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
