"""The capture loop: a source's stream into the change log, acknowledged only when durable.

One thread receives; a second one casts, writes and commits, so that both cores work. They meet in
`_Session`: what the stream has gathered is handed over whenever the writer is free and the policy
says so. Snapshots run beside, in threads of their own, and never hold the stream up.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np

from headrace import failpoints
from headrace.engine.protocols import ChangeStream, Source, Taken
from headrace.engine.retry import Backoff
from headrace.engine.spills import HandOver, Spills, files_of, spill
from headrace.errors import HeadraceError
from headrace.log import CommitDraft, LogFile, LogWriter, Manifest, SnapshotEvent
from headrace.model import ChangeBatch, DecodedChanges, Finished, Lsn, TableId, TableSchema


@dataclass(frozen=True)
class CommitPolicy:
    """When a commit of the change log closes.

    Commits rest `rest` times as long as the last one took, so that writing keeps to a share of one
    core and batches grow by themselves under load; an idle stream is flushed at once otherwise.
    A commit of many tables takes long by its files, which no wait makes fewer: hence `max_rest`.
    """

    max_delay: float = 0.020  # one frame of human patience is 100 ms; five hops share it
    max_bytes: int = 32 << 20  # two such buffers, text and Arrow, stay far below the memory bound
    rest: float = 3.0
    max_rest: float = 1.0  # seconds; 250 tables that change take as long to be written
    # Worth a commit without a rest, which would make it longer only. More where the last one took
    # long, by its files: so many bytes for each second.
    ample_bytes: int = 8 << 20
    ample_rate: int = 100 << 20
    progress_interval: float = 10.0  # an idle source's position is recorded this often, in seconds
    # Where only other databases write, the position is what lets the source drop their WAL: it is
    # recorded after so many bytes, but not oftener than this many seconds.
    progress_bytes: int = 256 << 10
    progress_rest: float = 0.25

    @property
    def max_kept(self) -> int:
        """Bytes of rows of transactions in progress that need not be written yet.

        What a small transaction's commit must not do is to write a file of each large one.
        """
        return self.max_bytes // 2

    def pause(self, took: float) -> float:
        """Seconds from the end of a commit that took so long to the next."""
        return min(self.rest * took, self.max_rest)

    def due(self, state: Pending) -> bool:
        """Whether to close a commit now; pure."""
        if state.bytes >= self.max_bytes:
            return True
        if state.in_transaction:
            return False
        if state.rows:
            ample = state.bytes >= max(self.ample_bytes, self.ample_rate * state.commit_took)
            rested = state.since_commit >= self.pause(state.commit_took)
            ready = state.awaited or ample or rested
            return ready and (state.idle or state.since_commit >= self.max_delay)
        if state.behind >= self.progress_bytes and state.since_commit >= self.progress_rest:
            return True
        return state.behind > 0 and (
            state.position_wanted or state.since_commit >= self.progress_interval
        )


@dataclass(frozen=True)
class Pending:
    """What the policy looks at; times in seconds."""

    bytes: int
    rows: int
    in_transaction: bool
    idle: bool  # nothing more has arrived
    behind: int  # bytes of WAL up to the position that the source told, and is not durable yet
    position_wanted: bool  # the source, or someone who waits for a position, asks for it
    awaited: bool  # that position has come: what is pending is the last before it is reached
    since_commit: float
    commit_took: float


@dataclass
class CaptureProgress:
    """What a capture has done since it started; read by others, written by the capture."""

    rows: int = 0
    transactions: int = 0
    received: Lsn = field(default_factory=Lsn)  # how far the source has sent
    commit_ts: datetime | None = None  # of the newest transaction that is durable
    error: HeadraceError | None = None  # the last one that made it reconnect; None when well
    connected: bool = False


class Capture:
    """Owns one change log and one replication slot.

    `run` blocks until `stop` is set or an error that waiting cannot cure is raised.
    """

    def __init__(self, source: Source, log: LogWriter, policy: CommitPolicy | None = None) -> None:
        self._source = source
        self._log = log
        self.policy = policy or CommitPolicy()
        self._committer = ThreadPoolExecutor(1, "headrace-commit")
        self._known: set[tuple[TableId, int]] = set()
        self._stopping: dict[TableId, str] = {}
        self._given_up: Counter[TableId] = Counter()
        self._stream: ChangeStream | None = None
        self.target: Lsn | None = None
        self.progress = CaptureProgress()

    def start(self) -> None:
        """Find or create the slot; a new log begins where it begins. `run` follows."""
        position = self._source.prepare(self._log.position)
        if self._log.position is None:
            self._log.commit(CommitDraft(position))

    # -- the stream --------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Stream until told to stop; reconnect with backoff after any transient error."""
        backoff, prepared = Backoff(), True  # by `start`
        while not stop.is_set():
            try:
                if not prepared:
                    self._source.prepare(self._log.position)
                prepared = False
                self._stream_once(stop, backoff)
            except HeadraceError as error:
                if not error.transient:
                    raise
                self.progress.error = error
                stop.wait(backoff.next())

    def _stream_once(self, stop: threading.Event, backoff: Backoff) -> None:
        position = self._log.position or Lsn(0)  # what `start` committed, at least
        self._stream = self._source.stream(position)
        self.progress.connected = True
        session = _Session(self, self._stream, position, backoff)
        try:
            session.run(stop)
        finally:
            self.progress.connected = False
            session.close()
            self._stream.close()

    def reach(self, target: Lsn) -> None:
        """Have the log record positions up to `target` even if nothing changes on the way."""
        self.target = target
        self.wake()

    def wake(self) -> None:
        """Make the loop look around; from any thread."""
        if self._stream is not None:
            self._stream.wake()

    # -- commits, all made by the one committer thread ---------------------------------------------

    def submit(self, taken: Taken, spills: Spills) -> Future[Committed]:
        return self._committer.submit(self._commit, taken, spills)

    def _commit(self, taken: Taken, spills: Spills) -> Committed:
        work, manifest = HandOver({**spills}), None
        with ExitStack() as undo:  # what fails half-way is received, and staged, anew
            for part in taken.decode():
                self._stage_part(part, work, undo)
            work.leave_out(self._stopping)
            position = self._log.position or Lsn(0)
            if work.staged or taken.to_lsn > position or not work.spills:
                stopped = [*self._stopping.items()]
                draft = CommitDraft(
                    taken.to_lsn, taken.commit_ts, files=work.in_order(), stopped=stopped
                )
                manifest = self._log.commit(draft)
            undo.pop_all()
        self._log.discard(work.obsolete)
        if manifest is not None:
            self._count(taken, manifest)
        return Committed(manifest, work.spills)

    def _count(self, taken: Taken, manifest: Manifest) -> None:
        self._stopping.clear()
        self.progress.rows += sum(file.rows for file in manifest.files)
        self.progress.transactions += taken.transactions
        self.progress.commit_ts = taken.commit_ts or self.progress.commit_ts

    def _stage_part(self, part: DecodedChanges, work: HandOver, undo: ExitStack) -> None:
        # A table that failed is given up at once; readers learn it from the next commit there is.
        self._stopping.update({table: error.message for table, error in part.failed})
        self._given_up.update(table for table, _ in part.failed)
        for finished in part.finished:
            self._finish(finished, work, undo)
        work.staged += self._stage(part.batches, undo)
        files = self._stage([batch for _, batch in part.unfinished], undo)
        for file, (xid, batch) in zip(files, part.unfinished, strict=True):
            work.hold(xid, spill(file, batch))
        if files:
            failpoints.hit("capture.spilled")

    def _finish(self, finished: Finished, work: HandOver, undo: ExitStack) -> None:
        """Have the files of a transaction that is over committed, or removed."""
        void = np.fromiter(finished.rolled_back, np.uint32, len(finished.rolled_back))
        for held in work.spills.pop(finished.xid, ()):
            file: LogFile | None = held.file
            if finished.end is None or held.file.table in finished.left_out:
                file = None
            elif held.holds(void):
                file = self._log.without(held.file, void)
                undo.callback(self._log.discard, [file] if file else [])
                failpoints.hit("capture.rolled_back")
            if file is not held.file:
                work.obsolete.append(held.file)
            if file is not None:
                work.staged.append(replace(file, transaction=finished.end))

    def _stage(self, batches: Sequence[ChangeBatch], undo: ExitStack) -> list[LogFile]:
        self.learn(*(batch.schema for batch in batches))
        files = self._log.stage_all(batches) if batches else []
        undo.callback(self._log.discard, files)
        return files

    def learn(self, *schemas: TableSchema) -> None:
        """Record schema versions in the log before anything refers to them."""
        new = {(s.table, s.version): s for s in schemas if (s.table, s.version) not in self._known}
        if new:
            self._log.add_schemas([*new.values()])
            self._known.update(new)

    def commit_stop(self, table: TableId, error: HeadraceError) -> None:
        """Record that the log follows `table` no further, and why.

        A copy of it that is under way is void: it could not go on with the stream.
        """
        self._given_up[table] += 1
        self._commit_beside(stopped=[(table, error.message)])

    def given_up(self, table: TableId) -> int:
        """How often the stream has stopped following a table."""
        return self._given_up[table]

    def commit_snapshots(self, events: Sequence[tuple[SnapshotEvent, int]]) -> set[TableId]:
        """Make finished snapshots part of the log, in order with the stream's commits.

        Gives the tables of which that was done. Others the stream stopped following since that had
        happened as often as is told with the event: changes after the snapshot may be missing.
        """
        return self._committer.submit(self._commit_snapshots, events).result()

    def _commit_snapshots(self, events: Sequence[tuple[SnapshotEvent, int]]) -> set[TableId]:
        followed = [event for event, count in events if self._given_up[event.table] == count]
        if followed:
            self._log.commit(CommitDraft(None, snapshots=followed))
        return {event.table for event in followed}

    def _commit_beside(self, **content: Any) -> None:
        """Commit something that the stream did not bring, at the position it has come to."""
        self._committer.submit(self._log.commit, CommitDraft(None, **content)).result()

    def discard(self, files: Sequence[LogFile]) -> None:
        """Remove files of transactions that the next session receives anew."""
        if files:
            self._committer.submit(self._log.discard, files).result()

    def close(self) -> None:
        self._committer.shutdown(wait=True)


