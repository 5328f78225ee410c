"""Snapshots into the change log: several chunks at once, each table complete by itself.

A table whose snapshot is in the log survives a restart, and so do the finished ranges of a big one
(`range_copies`). Any other that was cut short is copied anew, as of a new LSN, and its chunks,
which no manifest names, are discarded (after a crash: swept).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Final

import pyarrow as pa

from headrace.engine.capture import Capture
from headrace.engine.placing import Placing
from headrace.engine.protocols import Snapshot, Source
from headrace.engine.range_copies import RangeCopies
from headrace.engine.throttle import Throttle
from headrace.errors import CopyStoppedError, HeadraceError, TableRewrittenError
from headrace.log import LogReader, LogWriter, SnapshotEvent, SnapshotFile
from headrace.model import KeyRange, SnapshotChunk, TableId

# Threads for each connection: while one encodes what is left of its chunk and waits for the disk,
# another one reads.
THREADS: Final = 2


@dataclass
class CopyProgress:
    """How far one table's snapshot has come; `expected` is the planner's estimate.

    `ranges` is how many of its key it is copied in, 0 where it is not.
    """

    expected: int = 0
    rows: int = 0
    ranges: int = 0
    ranges_done: int = 0
    done: bool = False
    error: HeadraceError | None = None

    @property
    def ended(self) -> bool:
        return self.done or (self.error is not None and not self.error.transient)


def _ahead(
    batches: Generator[pa.RecordBatch], readers: ThreadPoolExecutor
) -> Iterator[pa.RecordBatch]:
    """The same batches, each next one read while the one before is written."""
    following = readers.submit(next, batches, None)
    try:
        while (batch := following.result()) is not None:
            following = readers.submit(next, batches, None)
            yield batch
    finally:
        wait([following])
        batches.close()


def _together(over: queue.SimpleQueue[Future[None]]) -> list[Future[None]]:
    """The next job that is over, with those that are by then."""
    return [over.get(), *(over.get() for _ in range(over.qsize()))]


@dataclass(frozen=True)
class CopyLimits:
    """What copying may take of a source at most; a rate is that of all connections together."""

    connections: int = 2
    rows_per_second: float | None = None
    bytes_per_second: float | None = None


class Copier:
    """Copies tables of one source into one log; `stop` makes it end between two batches."""

    def __init__(
        self,
        source: Source,
        log: LogWriter,
        capture: Capture,
        stop: threading.Event,
        limits: CopyLimits | None = None,
    ) -> None:
        self._source = source
        self._log = log
        self._capture = capture
        self._stop = stop
        limits = limits or CopyLimits()
        self._connections = limits.connections
        self._throttle = Throttle(limits.rows_per_second, limits.bytes_per_second, wait=stop.wait)
        reader = LogReader(log.storage, log.layout, log.log_id, log.feed)
        self._placing = Placing(source, log, reader, capture, stop)
        self._ranges = RangeCopies(log, capture, stop, self._placing)
        self.progress: dict[TableId, CopyProgress] = {}
        self._files: dict[TableId, list[SnapshotFile]] = {}
        self._given_up: dict[TableId, int] = {}
        self.error: HeadraceError | None = None  # why the copy is being begun anew

    def keep_only(self, tables: Collection[TableId]) -> None:
        """Give up what was copied of tables that nobody carries any more: it holds the log."""
        self._ranges.keep_only(tables)

    def copy(self, tables: Sequence[TableId]) -> None:
        """Copy all `tables` as of one LSN; each becomes part of the log when it is whole.

        A table that cannot be represented is recorded as stopped, one that was rewritten meanwhile
        is not `ended`, and the others go on; an error of the connection is raised, with the
        finished tables kept.
        """
        self.progress.update({table: CopyProgress() for table in tables})
        self._files = {table: [] for table in tables}
        self._given_up = {table: self._capture.given_up(table) for table in tables}
        missing = {table: self._ranges.missing(table) for table in tables}
        reading = {table: ranges for table, ranges in missing.items() if ranges != []}
        try:
            for table in missing.keys() - reading.keys():
                self._complete_ranges(table)
            if reading:
                self._read(reading)
        finally:
            for table in tables:
                if not self.progress[table].done:
                    self._log.discard(self._files[table])

    def _read(self, tables: Mapping[TableId, Sequence[KeyRange] | None]) -> None:
        head = self._log.head
        after = head.commit if head else 0  # before there is a snapshot
        threads = THREADS * self._connections
        with (
            self._source.snapshot(
                tables, self._connections, partial(self._placing.place, after)
            ) as snapshot,
            ThreadPoolExecutor(threads, "headrace-read") as self._readers,
            ThreadPoolExecutor(threads, "headrace-copy") as pool,
        ):
            try:
                self._copy_all(pool, snapshot, tables, after)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _copy_all(
        self, pool: ThreadPoolExecutor, snapshot: Snapshot, tables: Iterable[TableId], after: int
    ) -> None:
        over: queue.SimpleQueue[Future[None]] = queue.SimpleQueue()
        jobs: dict[Future[None], TableId] = {}
        begun = {table: self._begin(snapshot, table, after) for table in tables}
        self._capture.learn(*(snapshot.schema(table) for table, chunks in begun.items() if chunks))
        for chunk in (chunk for chunks in begun.values() for chunk in chunks):
            job = pool.submit(self._copy_chunk, snapshot, chunk)
            jobs[job] = chunk.table
            job.add_done_callback(over.put)
        waiting = {table: len(chunks) for table, chunks in begun.items()}
        while jobs:
            whole = []
            try:
                for job in _together(over):
                    table = jobs.pop(job)
                    waiting[table] -= 1
                    if self._is_well(job, table) and not waiting[table]:
                        whole.append(table)
            finally:
                self._complete(snapshot, whole)

    def _begin(self, snapshot: Snapshot, table: TableId, after: int) -> Sequence[SnapshotChunk]:
        """The chunks of a table that are to be copied now; none of one that stops, or is not as it
        was when its copy began."""
        progress = self.progress[table]
        try:
            chunks = snapshot.chunks(table)
        except TableRewrittenError as error:
            progress.error = error
            return ()
        except HeadraceError as error:
            if error.transient:
                raise
            self._stop_table(table, error)
            return ()
        progress.expected = sum(chunk.rows for chunk in chunks)
        try:
            self._ranges.begin(snapshot, table, chunks, after)
        except TableRewrittenError as error:
            progress.error = error
            return ()
        if (copy := self._ranges.get(table)) is not None:
            progress.rows, progress.ranges = copy.rows, len(copy.ranges)
            progress.ranges_done = len(copy.done)
        return chunks

    def _copy_chunk(self, snapshot: Snapshot, chunk: SnapshotChunk) -> None:
        progress = self.progress[chunk.table]
        if progress.error is not None:
            return  # it is copied anew, or not at all
        schema = snapshot.schema(chunk.table)
        with self._log.stage_snapshot(schema, snapshot.lsn, chunk.number) as writer:
            for batch in _ahead(snapshot.read(chunk), self._readers):
                self._throttle(batch.num_rows, batch.nbytes)
                if self._stop.is_set():
                    raise CopyStoppedError(f"{chunk.table}: the copy was stopped")
                writer.write(batch)
                progress.rows += batch.num_rows
        if chunk.keys is None:
            self._files[chunk.table].append(writer.file)
        else:
            self._ranges.copied(snapshot, chunk, writer.file)
            progress.ranges_done += 1

    def _is_well(self, job: Future[None], table: TableId) -> bool:
        """Whether the table is still well; a lasting error stops it, once."""
        progress = self.progress[table]
        try:
            job.result()
        except TableRewrittenError as error:
            progress.error = progress.error or error
        except HeadraceError as error:
            if error.transient or isinstance(error, CopyStoppedError):
                raise
            if progress.error is None or progress.error.transient:
                self._stop_table(table, error)
        return progress.error is None

    def _stop_table(self, table: TableId, error: HeadraceError) -> None:
        self._ranges.give_up(table, error.message)
        self._capture.commit_stop(table, error)
        self.progress[table].error = error

    def _complete(self, snapshot: Snapshot, tables: Sequence[TableId]) -> None:
        """Make tables part of the log, in as few commits as there can be."""
        events = []
        for table in tables:
            if self._ranges.get(table) is not None:
                self._complete_ranges(table)
            else:
                events.append((self._event(snapshot, table), self._given_up[table]))
        done = self._capture.commit_snapshots(events) if events else ()
        for event, _ in events:
            self._end(event.table, done=event.table in done)

    def _event(self, snapshot: Snapshot, table: TableId) -> SnapshotEvent:
        version, files = snapshot.schema(table).version, tuple(self._files[table])
        return SnapshotEvent(table, snapshot.lsn, version, files, taken_at=snapshot.taken_at)

    def _complete_ranges(self, table: TableId) -> None:
        try:
            self._end(table, done=self._ranges.complete(table))
        except TableRewrittenError as error:
            self.progress[table].error = error

    def _end(self, table: TableId, *, done: bool) -> None:
        self.progress[table].done = done
        if not done:
            self.progress[table].error = TableRewrittenError(
                f"{table}: the stream could not follow it while it was copied"
            )
