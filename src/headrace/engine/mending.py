"""A table's content made equal to its source's by what differs, instead of being replaced.

Where a table is copied again (a resync, a lost slot or log, a repair), most of its rows usually
stand already. Both sides are compared by fingerprints in bounded memory (`compare`); only rows that
differ are written, in one commit with the checkpoint. So readers keep what they have cached, and a
Change Data Feed tells the true differences. Too many of them: then replacing is the smaller change.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.engine.compare import Comparison, Fingerprint, ReadRows, among
from headrace.engine.protocols import Content, DestinationTable, MendableTable
from headrace.errors import CopyStoppedError, DestinationError, DestinationUnavailableError
from headrace.log import LogReader, SnapshotEvent
from headrace.model import Checkpoint, NetChanges, TableSchema

# Beyond this share of a table's rows a new content is written at about the same cost, and the
# files of the old one need not be kept for the sake of the rest.
REPLACE_ABOVE: Final = 0.3
SMALL: Final = 1000  # rows that are never worth a new content
AT_ONCE: Final = 500_000  # rows that one commit may hold in memory


@dataclass(frozen=True)
class Compared:
    """A table's content, the changes that make it a snapshot, and the snapshot's rows."""

    table: MendableTable
    content: Content
    changes: NetChanges
    rows: int

    def mend(self, at: Checkpoint) -> None:
        """Commit the changes. Raises DestinationConflictError as `MendableTable.mend` does."""
        self.table.mend(self.changes, at, self.content)

    def __str__(self) -> str:
        brought, gone = self.changes.upserts.num_rows, self.changes.deletes.num_rows
        return f"of {self.rows} rows, {brought} were written and {gone} taken away"


class Comparer:
    """Compares snapshots with what stands at the destination, beside the loop that applies."""

    def __init__(self, name: str, reader: LogReader) -> None:
        self._name = name
        self._reader = reader
        self._pool: ThreadPoolExecutor | None = None
        self._stop = threading.Event()

    @contextmanager
    def at_work(self, stop: threading.Event) -> Iterator[None]:
        """Comparisons end as soon as `stop` is set."""
        self._stop = stop
        with ThreadPoolExecutor(1, f"headrace-{self._name}-compare") as self._pool:
            yield

    def compare(
        self, destination: DestinationTable, schema: TableSchema, event: SnapshotEvent
    ) -> Future[Compared | None]:
        """What the table differs by from a snapshot of it; None: it is to be loaded whole."""
        if isinstance(destination, MendableTable) and self._pool is not None:
            content = destination.content(schema)
            if content is not None:
                return self._pool.submit(self._compare, destination, schema, event, content)
        nothing: Future[Compared | None] = Future()
        nothing.set_result(None)
        return nothing

    def _compare(
        self, table: MendableTable, schema: TableSchema, event: SnapshotEvent, content: Content
    ) -> Compared | None:
        wanted = Counted(lambda: self._until_stopped(event), content)
        try:
            changes = differences(schema, wanted, content)
        except DestinationUnavailableError:
            raise
        except DestinationError:  # what nobody can read is to be replaced
            return None
        return None if changes is None else Compared(table, content, changes, wanted.count)

    def _until_stopped(self, event: SnapshotEvent) -> Iterator[pa.Table]:
        for rows in self._reader.snapshot_rows(event):
            if self._stop.is_set():
                raise CopyStoppedError(f"{event.table}: the run ends before it was compared")
            yield rows


def follows(destination: DestinationTable) -> str | None:
    """The change log that a table's content comes from, where it can tell."""
    return destination.follows() if isinstance(destination, MendableTable) else None


def worth_mending(differing: int, rows: int) -> bool:
    """Whether so many differing rows are fewer than a table of `rows` is worth replacing for."""
    return differing <= min(max(SMALL, REPLACE_ABOVE * rows), AT_ONCE)


def differences(schema: TableSchema, wanted: Counted, content: Content) -> NetChanges | None:
    """The changes that make `content` what `wanted` gives; None where it is to be replaced."""
    compared = Comparison(wanted, content.rows, Fingerprint.of(content.schema, schema.names))
    if not worth_mending(compared.missing + compared.extra, wanted.count):
        return None
    return mending(schema, compared, wanted, content.schema)


def mending(
    schema: TableSchema, compared: Comparison, wanted: ReadRows, held: TableSchema
) -> NetChanges:
    """The changes that take away what is extra and bring what is missing, of a comparison.

    `held` is `schema` in the types that both sides were compared in. Under a key that has an extra
    row all rows go, and the one that is wanted comes: the same row may stand there twice.
    """
    empty = held.arrow().empty_table()
    missing = pa.concat_tables([empty, *_selected(compared.missing_rows(), schema)])
    extra = pa.concat_tables([empty, *_selected(compared.extra_rows(), schema)])
    if not schema.key:
        return NetChanges(schema, upserts=missing, deletes=extra)
    keys = Fingerprint.of(held, schema.key)
    if extra.num_rows:
        touched = np.unique(np.concatenate([keys.hash(rows).high for rows in (missing, extra)]))
        found = (rows.filter(pa.array(among(keys.hash(rows).high, touched))) for rows in wanted())
        missing = pa.concat_tables([empty, *_selected(found, schema)])
    gone = extra.select(list(schema.key))
    words = keys.hash(gone).high
    _, first = np.unique(words, return_index=True)
    stays = among(words[first], np.sort(keys.hash(missing).high))
    return NetChanges(schema, upserts=missing, deletes=gone.take(pa.array(first[~stays])))


def _selected(parts: Iterable[pa.Table], schema: TableSchema) -> Iterator[pa.Table]:
    return (part.select(list(schema.names)) for part in parts)


class Counted:
    """Rows as the destination holds them; `count` is how many the last reading gave."""

    def __init__(self, read: ReadRows, content: Content) -> None:
        self._read = read
        self._content = content
        self.count = 0

    def __call__(self) -> Iterator[pa.Table]:
        self.count = 0
        for rows in self._read():
            self.count += rows.num_rows
            yield self._content.held(rows)
