"""Snapshots into the change log: several chunks at once, each table complete by itself.

A table whose snapshot is in the log survives a restart; one that was cut short is copied anew, as
of a new LSN, and its chunks, which no manifest names, are discarded (after a crash: swept).
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass

import pyarrow as pa

from headrace.engine.capture import Capture
from headrace.engine.protocols import Snapshot, Source
from headrace.errors import CopyStoppedError, HeadraceError, TableRewrittenError
from headrace.log import LogWriter, SnapshotEvent, SnapshotFile
from headrace.model import SnapshotChunk, TableId


@dataclass
class CopyProgress:
    """How far one table's snapshot has come; `expected` is the planner's estimate."""

    expected: int = 0
    rows: int = 0
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


class Copier:
    """Copies tables of one source into one log; `stop` makes it end between two batches."""

    def __init__(
        self,
        source: Source,
        log: LogWriter,
        capture: Capture,
        stop: threading.Event,
        connections: int = 2,
    ) -> None:
        self._source = source
        self._log = log
        self._capture = capture
        self._stop = stop
        self._connections = connections
        self.progress: dict[TableId, CopyProgress] = {}
        self._files: dict[TableId, list[SnapshotFile]] = {}
        self._given_up: dict[TableId, int] = {}
        self.error: HeadraceError | None = None  # why the copy is being begun anew

    def copy(self, tables: Sequence[TableId]) -> None:
        """Copy all `tables` as of one LSN; each becomes part of the log when it is whole.

        A table that cannot be represented is recorded as stopped, one that was rewritten meanwhile
        is not `ended`, and the others go on; an error of the connection is raised, with the
        finished tables kept.
        """
        self.progress.update({table: CopyProgress() for table in tables})
        self._files = {table: [] for table in tables}
        self._given_up = {table: self._capture.given_up(table) for table in tables}
        try:
            with (
                self._source.snapshot(tables, self._connections) as snapshot,
                ThreadPoolExecutor(self._connections, "headrace-read") as self._readers,
                ThreadPoolExecutor(self._connections, "headrace-copy") as pool,
            ):
                try:
                    self._copy_all(pool, snapshot, tables)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            for table in tables:
                if not self.progress[table].done:
                    self._log.discard(self._files[table])

    def _copy_all(
        self, pool: ThreadPoolExecutor, snapshot: Snapshot, tables: Sequence[TableId]
    ) -> None:
        jobs: dict[Future[None], TableId] = {}
        waiting: dict[TableId, int] = {}
        for table in tables:
            chunks = snapshot.chunks(table)
            waiting[table] = len(chunks)
            self.progress[table].expected = sum(chunk.rows for chunk in chunks)
            self._capture.learn(snapshot.schema(table))
            jobs.update({pool.submit(self._copy_chunk, snapshot, c): table for c in chunks})
        for job in as_completed(jobs):
            table = jobs[job]
            waiting[table] -= 1
            if self._is_well(job, table) and not waiting[table]:
                self._complete(snapshot, table)

    def _copy_chunk(self, snapshot: Snapshot, chunk: SnapshotChunk) -> None:
        progress = self.progress[chunk.table]
        schema = snapshot.schema(chunk.table)
        with self._log.stage_snapshot(schema, snapshot.lsn, chunk.number) as writer:
            for batch in _ahead(snapshot.read(chunk), self._readers):
                if self._stop.is_set():
                    raise CopyStoppedError(f"{chunk.table}: the copy was stopped")
                writer.write(batch)
                progress.rows += batch.num_rows
        self._files[chunk.table].append(writer.file)

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
                self._capture.commit_stop(table, error)
                progress.error = error
        return progress.error is None

    def _complete(self, snapshot: Snapshot, table: TableId) -> None:
        schema = snapshot.schema(table)
        event = SnapshotEvent(
            table,
            snapshot.lsn,
            schema.version,
            tuple(self._files[table]),
            taken_at=snapshot.taken_at,
        )
        if self._capture.commit_snapshot(event, self._given_up[table]):
            self.progress[table].done = True
        else:
            self.progress[table].error = TableRewrittenError(
                f"{table}: the stream could not follow it while it was copied"
            )
