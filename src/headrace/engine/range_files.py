"""The files of a table's ranges, brought from one LSN to a later one by the changes in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa

from headrace import failpoints
from headrace.engine.factorize import factorize
from headrace.engine.gather import take
from headrace.engine.key_ranges import among, inside, moved_without_value, places, selected
from headrace.engine.lineage import Ints
from headrace.errors import CopyStoppedError, TableRewrittenError
from headrace.log import LogReader, LogWriter, SnapshotFile
from headrace.model import KeyRange, Lsn, NetChanges, TableSchema

# Rows that may be written again for one that was copied: with more, copying them is quicker.
WORTH: Final = 2
FEW_ROWS: Final = 5_000_000  # that many may be, however few were copied

Files = tuple[SnapshotFile, ...]


@dataclass
class RangeFiles:
    """Ranges of one table as they stand; `files` are those of the ranges that are behind.

    What is written here is not part of anything until the caller makes it so; `discard` removes it.
    """

    log: LogWriter
    reader: LogReader
    schema: TableSchema
    ranges: Sequence[KeyRange]
    at: Lsn  # where they are brought to, for the names of files
    stop: threading.Event
    files: dict[int, Files]
    written: list[SnapshotFile] = field(default_factory=list)
    rows_written: int = 0
    rows_copied: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows_copied = sum(f.rows for files in self.files.values() for f in files)

    def apply(self, changes: NetChanges) -> None:
        """Bring the files on by the net effect of the next changes of the whole table.

        Raises:
            TableRewrittenError: a value is nowhere to be found, or so much changed that copying
                the table is less work.
            CopyStoppedError: the run ends.
        """
        if changes.truncate:
            self.files = dict.fromkeys(self.files, ())
        ours = inside(changes, self.ranges, self.files.keys())
        key, before = list(self.schema.key), dict(self.files)
        put, gone = places(self.ranges, ours.upserts.select(key)), places(self.ranges, ours.deletes)
        for number in np.union1d(put, gone).tolist():  # large values of one at a time
            part = selected(ours, put == number, gone == number)
            added = _filled(part, partial(self._rows, before))
            self._rewrite(number, added, pa.concat_tables([added.select(key), part.deletes]))

    def discard(self) -> None:
        """Remove what was written here and is not among `files`."""
        current = {file for files in self.files.values() for file in files}
        self.log.discard([file for file in self.written if file not in current])

    # -- one range ---------------------------------------------------------------------------------

    def _rewrite(self, number: int, added: pa.Table, touched: pa.Table) -> None:
        """Take the rows under the keys `touched` out of a range's files, and put `added` in."""
        stale = [f for f in self.files[number] if self._holds(f, touched) or _merges(f, added)]
        kept = tuple(f for f in self.files[number] if f not in stale)
        if not (stale or added.num_rows):
            return
        file = self._write(number, self._without(stale, touched), added)
        failpoints.hit("snapshot.range_advanced")
        self.files[number] = (*kept, file) if file.rows else kept

    def _write(self, number: int, rows: Iterator[pa.Table], added: pa.Table) -> SnapshotFile:
        with self.log.stage_snapshot(self.schema, self.at, number) as writer:
            for table in (*rows, added):
                self._account(table.num_rows)
                for batch in table.to_batches():
                    writer.write(batch)
        self.written.append(writer.file)
        return writer.file

    def _account(self, rows: int) -> None:
        if self.stop.is_set():
            raise CopyStoppedError(f"{self.schema.table}: the copy was stopped")
        self.rows_written += rows
        if self.rows_written > max(WORTH * self.rows_copied, FEW_ROWS):
            raise TableRewrittenError(
                f"{self.schema.table}: so many rows changed since its first ranges were copied "
                "that copying them again is quicker",
                hint="Headrace copies the table anew, as of one moment",
            )

    def _holds(self, file: SnapshotFile, keys: pa.Table) -> bool:
        """Whether a file has a row under one of the keys."""
        names = keys.column_names
        tables = self.reader.snapshot_file(self.schema, file, names)
        return any(bool(among(table, keys).any()) for table in tables)

    def _without(self, files: Sequence[SnapshotFile], keys: pa.Table) -> Iterator[pa.Table]:
        for file in files:
            for table in self.reader.snapshot_file(self.schema, file):
                yield table.filter(pa.array(~among(table.select(keys.column_names), keys)))

    def _rows(self, files: Mapping[int, Files], keys: pa.Table, columns: Sequence[str]) -> pa.Table:
        """The rows of ranges' `files` under `keys`, in no order: their keys and `columns`."""
        numbers = places(self.ranges, keys)
        names = list(dict.fromkeys([*keys.column_names, *columns]))
        found = [self.schema.arrow().empty_table().select(names)]
        for number in np.unique(numbers).tolist():
            wanted = take(keys, np.flatnonzero(numbers == number))
            for file in files[number]:
                for table in self.reader.snapshot_file(self.schema, file, names):
                    hits = among(table.select(keys.column_names), wanted)
                    found.append(table.filter(pa.array(hits)))
        return pa.concat_tables(found)


def _merges(file: SnapshotFile, added: pa.Table) -> bool:
    """Whether to write a file again because it is small: else each stretch of changes adds one."""
    return 0 < file.rows <= int(added.num_rows)


def _filled(changes: NetChanges, find: Callable[[pa.Table, Sequence[str]], pa.Table]) -> pa.Table:
    """The upserts, with the values that the source did not send from the rows that have them."""
    rows = changes.upserts
    for fill in changes.fills:
        found = find(fill.keys, fill.columns)
        source = _matches(fill.keys, found)
        if (source < 0).any():
            raise moved_without_value(changes.schema.table, fill.columns[0])
        for name in fill.columns:
            rows = _replaced(rows, name, fill.rows, found[name], source)
    return rows


def _matches(keys: pa.Table, rows: pa.Table) -> Ints:
    """For each key the place of its row, or -1."""
    codes = factorize(pa.concat_tables([keys, rows.select(keys.column_names)]), zeros_equal=True)
    place = np.full(codes.distinct, -1)
    place[codes.values[keys.num_rows :]] = np.arange(rows.num_rows)
    return place[codes.values[: keys.num_rows]]


def _replaced(
    rows: pa.Table, name: str, at: Ints, values: pa.ChunkedArray, source: Ints
) -> pa.Table:
    """`rows` with the values at `source` in their rows `at`."""
    place = rows.column_names.index(name)
    both = pa.chunked_array([*rows[name].chunks, *values.chunks], rows[name].type)
    order = np.arange(rows.num_rows)
    order[at] = rows.num_rows + source
    column = take(pa.table({name: both}), order)[name]
    return rows.set_column(place, rows.field(name), column)
