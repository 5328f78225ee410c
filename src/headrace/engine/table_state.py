"""Where one table of a pipeline stands, and what there is to do for it; no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Final

from headrace.engine.mending import Compared
from headrace.engine.protocols import DestinationTable
from headrace.engine.retry import Backoff
from headrace.errors import HeadraceError
from headrace.log import LogFile, Manifest, SnapshotEvent
from headrace.model import Checkpoint, Lsn, RowCounts, Shape, TableId

# A stretch ends here, whole commits only: large enough that fixed costs vanish, small for memory.
# Bytes are those of the log's files, which hold rows five to twenty times as dense as memory.
STRETCH_ROWS: Final = 500_000
STRETCH_BYTES: Final = 32 << 20


class Phase(Enum):
    """What a table is doing; set by the materialization, recorded for `headrace status`."""

    WAITING = "waiting"  # no snapshot in the log yet
    LOADING = "loading"  # the snapshot is being made visible
    STREAMING = "streaming"  # changes are applied as they come
    RETRYING = "retrying"  # a transient error; tried again by itself
    FAILED = "failed"  # waits for a person
    HELD = "held"  # left alone: its last rebuild was undone; a resync releases it


@dataclass(frozen=True)
class TableTarget:
    """One table of a pipeline: its place at the destination, the key if the user chose one, what it
    shows of its source, and whether it is to be copied anew where the source's columns change."""

    table: TableId
    destination: DestinationTable
    key: tuple[str, ...] | None = None
    shape: Shape = field(default_factory=Shape)
    renewed: bool = False


@dataclass(frozen=True)
class Stretch:
    """One table's part of one log commit; `stopped` means that the log follows it no further."""

    commit: int
    from_lsn: Lsn
    to_lsn: Lsn
    commit_ts: datetime | None
    files: tuple[LogFile, ...]
    stopped: str | None = None

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Of the files, as they are stored."""
        return sum(file.bytes for file in self.files)


@dataclass
class TableState:
    """Where one table stands.

    `checkpoint` is its position; `durable` the one that the destination holds, which stays behind
    while commits bring this table nothing. Its queue begins after the commit `resumed`. While it is
    `unasked` nobody knows any of that: the destination could not tell, or holds another one now.

    Rows may have to wait for rows of other tables: `waiting` counts those in quarantine (-1 before
    it was looked at), `blocked` says that they are too many to be applied at all. They are tried
    again when others have gone on, which the pipeline's `progress` counts; `looked` is the last.

    Since the run began, `applied_rows` counts the source's changes, `written` the rows they became.
    """

    target: TableTarget
    checkpoint: Checkpoint | None
    resumed: int
    phase: Phase
    error: HeadraceError | None = None
    unasked: bool = False
    blocked: bool = False
    waiting: int = -1
    looked: int = -1
    durable: Checkpoint | None = None
    snapshot: tuple[int, SnapshotEvent] | None = None  # to be loaded next
    comparing: Future[Compared | None] | None = None  # that snapshot with what stands there
    refreshing: str = ""  # why it is copied anew, while it is
    schema_version: int = 0
    queue: deque[Stretch] = field(default_factory=deque)
    passed: int = 0
    applied_rows: int = 0
    written: RowCounts = field(default_factory=RowCounts)
    commit_ts: datetime | None = None
    due: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)

    def ready(self, now: float, progress: int) -> bool:
        """Whether there is something to do for this table now."""
        return now >= self.due and self.wanting(progress)

    def wanting(self, progress: int) -> bool:
        """Whether there is something to do for this table, once it has rested until `due`."""
        if self.phase in (Phase.FAILED, Phase.HELD):
            return False
        if self.comparing is not None and not self.comparing.done():
            return False
        if self.blocked or (self.idle and self.waiting):
            return self.looked < progress
        queued = self.checkpoint is not None and bool(self.queue)
        return self.unasked or self.snapshot is not None or queued

    def took(self, changes: int, rows: RowCounts) -> None:
        """The destination holds so many more of the source's changes, as so many rows."""
        self.applied_rows += changes
        self.written += rows

    @property
    def head(self) -> Stretch | None:
        """The oldest commit in the queue, whoever else takes from it or adds to it."""
        try:
            return self.queue[0]
        except IndexError:
            return None

    @property
    def idle(self) -> bool:
        """All that came is applied, or parked."""
        return self.loaded and not self.queue

    @property
    def loaded(self) -> bool:
        """It stands at a checkpoint that is known, and only changes bring it further."""
        return self.checkpoint is not None and self.snapshot is None and not self.unasked

    def is_past(self, commit: int) -> bool:
        """Whether nothing up to a commit is left to be applied, or can be for now."""
        stuck = self.phase in (Phase.FAILED, Phase.HELD) or not self.loaded
        head = self.head
        return stuck or head is None or head.commit > commit

    def passed_of(self, seen: int) -> int:
        """The commit up to which nothing is left to do, of those up to `seen` that were queued.

        What a snapshot makes superfluous is taken off the queue before it is loaded, and a crash in
        between goes on without it.
        """
        if not self.loaded and self.phase is not Phase.HELD:
            return max(self.resumed, self.passed)
        head = self.head
        return max(seen, self.passed) if head is None else head.commit - 1

    def settled(self, lsn: Lsn, progress: int) -> bool:
        """Nothing up to `lsn` is left to do, or nothing more can be done."""
        if self.phase in (Phase.FAILED, Phase.HELD):
            return True
        if self.blocked or (self.idle and self.waiting):
            return self.looked >= progress
        head = self.head
        return self.loaded and (head is None or head.from_lsn >= lsn)


def queue_stretch(
    state: TableState | None,
    manifest: Manifest,
    files: tuple[LogFile, ...],
    stopped: str | None = None,
) -> None:
    if state is None or state.phase is Phase.HELD:
        return
    if manifest.commit > state.resumed:
        state.queue.append(
            Stretch(
                manifest.commit,
                manifest.from_lsn,
                manifest.to_lsn,
                manifest.commit_ts,
                files,
                stopped,
            )
        )


def is_held_together(rows: int, size: int) -> bool:
    """Whether memory holds changes of the log at once, by their number and their files' bytes."""
    return rows <= STRETCH_ROWS and size <= STRETCH_BYTES


def next_stretch(queue: Iterable[Stretch], meeting: int) -> list[Stretch]:
    """Whole commits up to a number of rows and bytes, or up to `meeting`; a stop stands alone."""
    stretch: list[Stretch] = []
    rows = size = 0
    for part in queue:
        rows, size = rows + part.rows, size + part.bytes
        if stretch:
            stops = part.stopped is not None or stretch[0].stopped is not None
            meets = stretch[0].commit <= meeting < part.commit
            if not is_held_together(rows, size) or stops or meets:
                break
        stretch.append(part)
    return stretch


def offer_snapshot(state: TableState | None, commit: int, event: SnapshotEvent) -> None:
    """Take a snapshot where the table needs one; a streaming table has no use for it."""
    if state is None or commit <= state.resumed:
        return
    if state.phase in (Phase.WAITING, Phase.FAILED):
        state.snapshot = (commit, event)
        state.phase, state.error, state.due = Phase.LOADING, None, 0.0
