"""A run's state as frozen numbers, read while it goes on; everything shown of a run is made of it.

The threads of the run write what is read here and take no lock for it: each number is right by
itself, and may be a tick older than its neighbour.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from headrace.engine.materialize import Materialization, Phase, TableState
from headrace.engine.runner import RunView
from headrace.model import Lsn


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
class RunNumbers:
    """A whole run at one moment.

    `at` is monotonic, in seconds. `captured` and `applied` count changes since the start;
    `lag_bytes` is the WAL that was received and is not at every destination yet, `lag_seconds` the
    age of the oldest change that waits.
    """

    at: float
    streams: tuple[StreamNumbers, ...] = ()
    copies: tuple[CopyNumbers, ...] = ()
    tables: tuple[TableNumbers, ...] = ()
    captured: int = 0
    applied: int = 0
    lag_bytes: int = 0
    lag_seconds: float = 0.0

    def in_phase(self, phase: Phase) -> tuple[TableNumbers, ...]:
        return tuple(table for table in self.tables if table.phase is phase)

    @property
    def copying(self) -> bool:
        """Whether a snapshot is being taken or loaded."""
        unfinished = any(not copy.ended for copy in self.copies)
        return unfinished or any(t.phase in (Phase.WAITING, Phase.LOADING) for t in self.tables)


def read_numbers(views: Sequence[RunView]) -> RunNumbers:
    """Look at every capture of a run once."""
    now = datetime.now(UTC)
    return RunNumbers(
        at=time.monotonic(),
        streams=tuple(map(_stream, views)),
        copies=tuple(copy for view in views for copy in _copies(view)),
        tables=tuple(t for view in views for m in view.materializations for t in _tables(m)),
        captured=sum(view.capture.progress.rows for view in views),
        applied=sum(s.applied_rows for s in _states(views)),
        lag_bytes=max(map(_lag_bytes, views), default=0),
        lag_seconds=max((_waited(state, now) for state in _states(views)), default=0.0),
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
