"""The materialization loop: the change log into tables at one destination.

Every table stands at a checkpoint of its own, kept in the destination with its data. The loop reads
new commits once, queues them per table, and lets each table take a stretch of its queue at a time:
collapse it, apply it, move on. Tables take turns at a few threads, and the loop goes on meanwhile:
a table finds in its queue what has come until its turn. One that fails stops or retries alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from headrace import failpoints
from headrace.engine.keyed import keyed
from headrace.engine.meeting import Meeting
from headrace.engine.mending import Comparer
from headrace.engine.refreshing import Refresh, Refresher
from headrace.engine.resuming import Resumer, stopped_by_log
from headrace.engine.shaping import snapshot_schema
from headrace.engine.stretches import StretchApplier
from headrace.engine.table_state import (
    Phase,
    TableState,
    TableTarget,
    next_stretch,
    offer_snapshot,
    queue_stretch,
)
from headrace.engine.turns import WORKERS, Turns
from headrace.errors import (
    DestinationConflictError,
    HeadraceError,
    RowsWaitError,
    TableStoppedError,
    UnexpectedError,
    UnsupportedSchemaChangeError,
)
from headrace.log import LogFile, LogReader, Manifest, SnapshotEvent
from headrace.model import Checkpoint, Lsn, RowCounts, TableId
from headrace.model.refresh import RefreshPolicy

# At least this passes between two commits of one table: fewer, larger commits cost readers less,
# and a person cannot see 40 ms. A destination may want more.
COMMIT_INTERVAL: Final = 0.040

# How often the positions are recorded beside the log; after a crash at most this much is re-read.
RECORD_INTERVAL: Final = 1.0


# What stops a table whose columns changed. The capture's stops have other causes too: then the copy
# that is tried finds them again.
_CHANGED: Final = (UnsupportedSchemaChangeError, TableStoppedError)


def _at_once() -> None:
    """What a destination needs that asks nothing of those who write it."""


class Materialization:
    """One pipeline at work; `run` blocks until stopped. See the module's docstring.

    `begin` is called before the destination is first asked for anything, and again while it cannot
    be reached: what it raises is each table's state. Tables in `unfit` wait for a person, who reads
    why there.
    """

    def __init__(
        self,
        name: str,
        reader: LogReader,
        targets: Sequence[TableTarget],
        *,
        begin: Callable[[], None] = _at_once,
        unfit: Mapping[TableId, HeadraceError] | None = None,
        refresh: RefreshPolicy | None = None,
        workers: int = WORKERS,
    ) -> None:
        self.name = name
        self._begin: Callable[[], None] | None = begin
        self._beginning = threading.Lock()
        self._unfit = unfit or {}
        self._reader = reader
        self._record = reader.position(name) or {}
        self._refresher = Refresher(refresh, self._record)
        self._begun = 0  # refreshes
        self._comparer = Comparer(name, reader)
        self._applier = StretchApplier(reader, self._went_on)
        self._resumer = Resumer(reader, self._record, self._refresher)
        floor = reader.floor  # asked for once: it is a request where the log is in an object store
        self.tables = {target.table: self._resumed(target, floor) for target in targets}
        self._seen = min((state.resumed for state in self.tables.values()), default=0)
        self.position = self._position_of(self._seen)  # of the newest commit that was queued
        self._turns = Turns(self._advance, f"headrace-{name}", workers)
        self._recorded = 0.0
        self._told: dict[str, Any] = {}  # the positions as they were recorded last
        self._progress = 0  # how often a table went on
        self._counting = threading.Lock()
        self._until: Lsn | None = None
        self._meeting = Meeting()

    # -- starting ----------------------------------------------------------------------------------

    def _resumed(self, target: TableTarget, floor: int) -> TableState:
        """Where a table stands; one whose place cannot be read waits for it, or for a person."""
        if target.table in self._unfit:
            return TableState(target, None, floor, Phase.FAILED, self._unfit[target.table])
        try:
            self._ensure_begun()
            return self._resumer.resume(target, floor)
        except HeadraceError as error:
            phase = Phase.RETRYING if error.transient else Phase.FAILED
            return TableState(target, None, floor, phase, error, unasked=error.transient)

    def _ensure_begun(self) -> None:
        with self._beginning:
            if self._begin is not None:
                self._begin()
                self._begin = None

    def _position_of(self, commit: int) -> Lsn:
        """Where a commit of the log ends; zero for one that retention has removed."""
        if commit <= self._reader.floor:
            return Lsn(0)
        return next(iter(self._reader.manifests(commit - 1, commit))).to_lsn

    def unsnapshotted(self) -> dict[TableId, int]:
        """Tables that wait for a snapshot which the log does not hold, as far as it was looked at,
        each with the commit behind which that snapshot has to be.

        May be called from any thread.
        """
        return {
            table: state.resumed
            for table, state in self.tables.items()
            if state.phase is Phase.WAITING and state.snapshot is None
        }

    # -- copying a table anew ----------------------------------------------------------------------

    def ask_refresh(self, tables: Collection[TableId], why: str) -> None:
        """Have tables copied anew, whatever they stand at; the old rows stay until that is done.

        May be called from any thread, and before `run`.
        """
        self._refresher.ask(self._fit(tables), why)

    def suspect(self, table: TableId, why: str) -> None:
        """Tell of a table that goes on, but differs from its source. From any thread."""
        self._refresher.suspect(table, why)

    def asked(self, tables: Collection[TableId]) -> bool:
        """Whether `ask_refresh` was called for one of the tables, and it has not begun yet."""
        return self._refresher.asked(self._fit(tables))

    def _fit(self, tables: Collection[TableId]) -> list[TableId]:
        """Those of the tables that this run writes."""
        return [t for t in tables if t in self.tables and t not in self._unfit]

    def begin_refreshes(self) -> None:
        """Let go of where tables stand that are to be copied anew, until a snapshot has come."""
        now = datetime.now(UTC)
        due = [refresh for refresh in self._due(now) if refresh.table not in self._turns.tables]
        self._begun += len(due)  # before a table looks other than failed to another thread
        for refresh in due:
            state = self.tables[refresh.table]
            # Only a snapshot yet to be taken counts.
            fresh = TableState(state.target, None, self._reader.head(), Phase.WAITING)
            fresh.applied_rows, fresh.refreshing = state.applied_rows, refresh.why
            fresh.written = state.written
            vars(state).update(vars(fresh))  # others hold on to it
            self._refresher.began(refresh, now)
        if due:
            self._record_positions(now=True)  # a crash forgets neither the copy nor its time
            self._refresher.recorded(due)

    def _due(self, now: datetime) -> list[Refresh]:
        return self._refresher.due([self.tables[t] for t in self._fit(self.tables)], now)

    # -- the loop ----------------------------------------------------------------------------------

    def run(
        self,
        stop: threading.Event,
        until: Lsn | None = None,
        at_rest: Callable[[], None] = lambda: None,
    ) -> None:
        """Apply what the log holds and what it gets until told to stop.

        With `until`, nothing is taken up that lies behind it, except to find a table's snapshot:
        else a source that is always busy would leave no moment at which all is done. `at_rest` is
        called whenever there is nothing to take up before it.
        """
        self._until = until
        self._record_positions(now=True)  # retention waits for readers that it knows
        with self._turns.at_work() as pool, self._comparer.at_work(stop):
            while not stop.is_set():
                self._go_on(stop, at_rest)
            self._turns.cancel()
            self._turns.see()
            list(pool.map(self._settle, self.tables.values()))
        self._record_positions(now=True)

    def _go_on(self, stop: threading.Event, at_rest: Callable[[], None]) -> None:
        """See what has come and who is done, let those work that can, and wait for more of it."""
        self.begin_refreshes()
        self.catch_sight()
        self._give_turns()
        self._record_positions()
        if self._turns.tables:
            self._turns.see(COMMIT_INTERVAL)
        elif self._enough():
            at_rest()
            stop.wait(self._patience())
        else:
            self._reader.wait(self._seen, self._patience())

    def _give_turns(self) -> None:
        now, progress, working = time.monotonic(), self._progress, self._turns.tables
        resting = (state for table, state in self.tables.items() if table not in working)
        ready = [state for state in resting if state.ready(now, progress)]
        self._meeting.look(self.tables.values(), now)
        if ready:  # not before: what comes while all rest belongs to the next commits
            self._meeting.call(self._seen, now)
            self._turns.give(ready)

    def _settle(self, state: TableState) -> None:
        try:
            state.target.destination.settle()
        except HeadraceError as error:
            self._failed(state, error)

    def interrupt(self) -> None:
        """Make `run` look at its stop event now."""
        self._reader.close()

    def _patience(self) -> float:
        now = time.monotonic()
        progress, states = self._progress, self.tables.values()
        waits = [max(0.0, s.due - now) for s in states if s.wanting(progress)]
        compared = [COMMIT_INTERVAL for s in self.tables.values() if s.comparing is not None]
        return min([RECORD_INTERVAL, *waits, *compared])

    def catch_sight(self) -> None:
        """Queue what commits after the last one seen hold for each table.

        Where a table stands is its own while it is at work. It finds more in its queue at any time,
        but for the turn in which it asks for its place, and which fills the queue itself; and a
        commit waits that offers it a snapshot or stops it.
        """
        working = self._turns.tables
        if any(self.tables[table].unasked for table in working):
            return
        for manifest in self._reader.manifests(self._seen):
            if self._enough() or not _turned(manifest).isdisjoint(working):
                return
            self._queue(manifest, self.tables)
            self._seen = manifest.commit
            self.position = manifest.to_lsn

    def _enough(self) -> bool:
        """Whether what lies ahead is behind `until`, and no table's snapshot is looked for."""
        seen = self._until is not None and self.position >= self._until
        return seen and not self.unsnapshotted()

    def _queue(self, manifest: Manifest, states: Mapping[TableId, TableState]) -> None:
        files: dict[TableId, list[LogFile]] = {}
        for file in manifest.files:
            files.setdefault(file.table, []).append(file)
        for table, of_table in files.items():
            queue_stretch(states.get(table), manifest, tuple(of_table))
        for event in manifest.snapshots:
            if event.table not in self._unfit:
                offer_snapshot(states.get(event.table), manifest.commit, event)
        for table, reason in manifest.stopped:
            state = states.get(table)
            queue_stretch(state, manifest, (), reason)
            self._stop_waiting(state, manifest.commit, reason)

    def _stop_waiting(self, state: TableState | None, commit: int, reason: str) -> None:
        """A table that waits for its snapshot waits in vain, until somebody has it copied again."""
        if state is not None and state.phase is Phase.WAITING and commit > state.resumed:
            self._failed(state, stopped_by_log(state.target.table, reason))

    # -- one table ---------------------------------------------------------------------------------

    def _advance(self, state: TableState) -> None:
        """Take the next step; whatever goes wrong becomes the table's state."""
        progress = self._progress
        try:
            if state.unasked:
                self._ask(state)
            elif state.snapshot is not None:
                self._load(state, *state.snapshot)
            elif state.queue:
                self._apply(state)
            else:
                self._retry_waiting(state)
        except HeadraceError as error:
            self._failed(state, error)
        except Exception as error:  # the task's edge: nothing may take the other tables down
            self._failed(state, UnexpectedError.wrap(f"{state.target.table}", error))
        else:
            state.backoff.reset()
            state.blocked = False
            if state.checkpoint is not None:
                state.phase, state.error = Phase.STREAMING, None
        if state.phase is not Phase.RETRYING or state.blocked:
            state.looked = progress  # else nothing is known of the rows that wait

    def _failed(self, state: TableState, error: HeadraceError) -> None:
        state.error = error
        if state.target.renewed and isinstance(error, _CHANGED) and not state.refreshing:
            self._refresher.ask([state.target.table], error.message)
        if isinstance(error, DestinationConflictError) and state.snapshot is None:
            state.unasked = True
        state.blocked = isinstance(error, RowsWaitError)
        state.comparing = None
        if error.transient or state.blocked:
            state.phase = Phase.RETRYING
            state.due = time.monotonic() + state.backoff.next()
        else:
            state.phase = Phase.FAILED
            state.refreshing = ""

    def _ask(self, state: TableState) -> None:
        """Go on from where the destination says that the table stands.

        A server that crashed may hold less than it had committed, never less than its checkpoint
        says; and another run may have been quicker than this one.
        """
        self._ensure_begun()
        fresh = self._resumer.resume(state.target, self._reader.floor)
        fresh.applied_rows, fresh.backoff = state.applied_rows, state.backoff
        fresh.written = state.written
        for manifest in self._reader.manifests(fresh.resumed, max(fresh.resumed, self._seen)):
            self._queue(manifest, {state.target.table: fresh})
        vars(state).update(vars(fresh))  # others hold on to it

    def _load(self, state: TableState, commit: int, event: SnapshotEvent) -> None:
        """Make a snapshot the table's content; changes up to its LSN are part of it."""
        self._ensure_begun()
        logged = self._reader.schema(event.table, event.schema_version)
        schema, target = keyed(logged, state.target.key), state.target
        loaded = snapshot_schema(schema, target.shape, event)
        if state.comparing is None:
            state.comparing = self._comparer.compare(target.destination, loaded, event)
        if not state.comparing.done():
            return
        while state.queue and state.queue[0].to_lsn <= event.lsn:
            state.queue.popleft()
        passed = state.queue[0].commit - 1 if state.queue else commit
        checkpoint = Checkpoint(self._reader.log_id, passed, event.lsn)
        compared = state.comparing.result()
        rows, size = sum(f.rows for f in event.files), sum(f.bytes for f in event.files)
        with self._turns.room(rows, size):
            if compared is None:
                target.destination.load(loaded, self._reader.snapshot_files(event), checkpoint)
                state.written += RowCounts(rows)
            else:
                compared.mend(checkpoint)
        state.checkpoint = state.durable = checkpoint
        state.schema_version = schema.version
        self._refresher.ended(state, compared)
        state.comparing, state.refreshing = None, ""
        self._went_on(state)  # before it looks idle to another thread
        state.snapshot, state.passed = None, passed

    def _went_on(self, state: TableState) -> None:
        """The table took rows: some of its own may wait, and others may have waited for them."""
        state.waiting = -1
        self._count()

    def _count(self) -> None:
        with self._counting:
            self._progress += 1

    def _retry_waiting(self, state: TableState) -> None:
        before = state.waiting
        state.waiting = state.target.destination.retry_waiting()
        if before != state.waiting:  # also from unknown to none: some may just have been applied
            self._count()

    def _apply(self, state: TableState) -> None:
        """Take one commit's worth of the queue, and another one where a meeting cut it short: what
        has come since then has waited for this turn already."""
        meeting, started = self._meeting, time.monotonic()
        rest = max(COMMIT_INTERVAL, state.target.destination.rest())
        self._apply_next(state)
        late = state.passed <= meeting.commit and started >= meeting.called + rest
        if late and state.head is not None:
            self._apply_next(state)
        state.due = max(started + rest, time.monotonic())

    def _apply_next(self, state: TableState) -> None:
        stretch = next_stretch(list(state.queue), self._meeting.commit)  # which grows meanwhile
        last = stretch[-1]
        if last.stopped is not None:
            raise stopped_by_log(state.target.table, last.stopped)
        rows, size = sum(part.rows for part in stretch), sum(part.bytes for part in stretch)
        with self._turns.room(rows, size):
            self._applier.apply(state, stretch)
        for _ in stretch:
            state.queue.popleft()
        state.passed, state.commit_ts = last.commit, last.commit_ts

    # -- positions ---------------------------------------------------------------------------------

    def reached(self, lsn: Lsn) -> bool:
        """Whether every table that can go on holds all changes up to `lsn`."""
        progress, begun = self._progress, self._begun
        settled = all(state.settled(lsn, progress) for state in self.tables.values())
        # A table that has just failed may be one that is to be copied anew.
        refreshes = self.asked(self.tables) or self._due(datetime.now(UTC)) or self._begun > begun
        return self.position >= lsn and settled and not refreshes

    @property
    def applied_lsn(self) -> Lsn:
        """Up to where every table that goes on holds all changes."""
        behind = [
            state.checkpoint.lsn
            for state in self.tables.values()
            if state.checkpoint is not None and state.queue and state.phase is not Phase.FAILED
        ]
        return min(behind, default=self.position)

    @property
    def waiting_since(self) -> datetime | None:
        """Commit time of the oldest change that waits to be applied, if one does."""
        heads = [s.head for s in self.tables.values() if s.phase is not Phase.FAILED]
        times = [head.commit_ts for head in heads if head is not None]
        return min((time for time in times if time is not None), default=None)

    def _record_positions(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._recorded < RECORD_INTERVAL:
            return
        self._recorded, told = time.monotonic(), self.describe()
        if told == self._told and not now:  # nothing goes on: the disk is left alone
            return
        try:
            self._reader.record_position(self.name, told)
            self._told = told
        except HeadraceError as error:
            if not error.transient:
                raise
            return  # no room or no answer: only a restart reads it, and it is tried again
        failpoints.hit("materialize.checkpoint")

    def describe(self) -> dict[str, Any]:
        """What `headrace status` shows and the next start resumes from, as JSON."""
        return {
            "log_id": self._reader.log_id,
            "tables": {str(t): self._describe(s) for t, s in self.tables.items()},
        }

    def _applied_before(self, table: TableId) -> int:
        """Changes that earlier runs applied, as they recorded it."""
        return int(self._record.get("tables", {}).get(str(table), {}).get("rows_applied", 0))

    def _describe(self, state: TableState) -> dict[str, Any]:
        checkpoint, durable = state.checkpoint, state.durable
        return {
            "phase": state.phase.value,
            "applied": durable.commit if durable else None,
            "lsn": str(checkpoint.lsn) if checkpoint else None,
            "reached": str(self._reached(state, checkpoint.lsn)) if checkpoint else None,
            "passed": state.passed_of(self._seen),
            "commit_ts": state.commit_ts.isoformat() if state.commit_ts else None,
            "rows_applied": self._applied_before(state.target.table) + state.applied_rows,
            "upserted": state.written.upserted,
            "deleted": state.written.deleted,
            "error": str(state.error) if state.error else None,
            **self._refresher.describe(state),
        }

    def _reached(self, state: TableState, at: Lsn) -> Lsn:
        """Up to where the table is as the source was; `at` is where its last change brought it."""
        head = state.head
        return max(at, self.position if head is None else head.from_lsn)


def _turned(manifest: Manifest) -> set[TableId]:
    """Tables for which a commit has more than changes."""
    return {event.table for event in manifest.snapshots} | {table for table, _ in manifest.stopped}
