"""Timelines: whether a server that took another's place has all that a change log tells.

A promoted standby, or a server restored to a point in time, begins a timeline where the WAL that it
has of the former one ends (Postgres documentation, "Timelines"). What the former server wrote after
that, and a change log may hold, never was there; and what the new one writes at those LSNs would be
taken for known. Its slots and LSNs do not show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import pq

from headrace.connectors.postgres.failures import REBUILD, command_error
from headrace.errors import SlotLostError
from headrace.model import Lsn

# The timeline that a primary writes: the first eight digits of a WAL file's name. NULL: a standby.
OWN_TIMELINE: Final = """
SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN
       ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int
       END
"""


class Lineage:
    """The timeline that a change log follows; `note` records durably that it follows another."""

    def __init__(self, known: int | None, note: Callable[[int], None]) -> None:
        self._known = known
        self._note = note

    def follow(self, replication: psycopg.Connection[Any], position: Lsn) -> None:
        """Go on at `position` of the timeline that the server is on.

        Raises:
            SlotLostError: it never had all that comes before.
        """
        now = timeline(replication)
        if now == self._known:
            return
        why = None if self._known is None else fork(replication, self._known, now, position)
        if why is not None:
            raise SlotLostError(why, hint=REBUILD)
        self._become(now)

    def stay(self, session: psycopg.Connection[Any]) -> None:
        """Note the timeline of a server that is promoted while it streams to us: it goes on where
        it was, and lacks nothing."""
        row = session.execute(OWN_TIMELINE).fetchone()
        if row is not None and row[0] is not None and row[0] != self._known:
            self._become(row[0])

    def _become(self, timeline: int) -> None:
        self._note(timeline)
        self._known = timeline


def timeline(replication: psycopg.Connection[Any]) -> int:
    """The timeline that a server is on."""
    return int(_ask(replication, "IDENTIFY_SYSTEM", 1))


def fork(replication: psycopg.Connection[Any], known: int, now: int, position: Lsn) -> str | None:
    """Why a server on timeline `now` lacks what `known` had up to `position`; None if it has it."""
    history = _ask(replication, f"TIMELINE_HISTORY {now}", 1) if now > 1 else ""
    left = left_at(history, known)
    if left is None:
        return f"the server's timeline {now} does not descend from {known}, which the log follows"
    if left < position:
        return (
            f"the server left timeline {known} at {left}, before the change log's {position}: it "
            "was promoted or restored without the changes in between"
        )
    return None


def left_at(history: str, known: int) -> Lsn | None:
    """Where timeline `known` ended, by a history file: lines of its number, LSN and a reason."""
    for line in history.splitlines():
        fields = line.split("\t")
        if fields[0].strip() == str(known):
            return Lsn.parse(fields[1].strip())
    return None


def _ask(replication: psycopg.Connection[Any], command: str, column: int) -> str:
    result = replication.pgconn.exec_(command.encode())
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise command_error(result, replication.pgconn.error_message)
    return (result.get_value(0, column) or b"").decode()
