"""One capture and the materializations it feeds, running together until told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from headrace.engine.capture import Capture
from headrace.engine.copying import Copier, CopyLimits
from headrace.engine.materialize import Materialization
from headrace.engine.protocols import Source
from headrace.engine.retry import Backoff
from headrace.engine.table_state import Phase
from headrace.errors import CopyStoppedError, HeadraceError, TableStoppedError
from headrace.log import LogWriter, expire
from headrace.log.requests import pending_requests
from headrace.model import Lsn, TableId

TICK: Final = 0.1  # seconds between two looks at what has ended
RETENTION_INTERVAL: Final = 60.0
REQUEST_INTERVAL: Final = 0.5  # so that a person sees a request taken up within a second or two

# What the stream does not tell is asked for so often: one query of the catalog.
GUARD_INTERVAL: Final = 5.0


@dataclass(frozen=True)
class RunView:
    """What a display may read while a run goes on; never written by it."""

    capture: Capture
    copier: Copier
    materializations: Sequence[Materialization]

    @property
    def rows_applied(self) -> int:
        """Changes that the destinations hold, since the run began."""
        return sum(s.applied_rows for m in self.materializations for s in m.tables.values())

    @property
    def lag_bytes(self) -> int:
        """WAL that the source has sent and the slowest table does not hold yet."""
        applied = min((m.applied_lsn for m in self.materializations), default=Lsn(0))
        return max(self.capture.progress.received - applied, 0)

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest change that is in the log and not at every destination."""
        waiting = [m.waiting_since for m in self.materializations if m.waiting_since is not None]
        return max((datetime.now(UTC) - min(waiting)).total_seconds(), 0.0) if waiting else 0.0


