"""Preflight of the replication slot: usable, ours to take, and not older than its publication."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from headrace.model.finding import Finding, Severity

PLUGIN: Final = "pgoutput"

# As JSON, because columns came one by one (two_phase with 14, conflicting 16, invalidation_reason
# 17): those that a server lacks are NULL. Whoever is not of the consumer's role sees no
# application_name.
SLOT: Final = """
SELECT s.slot_name::text AS name, s.slot_type, s.plugin::text, s.database::text,
       pg_catalog.current_database()::text AS current_database,
       s.active_pid, a.application_name, s.wal_status,
       coalesce(pg_catalog.to_jsonb(s) ->> 'invalidation_reason', '') AS invalidation_reason,
       coalesce((pg_catalog.to_jsonb(s) ->> 'conflicting')::bool, false) AS conflicting,
       coalesce((pg_catalog.to_jsonb(s) ->> 'two_phase')::bool, false) AS two_phase,
       s.confirmed_flush_lsn::text AS confirmed_flush,
       coalesce(pg_catalog.age(s.catalog_xmin), 0) AS catalog_age
  FROM pg_catalog.pg_replication_slots s
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.slot_name = %s
"""


@dataclass(frozen=True)
class Slot:
    """A row of SLOT. `catalog_age` counts transactions back to the oldest catalog row it needs
    (a physical slot needs none)."""

    name: str
    slot_type: str
    plugin: str | None
    database: str | None
    current_database: str
    active_pid: int | None
    application_name: str | None
    wal_status: str | None
    invalidation_reason: str
    conflicting: bool
    two_phase: bool
    confirmed_flush: str | None
    catalog_age: int

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


def read_slot(session: psycopg.Connection[Any], name: str) -> Slot | None:
    with session.cursor(row_factory=class_row(Slot)) as cursor:
        return cursor.execute(SLOT, (name,)).fetchone()


def slot_findings(name: str, slot: Slot | None) -> list[Finding]:
    """What stands in the way of adopting the slot; OK if it is sound or still to be created."""
    if slot is None:
        return [Finding(Severity.OK, "slot", f"slot {name!r} will be created", (name,))]
    foreign = _foreign(slot)
    if foreign:
        return [foreign]
    if slot.lost_because:
        return [_lost(slot)]
    found = [f for f in (_two_phase(slot), _unreserved(slot), _active(slot)) if f]
    sound = f"slot {name!r} stands at {slot.confirmed_flush}"
    return found or [Finding(Severity.OK, "slot", sound, (name,))]


def _foreign(slot: Slot) -> Finding | None:
    """A slot that is somebody else's altogether."""
    if slot.slot_type != "logical":
        problem, evidence = "is a physical slot", f"slot_type = {slot.slot_type}"
    elif slot.plugin != PLUGIN:
        problem, evidence = f"belongs to the plugin {slot.plugin}", f"plugin = {slot.plugin}"
    elif slot.database != slot.current_database:
        problem, evidence = f"is of database {slot.database!r}", f"database = {slot.database}"
    else:
        return None
    return Finding(
        Severity.BLOCKER,
        "slot-foreign",
        f"slot {slot.name!r} {problem}: Headrace cannot read from it",
        (slot.name,),
        evidence,
        "name another slot in headrace.yaml (slot:); Headrace creates it",
    )


def _lost(slot: Slot) -> Finding:
    return Finding(
        Severity.BLOCKER,
        "slot-lost",
        f"slot {slot.name!r} is lost: changes since {slot.confirmed_flush} cannot be read",
        (slot.name,),
        slot.lost_because,
        f"headrace destroy drops it, and the next run copies the tables anew; by hand: {slot.drop}",
        (slot.drop,),
    )


def _two_phase(slot: Slot) -> Finding | None:
    if not slot.two_phase:
        return None
    return Finding(
        Severity.BLOCKER,
        "slot-two-phase",
        f"slot {slot.name!r} decodes prepared transactions before they commit, "
        "which Headrace does not follow",
        (slot.name,),
        "two_phase = true",
        "name another slot in headrace.yaml (slot:), or drop this one; Headrace creates it anew",
        (slot.drop,),
    )


def _unreserved(slot: Slot) -> Finding | None:
    if slot.wal_status != "unreserved":
        return None
    return Finding(
        Severity.WARNING,
        "slot-nearly-lost",
        f"slot {slot.name!r} is lost at the next checkpoint, unless it catches up before",
        (slot.name,),
        "wal_status = unreserved",
        "run Headrace now, or raise max_slot_wal_keep_size",
    )


def _active(slot: Slot) -> Finding | None:
    if slot.active_pid is None:
        return None
    consumer = repr(slot.application_name) if slot.application_name else "unknown"
    return Finding(
        Severity.WARNING,
        "slot-active",
        f"slot {slot.name!r} is in use by process {slot.active_pid} of the server "
        f"(application_name {consumer}); only one consumer can have it",
        (slot.name,),
        f"active_pid = {slot.active_pid}",
        "fine if it is this project's own running capture; else stop that consumer: "
        f"SELECT pg_catalog.pg_terminate_backend({slot.active_pid})",
    )


def order_finding(slot: Slot, publication: str, publication_age: int) -> Finding:
    """Whether the publication is older than what the slot still has to send.

    Decoding sees the catalog as it was at each change, so for changes older than the publication
    there is none: 13 to 17 then fail for ever, 18 leaves those changes out. A slot does not record
    when it was made. But every transaction before its catalog_xmin ended before the first change it
    has to send, so that a publication whose row is older is certainly seen. A younger row proves
    nothing: ALTER PUBLICATION writes a new one, a new slot starts with the catalog_xmin of the
    slowest other slot, and there may have been no change in between.
    """
    if publication_age > slot.catalog_age:
        message = f"publication {publication!r} is older than the changes that the slot holds"
        return Finding(Severity.OK, "publication-order", message)
    return Finding(
        Severity.WARNING,
        "publication-order",
        f"it cannot be told whether publication {publication!r} is older than slot {slot.name!r}; "
        "if it was created later, changes made in between cannot be read: Postgres 13 to 17 "
        "answer with an error, 18 leaves them out",
        (publication, slot.name),
        f"age(pg_publication.xmin) = {publication_age}, age(catalog_xmin) = {slot.catalog_age}",
        "nothing, if the publication was made first (or altered since), or nothing changed in "
        f"between; else drop the slot, and Headrace creates it anew: {slot.drop}",
        (slot.drop,),
    )
