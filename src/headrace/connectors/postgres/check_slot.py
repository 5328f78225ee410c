"""Preflight of the replication slot: usable, ours to take, and not older than its publication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import class_row

from headrace.connectors.postgres.slot_state import SlotState
from headrace.connectors.postgres.slots import LOG_SNAPSHOT
from headrace.connectors.postgres.two_phase import Disagreement
from headrace.model.finding import Finding, Severity


def slot_findings(
    name: str, slot: SlotState | None, disagreement: Disagreement | None, *, on_standby: bool
) -> list[Finding]:
    """What stands in the way of adopting the slot; OK if it is sound or still to be created."""
    if slot is None:
        return [*_two_phase(name, disagreement), _to_be_created(name, on_standby)]
    foreign = _foreign(slot)
    if foreign:
        return [foreign]
    if slot.lost_because:
        return [_lost(slot)]
    found = [f for f in (_unreserved(slot), _active(slot)) if f]
    found = [*_two_phase(name, disagreement), *found]
    sound = f"slot {name!r} stands at {slot.confirmed_flush}"
    return found or [Finding(Severity.OK, "slot", sound, (name,))]


def _to_be_created(name: str, on_standby: bool) -> Finding:
    message, fix = f"slot {name!r} will be created", ""
    if on_standby:
        message += ", once the primary notes which transactions are open"
        fix = f"an idle primary does so by {LOG_SNAPSHOT}"
    return Finding(Severity.OK, "slot", message, (name,), fix=fix)


@dataclass(frozen=True)
class Standbys:
    """The slots by which standbys follow this server. `awaited` are those that failover slots wait
    for (synchronized_standby_slots, 17), `present` those that a standby uses now."""

    slots: Sequence[str]
    present: Sequence[str]
    awaited: Sequence[str]


STANDBYS: Final = """
SELECT coalesce(array_agg(slot_name::text ORDER BY slot_name), '{}') AS slots,
       coalesce(array_agg(slot_name::text) FILTER (WHERE active), '{}') AS present,
       array_remove(pg_catalog.string_to_array(pg_catalog.replace(coalesce(
         pg_catalog.current_setting('synchronized_standby_slots', true), ''), ' ', ''), ','), '')
         AS awaited
  FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical'
"""


def read_standbys(session: psycopg.Connection[Any]) -> Standbys:
    with session.cursor(row_factory=class_row(Standbys)) as cursor:
        return cursor.execute(STANDBYS).fetchall()[0]


def failover_findings(name: str, standbys: Standbys, *, failover: bool) -> list[Finding]:
    """Whether the slot survives its server, where a standby could take over (Postgres 17)."""
    if not standbys.slots:
        return []
    if not failover:
        return [
            Finding(
                Severity.WARNING,
                "slot-failover",
                f"slot {name!r} is not handed on to standbys: if one is promoted, the slot is lost",
                (name,),
                f"failover = false, standbys use {', '.join(standbys.slots)}",
                "set failover: true for this connection in headrace.yaml",
            )
        ]
    away = [slot for slot in standbys.awaited if slot not in standbys.present]
    if not away:
        return [Finding(Severity.OK, "slot-failover", f"slot {name!r} is handed on to standbys")]
    return [
        Finding(
            Severity.WARNING,
            "slot-failover",
            f"slot {name!r} sends nothing while standbys are away that the server waits for",
            tuple(away),
            f"synchronized_standby_slots = {', '.join(standbys.awaited)}",
            f"bring back what follows by {', '.join(away)}, or take it out of the setting",
        )
    ]


def _foreign(slot: SlotState) -> Finding | None:
    """A slot that is somebody else's altogether."""
    if slot.foreign_because is None:
        return None
    problem, evidence = slot.foreign_because
    return Finding(
        Severity.BLOCKER,
        "slot-foreign",
        f"slot {slot.name!r} {problem}: Headrace cannot read from it",
        (slot.name,),
        evidence,
        "name another slot in headrace.yaml (slot:); Headrace creates it",
    )


def _lost(slot: SlotState) -> Finding:
    return Finding(
        Severity.BLOCKER,
        "slot-lost",
        f"slot {slot.name!r} is lost: changes since {slot.confirmed_flush} cannot be read",
        (slot.name,),
        slot.lost_because,
        f"headrace destroy drops it, and the next run copies the tables anew; by hand: {slot.drop}",
        (slot.drop,),
    )


def _two_phase(name: str, found: Disagreement | None) -> list[Finding]:
    if found is None:
        return []
    return [
        Finding(Severity.BLOCKER, "slot-two-phase", found.why, (name,), "", found.fix, found.sql)
    ]


def _unreserved(slot: SlotState) -> Finding | None:
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


def _active(slot: SlotState) -> Finding | None:
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


def order_finding(slot: SlotState, publication: str, publication_age: int) -> Finding:
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