@dataclass(frozen=True)
class Committed:
    """The outcome of one hand-over: the manifest, if there was something whole to commit."""

    manifest: Manifest | None
    spills: Spills


class _Session:
    """One connection's worth of streaming; holds what is lost with the connection."""

    def __init__(
        self, capture: Capture, stream: ChangeStream, position: Lsn, backoff: Backoff
    ) -> None:
        self._capture = capture
        self._stream = stream
        self._durable = position
        self._backoff = backoff
        self._writing: Future[Committed] | None = None
        self._spills: Spills = {}
        self._started = self._ended = time.monotonic()
        self._took = 0.0

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            received = self._stream.receive(self._patience())
            self._settle(wait_for_it=self._overfull())
            pending = self._pending(idle=not received)
            if self._writing is None and self._capture.policy.due(pending):
                self._hand_over()
        self._finish()

    def _patience(self) -> float:
        """Seconds that `receive` may wait: not at all where only its idleness is waited for."""
        policy, elapsed = self._capture.policy, time.monotonic() - self._ended
        if self._stream.pending_rows and self._writing is None and not self._stream.in_transaction:
            return 0.0 if self._awaited() else max(0.0, policy.pause(self._took) - elapsed)
        return 1.0

    def _wanted(self) -> Lsn | None:
        """The position that someone waits for, until it is durable."""
        target = self._capture.target
        return target if target is not None and self._durable < target else None

    def _awaited(self) -> bool:
        wanted = self._wanted()
        return wanted is not None and wanted <= self._stream.received_lsn

    def _overfull(self) -> bool:
        """A second full buffer: only waiting for the writer keeps memory bounded."""
        return self._stream.pending_bytes >= 2 * self._capture.policy.max_bytes

    def _pending(self, *, idle: bool) -> Pending:
        stream, received = self._stream, self._stream.received_lsn
        behind = max(received - self._durable, 0)
        self._capture.progress.received = received
        wanted = self._wanted() is not None
        if wanted and idle and not behind:
            stream.ask_position()
        return Pending(
            bytes=stream.pending_bytes,
            rows=stream.pending_rows,
            in_transaction=stream.in_transaction,
            idle=idle,
            behind=behind,
            position_wanted=stream.reply_requested or wanted,
            awaited=self._awaited(),
            since_commit=time.monotonic() - self._ended,
            commit_took=self._took,
        )

    def _hand_over(self) -> None:
        failpoints.hit("capture.received")
        self._started = time.monotonic()
        taken = self._stream.take(self._capture.policy.max_kept)
        self._writing = self._capture.submit(taken, self._spills)
        self._writing.add_done_callback(lambda _: self._stream.wake())

    def _settle(self, *, wait_for_it: bool = False) -> None:
        """Take note of a commit that has ended; raises what made it fail."""
        if self._writing is None or not (wait_for_it or self._writing.done()):
            return
        while not wait([self._writing], timeout=1.0).done:
            self._stream.acknowledge(self._durable)  # else the source takes us for dead
        future, self._writing = self._writing, None
        committed = future.result()
        self._ended = time.monotonic()
        self._took = self._ended - self._started
        self._spills = committed.spills
        if committed.manifest is not None:
            self._durable = committed.manifest.to_lsn
            self._capture.progress.error = None
            self._stream.acknowledge(self._durable)
            self._backoff.reset()
            failpoints.hit("capture.acknowledged")

    def _finish(self) -> None:
        """Stop cleanly: what is whole becomes durable and is acknowledged."""
        self._settle(wait_for_it=True)
        if self._stream.pending_rows and not self._stream.in_transaction:
            self._hand_over()
            self._settle(wait_for_it=True)

    def close(self) -> None:
        """Wait for a commit under way, whose outcome the next session reads from the log."""
        if self._writing is not None:
            with suppress(HeadraceError):  # what ended the session tells more
                self._spills = self._writing.result().spills
        self._capture.discard(files_of(self._spills))
