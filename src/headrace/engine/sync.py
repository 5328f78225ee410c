"""Keeps tables at a destination equal to tables with versions, each by itself (DESIGN §11).

Every table has a thread of its own, which waits for a new version or for its schedule and then
takes the table to the version that the source has (engine/sync_table.py). A few of them work at a
time. Whatever goes wrong becomes that table's state; the others go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final

from headrace import failpoints
from headrace.engine.references import References
from headrace.engine.retry import Backoff
from headrace.engine.schedule import starts
from headrace.engine.sync_state import Limits, SyncState, SyncTarget, SyncView
from headrace.engine.sync_table import TableSync
from headrace.engine.table_state import Phase
from headrace.errors import CopyStoppedError, HeadraceError, UnexpectedError
from headrace.model import TableId
from headrace.model.schedule import Schedule

# The display; a person sees ten frames a second as live.
TICK: Final = 0.1

# How often the state is recorded for `headrace status`.
RECORD_INTERVAL: Final = 1.0

# One wait for a newer version; a stop ends it at once, this only bounds a wake-up that was missed.
LOOK: Final = 1.0

# After so long without a newer version both ends are asked where they stand: a table that was made
# anew may count its versions from zero.
RECHECK: Final = 10.0

# Tables at work at a time: each may hold a batch in memory, and a connection.
WORKERS: Final = 2

Journal = Callable[[Mapping[str, Any]], None]
CONTINUOUS: Final = Schedule("continuous")


class Sync:
    """One pipeline at work; `run` blocks until stopped, or with `once` until caught up.

    `journal` is given what `describe` tells, about once a second and at the end; `recorded` is what
    it was given last by an earlier run. Tables in `resync` are built anew, whatever stands there.
    `begin` is called before anything else, and again while the destination cannot be reached.
    `quitting` is set when the run ends, whyever: what blocks inside of a destination waits on it.
    """

    def __init__(
        self,
        name: str,
        targets: Sequence[SyncTarget],
        *,
        schedule: Schedule = CONTINUOUS,
        journal: Journal | None = None,
        recorded: Mapping[str, Any] | None = None,
        resync: Collection[TableId] = (),
        workers: int = WORKERS,
        limits: Limits | None = None,
        begin: Callable[[], None] | None = None,
        quitting: threading.Event | None = None,
    ) -> None:
        self.name = name
        self._earlier = (recorded or {}).get("tables", {})
        self.tables = {
            target.table: SyncState(target, resync=target.table in resync) for target in targets
        }
        self.view = SyncView(name, self.tables)
        self._schedule = schedule
        self._journal = journal
        self._slots = threading.BoundedSemaphore(workers)
        self._limits = limits or Limits()
        self._begin = begin
        self._quit = quitting or threading.Event()
        self._references = References(self.tables.values(), self._quit)
        self._recorded = 0.0

    @property
    def failed_tables(self) -> list[tuple[str, TableId, HeadraceError]]:
        """Tables that wait for a person: pipeline, table, error."""
        return [
            (self.name, table, state.error)
            for table, state in self.tables.items()
            if state.phase is Phase.FAILED and state.error is not None
        ]

    def describe(self) -> dict[str, Any]:
        """What `headrace status` shows, as JSON."""
        return {
            "tables": {
                str(table): state.describe(self._applied_before(table))
                for table, state in self.tables.items()
            }
        }

    def _applied_before(self, table: TableId) -> int:
        return int(self._earlier.get(str(table), {}).get("rows_applied", 0))

    # -- the pipeline ------------------------------------------------------------------------------

    def run(
        self,
        stop: threading.Event,
        *,
        once: bool = False,
        on_tick: Callable[[SyncView], None] | None = None,
    ) -> None:
        """Sync until `stop` is set; with `once`, until each table is where its source was.

        `on_tick` is called about ten times a second, for a display. Raises what the journal and
        `begin` raise; what is transient of it only with `once`, and from `begin`.
        """
        if not self._begun(stop, once):
            return
        with ThreadPoolExecutor(max(len(self.tables), 1), f"headrace-{self.name}") as pool:
            working = [pool.submit(self._keep, state, once) for state in self.tables.values()]
            try:
                self._watch(working, stop, on_tick)
            finally:
                self.interrupt()
        for future in working:
            future.result()
        self._record(now=True)

    def _begun(self, stop: threading.Event, once: bool) -> bool:
        """Whether the run may go on; while the destination is away all tables wait for it."""
        backoff = Backoff()
        while self._begin is not None and not stop.is_set():
            try:
                self._begin()
                break
            except HeadraceError as error:
                if once or not error.transient:
                    raise
                for state in self.tables.values():
                    state.phase, state.error = Phase.RETRYING, error
            self._record(now=True)
            stop.wait(backoff.next())
        return not stop.is_set()

    def interrupt(self) -> None:
        """End `run`: waits end at once, work at the next batch of rows."""
        self._quit.set()
        self._references.wake()
        for state in self.tables.values():
            state.target.source.wake()

    def _watch(
        self,
        working: Sequence[Future[None]],
        stop: threading.Event,
        on_tick: Callable[[SyncView], None] | None,
    ) -> None:
        """Return when the work is done, or within a tick of a stop."""
        while not stop.is_set():
            if on_tick is not None:
                on_tick(self.view)
            self._record()
            if not wait(working, TICK).not_done:
                return

    def _record(self, *, now: bool = False) -> None:
        if self._journal is None or not (
            now or time.monotonic() - self._recorded > RECORD_INTERVAL
        ):
            return
        self._recorded = time.monotonic()
        try:
            self._journal(self.describe())
        except HeadraceError as error:
            if not error.transient:
                raise
            return  # it is only for looking at, and tried again
        failpoints.hit("sync.recorded")

    # -- one table's thread ------------------------------------------------------------------------

    def _keep(self, state: SyncState, once: bool) -> None:
        """Take one table along until the run ends, or nothing more can be done for it."""
        table = TableSync(state, self._limits, self._quit)
        if once:
            self._reach(table, state, alone=False)
            return
        for _ in starts(self._schedule, self._quit.wait):
            self._reach(table, state, alone=self._schedule.is_continuous)
            while self._schedule.is_continuous and self._goes_on(state):
                self._attempt(state, lambda: self._await_newer(state))
                self._reach(table, state, alone=True)
            if not self._goes_on(state):
                return

    def _goes_on(self, state: SyncState) -> bool:
        return not self._quit.is_set() and state.phase not in (Phase.FAILED, Phase.HELD)

    def _reach(self, table: TableSync, state: SyncState, *, alone: bool) -> None:
        """Get to where the source is now, however often it takes; or fail, or stop.

        `alone`: whatever the other tables are doing, as they go on in any case.
        """
        backoff = Backoff()
        with self._references.working(state):
            while not self._quit.is_set():
                self._references.begin(state)
                before = self._references.positions()
                self._attempt(state, lambda: self._catch_up(table, state))
                if self._goes_on(state) and state.error is None:
                    self._attempt(state, lambda: self._references.settle(state, patient=not alone))
                if state.phase is not Phase.RETRYING:
                    return
                if state.error is None or state.error.transient:
                    self._quit.wait(backoff.next())
                elif not self._references.parents_moved(state, before):
                    state.phase = Phase.FAILED
                    return

    def _catch_up(self, table: TableSync, state: SyncState) -> None:
        self._references.await_parents(state)
        with self._slots:
            table.catch_up()

    def _attempt(self, state: SyncState, step: Callable[[], None]) -> None:
        """Whatever goes wrong becomes the table's state."""
        try:
            step()
        except CopyStoppedError:
            return  # the run ends
        except HeadraceError as error:
            state.error = error
            retried = error.transient or self._references.may_pass_later(state, error)
            state.phase = Phase.RETRYING if retried else Phase.FAILED
        except Exception as error:  # the task's edge: nothing may take the other tables down
            state.error = UnexpectedError.wrap(f"{state.target.table}", error)
            state.phase = Phase.FAILED

    def _await_newer(self, state: SyncState) -> None:
        """Return when the source has a newer version, or it is time to look at both ends."""
        known = state.head.number if state.head else -1
        until = time.monotonic() + RECHECK
        with self._references.watching(state):
            while not (self._quit.is_set() or self._references.is_asked(state)):
                if time.monotonic() > until or state.target.source.await_newer(known, LOOK):
                    return