class Runner:
    """Runs one capture; `run` blocks and comes back with everything durable and the slot free.

    `stop` may be set by anyone, a signal handler included. With `once`, the run ends by itself when
    every destination holds what the source had at the start.
    """

    def __init__(
        self,
        source: Source,
        log: LogWriter,
        materializations: Sequence[Materialization],
        stop: threading.Event,
        *,
        limits: CopyLimits | None = None,
    ) -> None:
        self._source = source
        self._log = log
        self._stop = stop
        self._materializations = materializations
        self._quit = threading.Event()  # for our own threads; set after `stop`, in order
        self._capture = Capture(source, log)
        self._copier = Copier(source, log, self._capture, self._quit, limits)
        self._copied = threading.Event()
        self._look = threading.Event()  # something has ended, it may be all
        self._requests: set[str] = set()  # those that were handed on
        self.view = RunView(self._capture, self._copier, materializations)

    def suspect(self, pipeline: str, table: TableId, why: str) -> None:
        """Tell of a table that goes on, but differs from its source. From any thread."""
        for materialization in self._materializations:
            if materialization.name == pipeline:
                materialization.suspect(table, why)

    def run(self, *, once: bool = False) -> None:
        """Raises the first error that no retry can cure, after stopping everything else."""
        target = self._source.current_lsn() if once else None
        self._take_requests()
        tables = self._to_copy()
        try:
            self._capture.start()
        except CopyStoppedError:
            return
        if target is not None:
            self._capture.reach(target)
        apply_quit = threading.Event()
        jobs: list[Callable[[], None]] = [
            lambda: self._capture.run(self._quit),
            lambda: self._copy(tables),
            self._guard,
        ]
        with ThreadPoolExecutor(len(jobs) + len(self._materializations), "headrace-run") as pool:
            working = [pool.submit(job) for job in jobs]
            applied = [
                pool.submit(m.run, apply_quit, target, at_rest=self._look.set)
                for m in self._materializations
            ]
            try:
                self._watch([*working, *applied], target)
            finally:
                self._quit.set()
                self._capture.wake()
                apply_quit.set()
                for materialization in self._materializations:
                    materialization.interrupt()
        self._capture.close()
        for future in (*working, *applied):
            future.result()
        self._tolerant(self._take_requests)  # a short run has begun what was asked: once is enough

    def _to_copy(self) -> list[TableId]:
        """Tables that some destination waits for and the log has no snapshot of."""
        for materialization in self._materializations:
            materialization.begin_refreshes()
            materialization.catch_sight()
        return self._unsnapshotted({})

    def _copy(self, tables: list[TableId]) -> None:
        """Copy what is missing; later too, for a destination that was away, or a refresh."""
        self._copier.keep_only({t for m in self._materializations for t in m.tables})
        taken: dict[TableId, int] = {}  # newest commit of the log after a table was copied
        while not self._quit.is_set():
            try:
                self._copy_whole(tables)
            except CopyStoppedError:
                return
            head = self._log.head
            taken.update(dict.fromkeys(tables, head.commit if head else 0))
            self._copied.set()
            self._look.set()
            while not (tables := self._unsnapshotted(taken)):
                if self._quit.wait(TICK):
                    return

    def _unsnapshotted(self, taken: Mapping[TableId, int]) -> list[TableId]:
        """Tables that wait for a snapshot behind those that were taken of them."""
        waiting = [w for m in self._materializations for w in m.unsnapshotted().items()]
        return list(dict.fromkeys(t for t, after in waiting if after >= taken.get(t, 0)))

    def _take_requests(self) -> None:
        """Hand on what somebody asks for, and remove what every materialization has begun."""
        storage, layout = self._log.storage, self._log.layout
        for request in pending_requests(storage, layout):
            if request.path not in self._requests:
                self._requests.add(request.path)
                for materialization in self._materializations:
                    materialization.ask_refresh(request.tables, request.why)
            elif not any(m.asked(request.tables) for m in self._materializations):
                storage.delete([request.path])

    def _copy_whole(self, tables: list[TableId]) -> None:
        """Copy tables; what is not whole after that is copied anew as of a later LSN."""
        backoff = Backoff()
        while tables and not self._quit.is_set():
            try:
                self._copier.copy(tables)
            except CopyStoppedError:
                raise
            except HeadraceError as error:
                if not error.transient:
                    raise
                self._copier.error = error
            tables = [t for t in tables if not self._copier.progress[t].ended]
            if tables:
                self._quit.wait(backoff.next())

    def _guard(self) -> None:
        """Stop tables whose changes no longer arrive; the stream says nothing of it."""
        while not self._quit.wait(GUARD_INTERVAL):
            try:
                departed = self._source.departed()
            except HeadraceError as error:
                if not error.transient:
                    raise
                continue  # the capture meets the same, and says so
            for table, reason in departed.items():
                self._capture.commit_stop(table, TableStoppedError(reason))

    def _watch(
        self,
        futures: Sequence[Future[None]],
        target: Lsn | None,
    ) -> None:
        cleaned = asked = time.monotonic()
        while not self._stop.is_set():
            self._look.wait(TICK)
            self._look.clear()
            if any(future.done() and future.exception() for future in futures):
                self._stop.set()  # else who waits for a slot would not see that all is over
                return
            if target is not None and self._caught_up(target):
                return
            if time.monotonic() - asked > REQUEST_INTERVAL:
                asked = time.monotonic()
                self._tolerant(self._take_requests)
            if time.monotonic() - cleaned > RETENTION_INTERVAL:
                cleaned = time.monotonic()
                self._tolerant(self._expire)

    def _expire(self) -> None:
        """Let go of commits that every materialization has passed and nobody replays."""
        expire(self._log, datetime.now(UTC))

    def _tolerant(self, chore: Callable[[], None]) -> None:
        """Do what can be done later as well."""
        try:
            chore()
        except HeadraceError as error:
            if not error.transient:
                raise

    def _caught_up(self, target: Lsn) -> bool:
        if not self._copied.is_set() or (self._log.position or Lsn(0)) < target:
            return False
        return all(m.reached(target) for m in self._materializations)

    @property
    def failed_tables(self) -> list[tuple[str, TableId, HeadraceError]]:
        """Tables that wait for a person: pipeline, table, error."""
        return [
            (m.name, table, state.error)
            for m in self._materializations
            for table, state in m.tables.items()
            if (state.phase is Phase.FAILED or state.blocked) and state.error is not None
        ]
