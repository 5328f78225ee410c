"""Taking a table's lock without being in anybody's way, and without anybody being lost.

A session that waits for an ACCESS EXCLUSIVE lock makes every later reader wait behind it. So each
attempt waits LOCK_WAIT seconds in all, then lets everybody pass. That is less than deadlock_timeout
too: where a reader holds the table and wants a view that we hold already, we give way before
Postgres looks for a victim, who might be the reader.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import psycopg

from headrace.connectors.postgres.building import Snapshots, snapshots
from headrace.connectors.postgres.definition import QUALIFIED_NAMES
from headrace.connectors.postgres.dependents import Dependents, read_dependents
from headrace.connectors.postgres.identifiers import qualified
from headrace.connectors.postgres.target_session import Connection, Cursor
from headrace.errors import TableBusyError, UnsuitableTableError
from headrace.model import TableId

LOCK_WAIT: Final = 0.4  # seconds for all locks of one attempt; deadlock_timeout is 1 s by default
PATIENCE: Final = 600.0  # seconds until a swap that others do not let through is given up
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0  # in which readers have the table for themselves

Wait = Callable[[float], object]
_T = TypeVar("_T")

# VACUUM and ANALYZE hold this lock; an automatic one gives way when somebody has waited for
# deadlock_timeout, so that wait comes first, while readers and writers go on.
_SEND_AUTOVACUUM_AWAY: Final = """
SELECT pg_catalog.set_config('lock_timeout', (setting::int + 2000)::text, true), setting::int
  FROM pg_catalog.pg_settings WHERE name = 'deadlock_timeout'
"""

_HOLDERS: Final = """
SELECT DISTINCT a.pid, a.application_name, a.state
  FROM pg_catalog.pg_stat_activity a
  LEFT JOIN pg_catalog.pg_locks l ON l.pid = a.pid AND l.granted
       AND l.relation = pg_catalog.to_regclass(%s)
       AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
 WHERE a.pid <> pg_catalog.pg_backend_pid() AND (l.pid IS NOT NULL OR a.pid = ANY (%s))
 ORDER BY a.pid
"""


class _BusyError(Exception):
    """This attempt is over; nothing was changed."""


def take_turn(
    connection: Connection,
    live: TableId,
    successor: TableId,
    act: Callable[[Cursor], _T],
    unseeing: Snapshots,
    patience: float,
    wait: Wait,
) -> _T:
    """What `act` gives in a transaction that holds every lock on the table, on what hangs on it and
    on its successor.

    Attempts go on until one has all locks at a time when none of the `unseeing` snapshots is held
    any more. `wait(seconds)` lets time pass between them, and returns True to give up.

    Raises:
        TableBusyError: no attempt was let through for `patience` seconds; names who held it.
    """
    deadline = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        blocking = unseeing & snapshots(connection) if unseeing else frozenset()
        try:
            if blocking:
                raise _BusyError
            return _attempt(connection, live, successor, act)
        except (_BusyError, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            held_by = holders(connection, live, [pid for pid, _ in blocking])
        if time.monotonic() + pause > deadline or wait(pause) is True:
            raise _too_busy(live, held_by)
        pause = min(2 * pause, LONGEST_PAUSE)


def _attempt(
    connection: Connection, live: TableId, successor: TableId, act: Callable[[Cursor], _T]
) -> _T:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(QUALIFIED_NAMES)
        detection = cursor.execute(_SEND_AUTOVACUUM_AWAY).fetchone()
        table = qualified(live)
        _lock(cursor, live, f"LOCK TABLE {qualified(successor)} IN ACCESS EXCLUSIVE MODE")
        _lock(cursor, live, f"LOCK TABLE ONLY {table} IN SHARE UPDATE EXCLUSIVE MODE")
        wait = min(LOCK_WAIT, (detection[1] if detection else 1000) / 2000)
        locks = _dependents(cursor, live).locks()
        end = time.monotonic() + wait
        for lock in (*locks, f"LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE"):
            left = max(1, int((end - time.monotonic()) * 1000))
            _lock(cursor, live, f"SET LOCAL lock_timeout TO {left}; {lock}")
        return act(cursor)


def _lock(cursor: Cursor, live: TableId, statement: str) -> None:
    try:
        cursor.execute(statement.encode())
    except psycopg.errors.UndefinedTable as error:
        raise UnsuitableTableError(
            f"{live} or what depends on it was dropped: {str(error).strip()}",
            hint=f"headrace resync {live}",
            table=str(live),
        ) from error


def _dependents(cursor: Cursor, live: TableId) -> Dependents:
    found = cursor.execute("SELECT to_regclass(%s)::oid::bigint", [qualified(live)]).fetchone()
    return read_dependents(cursor, found[0]) if found and found[0] else Dependents()


def holders(connection: Connection, live: TableId, pids: Sequence[int] = ()) -> str:
    """The sessions that hold a lock on a table, and those of `pids`, for a person to find."""
    rows = connection.execute(_HOLDERS, [qualified(live), list(pids)]).fetchall()
    told = (f"process {pid} ({name or 'no name'}, {state})" for pid, name, state in rows)
    return "; ".join(told) or "sessions that are gone now"


def _too_busy(live: TableId, held_by: str) -> TableBusyError:
    return TableBusyError(
        f"{live} is in use and could not be swapped; it is held by {held_by}",
        hint="end the long transactions that read it; Headrace tries again",
        table=str(live),
    )
