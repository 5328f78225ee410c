"""Whether a source still goes on where the change log ends; else the log is begun anew, if the user
lets a lost log be answered by a refresh (`auto_refresh: {on: [log_lost]}`)."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import psycopg

from headrace.config import Capture, Settings
from headrace.connectors.postgres.config import session as source_session
from headrace.connectors.postgres.failures import REBUILD
from headrace.connectors.postgres.slot_state import end_of_wal, interruption, slot_state
from headrace.connectors.postgres.slots import drop_slot
from headrace.connectors.postgres.timelines import Lineage, fork, timeline
from headrace.errors import ObjectMissingError, SlotLostError
from headrace.log import LogWriter, Storage
from headrace.log.anew import intend_anew
from headrace.log.layout import Layout
from headrace.model import Lsn

# A restored database has another number; one restored into another server, another system.
IDENTITY: Final = """
SELECT (pg_catalog.pg_control_system()).system_identifier::text, d.oid::bigint
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""

_log = logging.getLogger("headrace.run")


@dataclass(frozen=True)
class SourceIdentity:
    """Which database of which server a change log tells of, and on which timeline; None in what
    an older version noted."""

    system: str
    database: int
    timeline: int | None


def opened_log(settings: Settings, capture: Capture, storage: Storage) -> LogWriter:
    """The capture's change log, its lock held; begun anew where its source does not go on with it.

    Raises:
        SlotLostError: the source does not, and no pipeline lets that be answered by a refresh.
        LogLockedError: another process runs this capture.
    """
    log = LogWriter.open(storage, capture.name)
    try:
        with source_session(capture.connection) as session:
            now = _identity(session, capture)
            why = None if log.position is None else _broken(session, capture, log, now)
            if why is None:
                _note(storage, log.layout, now)
                return log
            if not answers_lost_logs(settings, capture):
                raise SlotLostError(why, hint=REBUILD)
            _drop_lost_slot(session, capture)
        intend_anew(storage, log.layout, why)
    except BaseException:
        log.close()
        raise
    log.close()
    _log.warning('log_begun_anew capture=%s reason="%s"', capture.name, why)
    log = LogWriter.open(storage, capture.name)
    _note(storage, log.layout, now)
    return log


def answers_lost_logs(settings: Settings, capture: Capture) -> bool:
    """Whether one of the capture's pipelines has its tables refreshed where the log is lost."""
    policies = [settings.pipelines[name].auto_refresh for name in capture.pipelines]
    return any(policy is not None and "log_lost" in policy.on for policy in policies)


def _broken(
    session: psycopg.Connection[Any], capture: Capture, log: LogWriter, now: SourceIdentity
) -> str | None:
    """Why the source does not go on where the log ends; None where it does."""
    assert log.position is not None
    known = _noted(log.storage, log.layout)
    if known is not None and (known.system, known.database) != (now.system, now.database):
        return f"the database is another one than the change log {log.log_id} tells of"
    why = None if known is None else _fork(capture, known.timeline, now.timeline, log.position)
    if why is not None:
        return why
    end = end_of_wal(session)
    if end < log.position:
        return f"the source went back to {end}, behind the change log's {log.position}"
    return interruption(slot_state(session, capture.slot), capture.slot, log.position)


def _drop_lost_slot(session: psycopg.Connection[Any], capture: Capture) -> None:
    """A slot without its WAL is of use to nobody; the run creates it again."""
    slot = slot_state(session, capture.slot)
    if slot is not None and slot.lost_because and slot.foreign_because is None:
        drop_slot(session, capture.slot)


def _fork(capture: Capture, known: int | None, now: int | None, position: Lsn) -> str | None:
    if known is None or now is None or known == now:
        return None
    with source_session(capture.connection, replication=True) as replication:
        return fork(replication, known, now, position)


def _identity(session: psycopg.Connection[Any], capture: Capture) -> SourceIdentity:
    row = session.execute(IDENTITY).fetchone()
    assert row is not None
    system, database = row
    with source_session(capture.connection, replication=True) as replication:
        return SourceIdentity(system, database, timeline(replication))


def lineage(storage: Storage, layout: Layout) -> Lineage:
    """The timeline that a log which was opened follows, and where the next one is noted."""
    known = _noted(storage, layout)

    def note(timeline: int) -> None:
        if known is not None:
            _note(storage, layout, replace(known, timeline=timeline))

    return Lineage(None if known is None else known.timeline, note)


def _noted(storage: Storage, layout: Layout) -> SourceIdentity | None:
    try:
        data = json.loads(storage.get(layout.source))
    except ObjectMissingError:
        return None
    return SourceIdentity(data["system"], data["database"], data.get("timeline"))


def _note(storage: Storage, layout: Layout, now: SourceIdentity) -> None:
    if _noted(storage, layout) != now:
        storage.put(layout.source, json.dumps(asdict(now)).encode())


def tolerated(settings: Settings, capture: Capture) -> Collection[str]:
    """Findings of the preflight that a run answers by itself."""
    return {"slot-lost"} if answers_lost_logs(settings, capture) else set()
