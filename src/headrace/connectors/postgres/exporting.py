"""Exported snapshots, each with the LSN that it is as of: by a temporary slot, or by the log.

Creating a logical slot gives both (Postgres documentation, "CREATE_REPLICATION_SLOT"). The slot
goes as soon as nobody imports the snapshot any more, so that it holds no WAL during the copy.

Where the server grants no slot, a transaction exports its snapshot. Postgres does not tell which
LSN that is, for transactions do not become visible just in the order of their commit records. But
the change log knows the latter, and the snapshot tells which it sees: nearly always they agree, and
a position between those that it sees and the others is found. Else another snapshot is taken.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final, TypeAlias

import psycopg

from headrace.connectors.postgres.slots import (
    LOOK_INTERVAL,
    TELL_AFTER,
    TELL_INTERVAL,
    create_slot,
    in_recovery,
)
from headrace.errors import (
    CopyStoppedError,
    SenderRefusedError,
    SlotRefusedError,
    SourceUnavailableError,
)
from headrace.model import Lsn, Visibility

Connector: TypeAlias = Callable[[], AbstractContextManager[psycopg.Connection[Any]]]
Placer: TypeAlias = Callable[[Visibility], Lsn | None]

ATTEMPTS: Final = 20  # two transactions that commit within microseconds spoil one

# Whoever had a transaction id before has a smaller one, and has ended once all smaller ones have.
OWN_ID: Final = "SELECT pg_catalog.pg_current_xact_id()::text::bigint"
OLDEST_RUNNING: Final = """
SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint
"""
EXPORT: Final = """
SELECT pg_catalog.pg_export_snapshot(), pg_catalog.pg_current_snapshot()::text
"""
OLDEST: Final = """
SELECT pid, usename::text, datname::text, application_name FROM pg_catalog.pg_stat_activity
 WHERE backend_xid IS NOT NULL ORDER BY pg_catalog.age(backend_xid) DESC LIMIT 1
"""

_log = logging.getLogger("headrace.run")


@contextmanager
def exported(
    session: psycopg.Connection[Any],
    connect: Connector,
    connect_replication: Connector,
    place: Placer,
    stop: threading.Event,
) -> Iterator[tuple[Lsn, str]]:
    """A snapshot's LSN and its name, which can be imported inside the context.

    Raises:
        CopyStoppedError: `stop` was set while transactions had to be waited for.
        SourceError: the server grants no slot, and is a standby, whose snapshots cannot be placed.
        SourceUnavailableError: a busy server let no snapshot be placed; trying again may help.
    """
    with ExitStack() as stack:
        try:
            found = _by_slot(stack.enter_context(connect_replication()), session, stop)
        except (SlotRefusedError, SenderRefusedError) as error:
            if in_recovery(session):
                raise
            _log.info("snapshot_without_slot reason=%r", error.message)
            found = _by_log(stack.enter_context(connect()), session, place, stop)
        yield found


def _by_slot(
    exporter: psycopg.Connection[Any], session: psycopg.Connection[Any], stop: threading.Event
) -> tuple[Lsn, str]:
    slot = f"headrace_snapshot_{secrets.token_hex(6)}"
    command = f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"
    result = create_slot(exporter, session, command, stop)
    lsn, name = (result.get_value(0, column) or b"" for column in (1, 2))
    return Lsn.parse(lsn.decode()), name.decode()


def _by_log(
    exporter: psycopg.Connection[Any],
    session: psycopg.Connection[Any],
    place: Placer,
    stop: threading.Event,
) -> tuple[Lsn, str]:
    _outlast(session, stop)
    for _ in range(ATTEMPTS):
        exporter.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        name, snapshot = exporter.execute(EXPORT).fetchone() or ("", "")
        lsn = place(_visibility(snapshot))
        if lsn is not None:
            return lsn, name
        exporter.execute("ROLLBACK")
    raise SourceUnavailableError(
        f"none of {ATTEMPTS} snapshots agreed with the order of the commits",
        hint="Headrace tries again; with a free replication slot snapshots need no such luck",
    )


def _outlast(session: psycopg.Connection[Any], stop: threading.Event) -> None:
    """Until every transaction that may have been open has ended.

    What commits later has its commit record after all that the log holds by now.
    """
    ours = _number(session, OWN_ID)
    tell_at = time.monotonic() + TELL_AFTER
    while _number(session, OLDEST_RUNNING) <= ours:
        if stop.wait(LOOK_INTERVAL):
            raise CopyStoppedError("the run ended before the snapshot was taken")
        if time.monotonic() > tell_at:
            tell_at = time.monotonic() + TELL_INTERVAL
            for pid, user, database, application in session.execute(OLDEST):
                _log.warning(
                    "snapshot_waits_for_transaction pid=%s user=%s database=%s application=%r "
                    'hint="SELECT pg_terminate_backend(%s) ends it"',
                    *(pid, user, database, application, pid),
                )


def _number(session: psycopg.Connection[Any], query: str) -> int:
    row = session.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


def _visibility(snapshot: str) -> Visibility:
    """Of pg_snapshot's text, xmin:xmax:xip_list."""
    _, following, running = snapshot.split(":")
    return Visibility(int(following), frozenset(map(int, filter(None, running.split(",")))))
