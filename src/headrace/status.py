"""What `headrace status` tells: where every capture and table stands, from the log and the source.

It reads what a run records beside the change log, so that it works whether or not one is going on,
and says what it could not find out instead of leaving it away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from headrace import assembly, syncing
from headrace.config import Capture, Settings, Sync
from headrace.connectors.postgres.config import session as source_session
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.slot_outlook import SlotOutlook, read_outlook
from headrace.connectors.postgres.slot_state import SlotState, end_of_wal, slot_state
from headrace.connectors.postgres.slot_waits import creation_waits, table_waits
from headrace.connectors.postgres.two_phase import prepared_waits
from headrace.engine.table_state import Phase
from headrace.errors import HeadraceError
from headrace.log import LogReader, UnfinishedCopy
from headrace.model import Lsn
from headrace.proofs import Proof, proofs


@dataclass(frozen=True)
class CaptureStatus:
    """One slot and its change log. What is None could not be asked; `error` says why."""

    capture: str
    running: str | None  # who holds the log: host, process and since when
    commit: int  # the newest of the change log
    position: Lsn | None  # how far the log durably holds the source
    source_lsn: Lsn | None
    lag_bytes: int | None  # WAL that the log does not hold yet
    slot: SlotState | None
    outlook: SlotOutlook | None = None  # how long the slot will last, and who holds it up
    waits: tuple[str, ...] = ()  # what holds up a run, and what waits to be committed
    error: str | None = None


@dataclass(frozen=True)
class TableStatus:
    """One table of one pipeline. `lag_seconds` is the age of the oldest change not applied.

    What is None does not apply: tables of a capture have no versions, those from Delta no WAL.
    `version` is applied, `source_version` the newest known; `breaches` count the rows that broke
    each `expect:` rule in the last run; `notice` says what was done out of the ordinary, and why.
    `upserted` and `deleted` count the destination's rows that the run wrote, or the last one.
    """

    pipeline: str
    table: str
    phase: Phase
    rows_applied: int
    lsn: Lsn | None
    lag_bytes: int | None
    lag_seconds: float | None
    error: str | None
    version: int | None = None
    source_version: int | None = None
    lag_versions: int | None = None
    quarantined: int | None = None
    breaches: Mapping[str, int] | None = None
    notice: str | None = None
    upserted: int | None = None
    deleted: int | None = None
    verified: Proof | None = None

    @property
    def differs(self) -> bool:
        """Whether the last verification found a difference that nothing has mended since."""
        return self.verified is not None and self.verified.differs


@dataclass(frozen=True)
class Status:
    """All captures and all tables of a project."""

    captures: tuple[CaptureStatus, ...]
    tables: tuple[TableStatus, ...]


def project_status(settings: Settings) -> Status:
    """Look at everything once; an unreachable source is part of the answer, not an error."""
    captures: list[CaptureStatus] = []
    tables: list[TableStatus] = []
    for capture in settings.captures():
        reader = assembly.open_reader(settings, capture)
        status = _capture_status(settings, capture, reader)
        captures.append(status)
        if reader is not None:
            for pipeline in capture.pipelines:
                found = _table_statuses(settings, reader, pipeline, status)
                tables += _with_proofs(settings, capture, pipeline, reader, found)
    for sync in settings.syncs():
        tables += _synced_statuses(settings, sync)
    return Status(tuple(captures), tuple(tables))


def _capture_status(
    settings: Settings, capture: Capture, reader: LogReader | None
) -> CaptureStatus:
    commit, position = _head(reader)
    running = assembly.lock_holder(settings, capture)
    status = CaptureStatus(capture.name, running, commit, position, None, None, None)
    try:
        status = _ask(capture, status)
    except HeadraceError as error:
        return replace(status, error=str(error))
    if status.source_lsn is None or position is None:
        return status
    return replace(status, lag_bytes=max(status.source_lsn - position, 0))


def _head(reader: LogReader | None) -> tuple[int, Lsn | None]:
    if reader is None:
        return 0, None
    head = reader.head()
    newest = list(reader.manifests(head - 1)) if head else []
    return head, newest[-1].to_lsn if newest else None


def _ask(capture: Capture, status: CaptureStatus) -> CaptureStatus:
    """With what the source tells."""
    with source_session(capture.connection) as session:
        slot = slot_state(session, capture.slot)
        return replace(
            status,
            slot=slot,
            outlook=None if slot is None else read_outlook(session, slot),
            waits=(
                *creation_waits(session, capture.slot),
                *table_waits(session),
                *prepared_waits(session),
            ),
            source_lsn=end_of_wal(session),
        )


def _table_statuses(
    settings: Settings, reader: LogReader, pipeline: str, capture: CaptureStatus
) -> Iterator[TableStatus]:
    tables = (reader.position(pipeline) or {}).get("tables", {})
    parked, error = _parked(settings, pipeline) if tables else ({}, None)
    copies = {str(table): copy for table, copy in reader.unfinished().items()}
    for table, known in tables.items():
        status = _table_status(reader, pipeline, table, known, capture)
        if table in copies:
            status = replace(status, notice=_copied_so_far(copies[table]))
        found = None if parked is None else parked.get(table)
        yield replace(status, quarantined=found, error=status.error or error)


def _copied_so_far(copy: UnfinishedCopy) -> str:
    done = f"{len(copy.done)} of {len(copy.ranges)} ranges are copied, with {copy.rows:,} rows"
    return f"{done}; they are kept when the run ends"


def _table_status(
    reader: LogReader, pipeline: str, table: str, known: Mapping[str, Any], capture: CaptureStatus
) -> TableStatus:
    passed = int(known["passed"])
    waiting = passed < capture.commit
    lsn = Lsn.parse(known["lsn"]) if known["lsn"] else None
    reached = lsn if waiting or capture.position is None else capture.position
    bytes_behind = None
    if capture.source_lsn is not None and reached is not None:
        bytes_behind = max(capture.source_lsn - reached, 0)
    return TableStatus(
        pipeline=pipeline,
        table=table,
        phase=Phase(known["phase"]),
        rows_applied=known["rows_applied"],
        lsn=lsn,
        lag_bytes=bytes_behind,
        lag_seconds=_age(reader, passed) if waiting else 0.0,
        error=known["error"],
        notice=known.get("notice"),
        upserted=known.get("upserted"),
        deleted=known.get("deleted"),
    )


def _with_proofs(
    settings: Settings,
    capture: Capture,
    pipeline: str,
    reader: LogReader,
    statuses: Iterable[TableStatus],
) -> Iterator[TableStatus]:
    """With what was found last, unless the table was copied anew since."""
    known = proofs(settings, capture, pipeline)
    recorded = (reader.position(pipeline) or {}).get("tables", {})
    for status in statuses:
        proof = known.get(status.table)
        copied = recorded[status.table].get("refreshed")
        if proof is not None and (not copied or datetime.fromisoformat(copied) < proof.at):
            status = replace(status, verified=proof)
        yield status


def _parked(settings: Settings, pipeline: str) -> tuple[Mapping[str, int] | None, str | None]:
    """Rows in quarantine by the source's tables, or why nobody can tell.

    None where the destination has no quarantine.
    """
    place = assembly.destination(settings, pipeline)
    if not isinstance(place, PostgresDestination):
        return None, None
    try:
        with closing(place):
            counts = place.quarantined_counts(pipeline)
        selected = assembly.selected(settings, pipeline)
    except HeadraceError as error:
        return None, str(error)
    return {str(t.source): counts.get(t.target, 0) for t in selected}, None


def _age(reader: LogReader, passed: int) -> float:
    """Seconds since the oldest commit that was not passed; 0 where it brought no change."""
    for manifest in reader.manifests(passed):
        if manifest.commit_ts is not None:
            return max((datetime.now(UTC) - manifest.commit_ts).total_seconds(), 0.0)
    return 0.0


# -- tables from Delta -----------------------------------------------------------------------------


def _synced_statuses(settings: Settings, sync: Sync) -> Iterator[TableStatus]:
    """The tables as the pipeline's last run left them, or the run that goes on sees them."""
    tables = syncing.recorded(settings, sync.name).get("tables", {})
    if tables:
        parked, error = _parked(settings, sync.name)
        for table, known in tables.items():
            found = None if parked is None else parked.get(table, 0)
            yield _synced_status(sync.name, table, known, found, error)


def _synced_status(
    pipeline: str, table: str, known: Mapping[str, Any], parked: int | None, error: str | None
) -> TableStatus:
    behind = known["behind_since"]
    age = (datetime.now(UTC) - datetime.fromisoformat(behind)).total_seconds() if behind else 0.0
    return TableStatus(
        pipeline=pipeline,
        table=table,
        phase=Phase(known["phase"]),
        rows_applied=known["rows_applied"],
        lsn=None,
        lag_bytes=None,
        lag_seconds=max(age, 0.0),
        error=known["error"] or error,
        version=known["version"],
        source_version=known["head"],
        lag_versions=known["lag_versions"],
        quarantined=parked,
        breaches={name: count["breaches"] for name, count in known["expectations"].items()},
        notice=known["notice"],
        upserted=known.get("upserted"),
        deleted=known.get("deleted"),
    )
