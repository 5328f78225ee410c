"""A row of pg_replication_slots, and what it means: whose the slot is, whether changes can still be
read from it, and whether it goes on where a change log ends.

Postgres documentation, "pg_replication_slots". Judged here and nowhere else: by the preflight, at a
start, at each reconnection, and once more when the stream runs and nobody can move the slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from headrace.model import Lsn

PLUGIN: Final = "pgoutput"

# The end of what can be streamed: a standby sends what it has replayed.
END_OF_WAL: Final = """
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_lsn() END AS lsn
"""

# By way of JSON, because columns came one by one (two_phase with 14, conflicting 16,
# invalidation_reason, failover, synced and inactive_since 17): those that a server lacks are NULL.
# Whoever is not of the consumer's role sees no application_name.
SLOT: Final = f"""
SELECT s.slot_name::text AS name, s.slot_type, s.plugin::text, s.database::text,
       pg_catalog.current_database()::text AS current_database, s.temporary,
       s.active_pid, a.application_name, s.wal_status,
       coalesce(pg_catalog.to_jsonb(s) ->> 'invalidation_reason', '') AS invalidation_reason,
       coalesce((pg_catalog.to_jsonb(s) ->> 'conflicting')::bool, false) AS conflicting,
       coalesce((pg_catalog.to_jsonb(s) ->> 'two_phase')::bool, false) AS two_phase,
       coalesce((pg_catalog.to_jsonb(s) ->> 'failover')::bool, false) AS failover,
       coalesce((pg_catalog.to_jsonb(s) ->> 'synced')::bool, false)
         AND pg_catalog.pg_is_in_recovery() AS synchronized,
       s.restart_lsn::text AS restart, s.confirmed_flush_lsn::text AS confirmed_flush,
       coalesce(pg_catalog.age(s.catalog_xmin), 0) AS catalog_age,
       (pg_catalog.to_jsonb(s) ->> 'inactive_since')::timestamptz AS inactive_since,
       s.safe_wal_size,
       pg_catalog.pg_wal_lsn_diff(w.lsn, s.confirmed_flush_lsn)::bigint AS lag_bytes,
       pg_catalog.pg_wal_lsn_diff(w.lsn, s.restart_lsn)::bigint AS retained_bytes
  FROM pg_catalog.pg_replication_slots s
 CROSS JOIN ({END_OF_WAL}) w
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.slot_name = %s
"""  # noqa: S608  # a constant


@dataclass(frozen=True)
class SlotState:
    """A row of SLOT. Sizes are in bytes: `lag_bytes` is WAL that the consumer has not confirmed,
    `retained_bytes` WAL that the server keeps for it, `safe_wal_size` what may be written until the
    slot is in danger (None: without limit, or lost).

    `catalog_age` counts transactions back to the oldest catalog row it needs (a physical slot needs
    none); `synchronized` slots are a standby's copies of its primary's.
    """

    name: str
    slot_type: str
    plugin: str | None
    database: str | None
    current_database: str
    temporary: bool
    active_pid: int | None
    application_name: str | None
    wal_status: str | None
    invalidation_reason: str
    conflicting: bool
    two_phase: bool
    failover: bool
    synchronized: bool
    restart: Lsn | None
    confirmed_flush: Lsn | None
    catalog_age: int
    inactive_since: datetime | None
    safe_wal_size: int | None
    lag_bytes: int | None
    retained_bytes: int | None

    @property
    def foreign_because(self) -> tuple[str, str] | None:
        """What keeps it from ever being ours, and the evidence; None if it may be adopted."""
        if self.slot_type != "logical":
            return "is a physical slot", f"slot_type = {self.slot_type}"
        if self.plugin != PLUGIN:
            return f"belongs to the plugin {self.plugin}", f"plugin = {self.plugin}"
        if self.database != self.current_database:
            return f"is of database {self.database!r}", f"database = {self.database}"
        if self.temporary:
            return "is temporary: it goes with the session that made it", "temporary = true"
        if self.synchronized:
            return "is the standby's copy of its primary's, until it is promoted", "synced = true"
        return None

    @property
    def lost_because(self) -> str:
        """Why no change can be read from it any more; empty if it is sound."""
        if self.invalidation_reason:
            return f"invalidation_reason = {self.invalidation_reason}"
        if self.conflicting:
            return "conflicting = true"
        if self.wal_status in ("lost", None):
            return f"wal_status = {self.wal_status or 'NULL'}"
        return ""

    @property
    def drop(self) -> str:
        """The statement that drops it."""
        name = sql.Literal(self.name).as_string(None)
        return f"SELECT pg_catalog.pg_drop_replication_slot({name})"


_LSNS: Final = ("restart", "confirmed_flush")


def slot_state(session: psycopg.Connection[Any], slot: str) -> SlotState | None:
    """The slot's row, or None if there is no such slot."""
    with session.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(SLOT, (slot,)).fetchone()
    if row is None:
        return None
    lsns = {name: Lsn.parse(row[name]) if row[name] else None for name in _LSNS}
    return SlotState(**{**row, **lsns})


def end_of_wal(session: psycopg.Connection[Any]) -> Lsn:
    """The end of what the server can send by now."""
    row = session.execute(f"SELECT lsn::text FROM ({END_OF_WAL}) w").fetchone()  # noqa: S608
    return Lsn.parse(row[0] if row and row[0] else "0/0")


def interruption(slot: SlotState | None, name: str, position: Lsn) -> str | None:
    """Why changes after `position` cannot be read from slot `name`; None where all of them can."""
    if slot is None:
        return (
            f"replication slot {name!r} no longer exists: changes after {position} cannot be read"
        )
    if slot.foreign_because is not None:
        return f"replication slot {name!r} was recreated by somebody: {slot.foreign_because[0]}"
    if slot.lost_because:
        return (
            f"replication slot {name!r} is lost ({slot.lost_because}): the server no longer has "
            f"what comes after {position}"
        )
    if slot.confirmed_flush is None or slot.confirmed_flush > position:
        return (
            f"replication slot {name!r} stands at {slot.confirmed_flush}, beyond the change log's "
            f"{position}: somebody else advanced or recreated it"
        )
    return None
