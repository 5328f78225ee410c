"""Big tables copied in ranges of their key, which may take more than one snapshot.

What is left of a table after a crash, a lost connection or a restart is read in a new snapshot, as
of a later LSN. In the end the older ranges are brought to the newest LSN by what the change log
holds in between: the log gets one snapshot, as of one LSN, like that of any other table. Where that
cannot be done exactly, the ranges are given up and the table is copied anew, with a word why.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from headrace.engine.capture import Capture
from headrace.engine.collapse import collapse
from headrace.engine.placing import Placing
from headrace.engine.protocols import Snapshot
from headrace.engine.range_files import RangeFiles
from headrace.engine.table_state import STRETCH_BYTES, STRETCH_ROWS
from headrace.errors import TableRewrittenError
from headrace.log import (
    LogFile,
    LogWriter,
    RangeCopy,
    SnapshotEvent,
    SnapshotFile,
    UnfinishedCopy,
)
from headrace.model import COMMIT_LSN, ChangeBatch, KeyRange, Lsn, SnapshotChunk, TableId

_log = logging.getLogger("headrace.run")


class RangeCopies:
    """The copies of one log's tables that are not complete; used by the copier's threads."""

    def __init__(
        self, log: LogWriter, capture: Capture, stop: threading.Event, placing: Placing
    ) -> None:
        self._log = log
        self._capture = capture
        self._stop = stop
        self._reader = placing.reader
        self._placing = placing
        self._lock = threading.Lock()
        self._copies = dict(log.unfinished)
        self._given_up = {table: capture.given_up(table) for table in self._copies}

    def get(self, table: TableId) -> UnfinishedCopy | None:
        return self._copies.get(table)

    def missing(self, table: TableId) -> list[KeyRange] | None:
        """The ranges that are still to be copied; None where the table is not begun."""
        copy = self._copies.get(table)
        return None if copy is None else [p.keys for p in copy.ranges if p.lsn is None]

    def keep_only(self, tables: Collection[TableId]) -> None:
        for table in self._copies.keys() - tables:
            self.give_up(table, "no pipeline carries it")

    def give_up(self, table: TableId, why: str) -> None:
        """Let go of what was copied of a table, and say why."""
        with self._lock:
            if self._copies.pop(table, None) is not None:
                _log.warning("ranges_given_up table=%s reason=%r", table, why)
                self._log.give_up(table)

    # -- copying -----------------------------------------------------------------------------------

    def begin(
        self, snapshot: Snapshot, table: TableId, chunks: Sequence[SnapshotChunk], after: int
    ) -> None:
        """Go on with a table in a snapshot that was opened after the commit `after`, or begin it.

        Raises:
            TableRewrittenError: it is not the table that it was; its ranges are given up.
        """
        schema, identity = snapshot.schema(table), snapshot.identity(table)
        keys = [chunk.keys for chunk in chunks if chunk.keys is not None]
        copy = self._copies.get(table)
        if copy is None and keys:
            parts = tuple(RangeCopy(each) for each in keys)
            self._copies[table] = UnfinishedCopy(table, schema.version, identity, after, parts)
            self._given_up[table] = self._capture.given_up(table)
        elif copy is not None and (
            (copy.schema_version, copy.identity) != (schema.version, identity)
            or keys != self.missing(table)
        ):
            why = f"{table}: its definition changed between two snapshots of its ranges"
            self.give_up(table, why)
            raise TableRewrittenError(why, hint="Headrace copies the table anew")

    def copied(self, snapshot: Snapshot, chunk: SnapshotChunk, file: SnapshotFile) -> None:
        """A range is in the log's folder; from now on it survives."""
        files = (file,) if file.rows else ()
        with self._lock:
            copy = self._copies.get(chunk.table)
            if copy is None or not file.rows:
                self._log.discard([file])
            if copy is None:  # given up meanwhile
                return
            parts = tuple(
                RangeCopy(part.keys, snapshot.lsn, snapshot.taken_at, files)
                if part.keys == chunk.keys
                else part
                for part in copy.ranges
            )
            self._keep(replace(copy, ranges=parts))

    def _keep(self, copy: UnfinishedCopy) -> None:
        self._log.keep(copy)
        self._copies[copy.table] = copy

    # -- completing --------------------------------------------------------------------------------

    def complete(self, table: TableId) -> bool:
        """Make a table whose ranges are all copied part of the log, as of one LSN.

        False if the stream stopped following it meanwhile: its ranges are given up then.

        Raises:
            TableRewrittenError: it cannot be exact; its ranges are given up.
            CopyStoppedError: the run ends before the log is where the newest range is.
        """
        copy = self._copies[table]
        if table not in self._log.unfinished:  # a commit whose put seemed to fail was made
            del self._copies[table]
            return True
        try:
            copy = self._brought_up(copy)
        except TableRewrittenError as error:
            self.give_up(table, error.message)
            raise
        newest = copy.ranges[0]
        assert newest.lsn is not None
        event = SnapshotEvent(
            table, newest.lsn, copy.schema_version, copy.files, taken_at=newest.taken_at
        )
        if not self._capture.commit_snapshots([(event, self._given_up[table])]):
            self.give_up(table, "the stream could not follow it while it was copied")
            return False
        del self._copies[table]
        return True

    def _brought_up(self, copy: UnfinishedCopy) -> UnfinishedCopy:
        """The copy with every range as of the newest LSN that one of them has."""
        while len(stands := sorted({part.lsn for part in copy.ranges if part.lsn})) > 1:
            oldest, following = stands[:2]
            self._placing.reach(stands[-1])
            copy = self._step(copy, oldest, following)
            self._keep(copy)
        return copy

    def _step(self, copy: UnfinishedCopy, behind: Lsn, to: Lsn) -> UnfinishedCopy:
        """Bring the ranges that stand at `behind` to `to`, where the next ones stand."""
        schema = self._reader.schema(copy.table, copy.schema_version)
        old = {n: part for n, part in enumerate(copy.ranges) if part.lsn == behind}
        taken_at = next(part.taken_at for part in copy.ranges if part.lsn == to)
        files = RangeFiles(
            self._log,
            self._reader,
            schema,
            [part.keys for part in copy.ranges],
            to,
            self._stop,
            {number: part.files for number, part in old.items()},
        )
        try:
            for stretch in _stretches(self._files_between(copy, behind, to)):
                batches = [_up_to(batch, to) for batch in self._reader.read_all(stretch)]
                files.apply(collapse(schema, batches, behind))
        except BaseException:
            files.files = {}
            raise
        finally:
            files.discard()
        parts = [
            replace(part, lsn=to, taken_at=taken_at, files=files.files[number])
            if number in old
            else part
            for number, part in enumerate(copy.ranges)
        ]
        return replace(copy, ranges=tuple(parts))

    def _files_between(self, copy: UnfinishedCopy, behind: Lsn, to: Lsn) -> Iterator[LogFile]:
        """The log's files with changes of the table in between, in order.

        Raises:
            TableRewrittenError: the log does not tell them all, or of other columns.
        """
        for manifest in self._reader.manifests(copy.after):
            if any(table == copy.table for table, _ in manifest.stopped):
                raise _lost(copy.table, "the stream could not follow it")
            for file in manifest.files:
                if file.table == copy.table and _overlaps(file, behind, to):
                    if file.schema_version != copy.schema_version:
                        raise _lost(copy.table, "its columns changed")
                    yield file


def _lost(table: TableId, why: str) -> TableRewrittenError:
    return TableRewrittenError(
        f"{table}: {why} between two snapshots of its ranges",
        hint="Headrace copies the table anew, as of one moment",
    )


def _overlaps(file: LogFile, behind: Lsn, to: Lsn) -> bool:
    first, last = file.first_lsn, file.last_lsn
    return first is not None and last is not None and first <= to and last > behind


def _stretches(files: Iterator[LogFile]) -> Iterator[list[LogFile]]:
    """The files in runs of a bounded size; one may end inside of a transaction."""
    stretch: list[LogFile] = []
    rows = size = 0
    for file in files:
        rows, size = rows + file.rows, size + file.bytes
        if stretch and (rows > STRETCH_ROWS or size > STRETCH_BYTES):
            yield stretch
            stretch, rows, size = [], file.rows, file.bytes
        stretch.append(file)
    if stretch:
        yield stretch


def _up_to(batch: ChangeBatch, lsn: Lsn) -> ChangeBatch:
    within = batch.data[COMMIT_LSN].to_numpy() <= np.uint64(lsn)
    return batch if within.all() else replace(batch, data=batch.data.filter(pa.array(within)))
