"""Two-phase commit: whether server and slot do with prepared transactions what headrace.yaml wants.

With `two_phase` (Postgres documentation, "Two-phase Commit Support for Logical Decoding"; 15 and
later with pgoutput) a transaction is sent when it is prepared; without, when it has committed. A
slot that exists begins with it as soon as START_REPLICATION asks for it, and stops only by
ALTER_REPLICATION_SLOT, which can do that from 18 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg

from headrace.connectors.postgres.slot_state import SlotState

TWO_PHASE_SINCE: Final = 15
ALTERED_SINCE: Final = 18

WAITING: Final = """
SELECT gid, owner::text, pg_catalog.to_char(prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
       pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - prepared)::text,
       pg_catalog.quote_literal(gid)
  FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()
 ORDER BY prepared
"""  # noqa: E501  # the format is one word


@dataclass(frozen=True)
class Disagreement:
    """Why a capture cannot go on, what a person can do about it, and the SQL for that, if any."""

    why: str
    fix: str
    sql: tuple[str, ...] = ()


def disagreement(version: int, slot: SlotState | None, *, wanted: bool) -> Disagreement | None:
    """What stands between `two_phase` in headrace.yaml and a server with this slot, if anything."""
    if wanted and version < TWO_PHASE_SINCE:
        return Disagreement(
            f"Postgres {version} sends no transaction when it is prepared (two_phase: true)",
            f"take two_phase: out of the connection; that came with Postgres {TWO_PHASE_SINCE}",
        )
    if wanted or slot is None or not slot.two_phase or version >= ALTERED_SINCE:
        return None
    agree = "set two_phase: true for the connection, or " if version >= TWO_PHASE_SINCE else ""
    return Disagreement(
        f"slot {slot.name!r} sends transactions when they are prepared, "
        "and headrace.yaml does not say two_phase: true",
        f"{agree}name another slot (slot:), or drop this one, and Headrace creates it anew: "
        f"{slot.drop}",
        (slot.drop,),
    )


def must_be_turned_off(slot: SlotState | None, *, wanted: bool) -> bool:
    return slot is not None and slot.two_phase and not wanted


def prepared_waits(session: psycopg.Connection[Any]) -> tuple[str, ...]:
    """The database's prepared transactions, in words, the oldest first, each with what ends it.

    Until they end, the server keeps the WAL since they began.
    """
    return tuple(
        f"the prepared transaction {gid!r} of user {owner} has waited for {age} since {since}, and "
        f"the server keeps all WAL from there (hint: COMMIT PREPARED {literal} or "
        f"ROLLBACK PREPARED {literal} ends it)"
        for gid, owner, since, age, literal in session.execute(WAITING)
    )
