"""A run's state as frozen numbers, read while it goes on; everything shown of a run is made of it.

The threads of the run write what is read here and take no lock for it: each number is right by
itself, and may be a tick older than its neighbour.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from headrace.engine.materialize import Materialization
from headrace.engine.runner import RunView
from headrace.engine.sync_state import SyncView
from headrace.engine.table_state import Phase, TableState
from headrace.model import Lsn, RowCounts

View = RunView | SyncView


@dataclass(frozen=True)
class StreamNumbers:
    """One replication stream, named by the pipelines that it feeds."""

    pipelines: str
    connected: bool
    error: str | None = None


@dataclass(frozen=True)
class CopyNumbers:
    """One table's snapshot. `expected` rows are the planner's estimate, 0 where it has none."""

    table: str
    expected: int
    rows: int
    done: bool = False
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.done or self.error is not None


@dataclass(frozen=True)
class TableNumbers:
    """One table at one destination."""

    pipeline: str
    table: str
    phase: Phase
    applied: int = 0
    error: str | None = None


@dataclass(frozen=True)
class SyncNumbers(TableNumbers):
    """One table that follows another's versions: `version` is applied, `head` the newest known.

    `breaches` counts, per `expect:` rule, the rows that broke it since the start.
    """

    version: int | None = None
    head: int | None = None
    lag_versions: int | None = None
    lag_seconds: float = 0.0
    breaches: tuple[tuple[str, int], ...] = ()
    notice: str | None = None


@dataclass(frozen=True)
class RunNumbers:
    """A whole run at one moment.

    `at` is monotonic, in seconds. `captured` and `applied` count changes since the start;
    `written` counts the rows of the destinations.
    `lag_bytes` is the WAL that was received and is not at every destination yet, `lag_seconds` the
    age of the oldest change or version that waits. Once `ended`, streams are closed, not lost.
    """

    at: float
    streams: tuple[StreamNumbers, ...] = ()
    copies: tuple[CopyNumbers, ...] = ()
    tables: tuple[TableNumbers, ...] = ()
    captured: int = 0
    applied: int = 0
    written: RowCounts = field(default_factory=RowCounts)
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    ended: bool = False

    @property
    def syncs(self) -> tuple[SyncNumbers, ...]:
        return tuple(table for table in self.tables if isinstance(table, SyncNumbers))

    @property
    def lag_versions(self) -> int:
        """Of the table that is furthest behind."""
        return max((table.lag_versions or 0 for table in self.syncs), default=0)

    def in_phase(self, phase: Phase) -> tuple[TableNumbers, ...]:
        return tuple(table for table in self.tables if table.phase is phase)

    @property
    def copying(self) -> bool:
        """Whether a snapshot is being taken or loaded."""
        unfinished = any(not copy.ended for copy in self.copies)
        return unfinished or any(t.phase in (Phase.WAITING, Phase.LOADING) for t in self.tables)


def read_numbers(views: Sequence[View]) -> RunNumbers:
    """Look at every capture and every sync of a run once."""
    now = datetime.now(UTC)
    captures = [view for view in views if isinstance(view, RunView)]
    syncs = [view for view in views if isinstance(view, SyncView)]
    waits = [_waited(state, now) for state in _states(captures)]
    return RunNumbers(
        at=time.monotonic(),
        streams=tuple(map(_stream, captures)),
        copies=(
            *(copy for view in captures for copy in _copies(view)),
            *(copy for view in syncs for copy in _synced_copies(view)),
        ),
        tables=(
            *(t for view in captures for m in view.materializations for t in _tables(m)),
            *(table for view in syncs for table in _synced(view)),
        ),
        captured=sum(view.capture.progress.rows for view in captures),
        applied=sum(view.rows_applied for view in views),
        written=sum(_written(captures, syncs), RowCounts()),
        lag_bytes=max(map(_lag_bytes, captures), default=0),
        lag_seconds=max([*waits, *(view.lag_seconds for view in syncs)], default=0.0),
    )


def _stream(view: RunView) -> StreamNumbers:
    progress = view.capture.progress
    names = ",".join(m.name for m in view.materializations)
    error = progress.error if not progress.connected else view.copier.error
    return StreamNumbers(names, progress.connected, str(error) if error else None)


def _copies(view: RunView) -> Iterator[CopyNumbers]:
    for table, progress in list(view.copier.progress.items()):
        error = str(progress.error) if progress.error else None
        yield CopyNumbers(str(table), progress.expected, progress.rows, progress.done, error)


def _tables(materialization: Materialization) -> Iterator[TableNumbers]:
    for table, state in materialization.tables.items():
        error = str(state.error) if state.error else None
        yield TableNumbers(materialization.name, str(table), state.phase, state.applied_rows, error)


def _synced(view: SyncView) -> Iterator[SyncNumbers]:
    for table, state in view.tables.items():
        yield SyncNumbers(
            pipeline=view.pipeline,
            table=str(table),
            phase=state.phase,
            applied=state.applied_rows,
            error=str(state.error) if state.error else None,
            version=state.version,
            head=state.head.number if state.head else None,
            lag_versions=state.lag_versions,
            lag_seconds=state.lag_seconds,
            breaches=tuple((rule, count.breaches) for rule, count in list(state.counts.items())),
            notice=state.notice,
        )


def _synced_copies(view: SyncView) -> Iterator[CopyNumbers]:
    """Tables that are read whole, or were, for their first load or to be built anew."""
    for table, state in view.tables.items():
        loading = state.phase is Phase.LOADING
        if loading or state.copied_rows:
            error = str(state.error) if state.phase is Phase.FAILED else None
            done = state.checkpoint is not None and not loading
            yield CopyNumbers(
                str(table), state.expected_rows or 0, state.copied_rows, done and not error, error
            )


def _written(captures: Sequence[RunView], syncs: Sequence[SyncView]) -> Iterator[RowCounts]:
    yield from (state.written for state in _states(captures))
    yield from (state.written for view in syncs for state in view.tables.values())


def _states(views: Sequence[RunView]) -> Iterator[TableState]:
    return (state for v in views for m in v.materializations for state in m.tables.values())


def _lag_bytes(view: RunView) -> int:
    received = view.capture.progress.received
    reached = [lsn for m in view.materializations for lsn in _reached(m)]
    return max(received - min(reached, default=received), 0)


def _reached(materialization: Materialization) -> Iterator[Lsn]:
    """How far each table is that can go on; one without work is where its pipeline is."""
    for state in materialization.tables.values():
        if state.checkpoint is not None and state.phase is not Phase.FAILED:
            yield state.checkpoint.lsn if state.queue else materialization.position


def _waited(state: TableState, now: datetime) -> float:
    """Seconds since the commit of the oldest change that waits; 0 where none does."""
    if state.phase is Phase.FAILED:
        return 0.0
    try:
        oldest = state.queue[0].commit_ts
    except IndexError:
        return 0.0
    return max((now - oldest).total_seconds(), 0.0) if oldest else 0.0
