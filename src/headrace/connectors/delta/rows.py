"""The rows of a table by their keys: the key index, kept in step with the table's state."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyroaring import BitMap

from headrace.connectors.delta.files import (
    BATCH_ROWS,
    open_parquet,
    read_columns,
    read_range,
    read_rows,
)
from headrace.connectors.delta.index import KeyIndex, LiveFiles, Locations, by_file, locations
from headrace.connectors.delta.index_file import SavedIndex, Stamp
from headrace.connectors.delta.leaves import Pool
from headrace.connectors.delta.preserving import Preserved
from headrace.connectors.delta.side_by_side import side_by_side
from headrace.connectors.delta.slots import are_spent
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.stats import known_rows
from headrace.connectors.delta.vectors import read_vector
from headrace.errors import DestinationError
from headrace.log.storage import Storage
from headrace.model.fingerprint import Hasher, Hashes
from headrace.model.lake import INDEX_MEMORY

MANY_FILES: Final = 1 << 20  # each takes some 100 bytes, also when it is gone
READERS: Final = min(4, os.cpu_count() or 1)  # threads that read key columns; Arrow has its own
REQUESTS: Final = 16  # deletion vectors asked for at once, of an object store
ENTRIES: Final = 1 << 20  # rows of one file whose keys are read and numbered together


class RowIndex:
    """Finds rows by the columns of `schema`: the key's, or all of them in a table without one.

    Rows in which the column `history` is not null are past: nothing finds them.
    """

    def __init__(
        self,
        storage: Storage,
        schema: pa.Schema,
        hasher: Hasher | None = None,
        history: pa.Field | None = None,
        memory: int = INDEX_MEMORY,
        saved: Preserved | None = None,
    ) -> None:
        self.schema = schema
        self.history = None if history is None else history.name
        self._read_schema = schema if history is None else schema.append(history)
        self._storage = storage
        self._hasher = hasher or Hasher.of(schema)
        self._memory = memory
        self._saved = saved
        self._files = LiveFiles()
        self._index = KeyIndex(
            self._files, Pool(memory, None if saved is None else saved.new_leaves())
        )
        self._following = False
        self._fresh = 0  # entries since it was saved

    @property
    def nbytes(self) -> int:
        return self._index.nbytes

    @property
    def is_worn(self) -> bool:
        """Whether it must be built anew: so many files or rows have come and gone, or an error came
        between, and it stands half-way to another version."""
        slots = self._files.slots
        many = max(self._files.numbered, slots.extents) > MANY_FILES
        return self._following or many or are_spent(slots.taken)

    @property
    def entries(self) -> int:
        return self._index.entries

    def sync(self, state: TableState) -> None:
        """Follow the table to another state: only files not seen before are read.

        Raises:
            LogError: a file cannot be read.
            NullKeyError: as `Hasher.hash` does.
            OSError: the index has outgrown the memory, and the disk.
        """
        if not self._files.numbered:
            self._restore(state)
        with self._step():
            fresh = self._files.sync(state.files, self._load_vectors)
            expected = sum(known_rows(state.files[path]) or ENTRIES for path in fresh)
            self._fresh += expected
            entries = side_by_side(fresh, self._entries, min(READERS, max(len(fresh), 1)))
            if 4 * expected >= self._index.entries:
                self._index.add_many(entries, expected)
            else:
                self._index.add(entries)

    def _restore(self, state: TableState) -> None:
        """Begin with what was saved, if that is of this table and key."""
        if self._saved is None:
            return
        loaded = self._saved.load(self._stamp(state), self._memory)
        if loaded is None or (loaded.index.exact and not self._hasher.exact):
            return
        if are_spent(loaded.index.taken):
            return
        index = loaded.index
        self._hasher = Hasher(index.exact, index.seeds)
        self._files = LiveFiles.of(index.files, index.taken)
        self._index = KeyIndex(self._files, loaded.pool, index.tiers, index.waiting)

    def preserve(self, state: TableState, *, last: bool = False) -> None:
        """Save the index, which is of this state, where that is due: beside the table's commits, or
        as the `last` thing to be done.

        Raises:
            DestinationUnavailableError: it could not be saved; the table stands.
        """
        if self._saved is None or self._following or not self._saved.is_due(self._fresh, last=last):
            return
        index = SavedIndex(
            self._stamp(state),
            self._hasher.exact,
            self._hasher.seeds,
            self._files.slots.taken,
            self._files.entries(),
            [tier.columns for tier in self._index.tiers],
            [tier.columns for tier in self._index.waiting],
        )
        self._fresh = 0
        self._saved.save(index, self._index.pool, last=last)

    def _stamp(self, state: TableState) -> Stamp:
        fields = json.loads(state.metadata["schemaString"])["fields"]
        key = [field for field in fields if field["name"] in self.schema.names]
        columns = json.dumps([key, self.schema.names, self.history])
        return Stamp(state.metadata["id"], state.version, columns)

    def _add(self, parts: Iterable[tuple[Hashes, Locations]]) -> None:
        entries = list(parts)
        self._fresh += sum(len(where) for _, where in entries)
        self._index.add(entries)

    @contextmanager
    def _step(self) -> Iterator[None]:
        """What an error ends leaves an index that is known to be of no version."""
        self._following = True
        yield
        self._following = False

    def _load_vectors(self, descriptors: Sequence[Mapping[str, Any] | None]) -> Iterable[BitMap]:
        if not any(descriptors):
            return [BitMap()] * len(descriptors)
        with ThreadPoolExecutor(REQUESTS, "headrace-vectors") as pool:
            return list(pool.map(lambda d: load_vector(self._storage, d), descriptors))

    def _entries(self, path: str) -> Iterator[tuple[Hashes, Locations]]:
        """May be called from any thread, for files that have a number."""
        number, start = self._files.number(path), 0
        for rows in read_columns(self._storage, path, self._read_schema, ENTRIES):
            where = locations(number, np.arange(start, start + rows.num_rows))
            alive = self._files.live(where)
            if self.history is not None:
                alive &= rows.column(self.history).is_null().to_numpy()
            hashes = self._hasher.hash(rows.select(self.schema.names))
            whole = bool(alive.all())
            yield (hashes, where) if whole else (hashes.take(alive), where[alive])
            start += rows.num_rows

    def hash(self, keys: pa.Table) -> Hashes:
        """The numbers of keys. Raises NullKeyError as `Hasher.hash` does."""
        return self._hasher.hash(keys)

    def find(self, keys: Hashes) -> tuple[npt.NDArray[np.intp], Locations]:
        """Positions in `keys` and places of their live rows, in no particular order."""
        return self._index.find(keys)

    def find_each_once(self, rows: Hashes) -> Locations | None:
        """For a multiset: a row of its own for each of `rows`; None if there are not as many."""
        pairs = np.stack([rows.high, rows.high if rows.low is None else rows.low], axis=1)
        _, first, counts = np.unique(pairs, axis=0, return_index=True, return_counts=True)
        which, where = self._index.find(rows.take(first))
        order = np.lexsort((where, which))
        which, where = which[order], where[order]
        rank = np.arange(len(which)) - np.searchsorted(which, which, "left")
        taken = where[rank < counts[which]]
        return taken if len(taken) == len(rows) else None

    def deletions(self, where: Locations) -> dict[str, BitMap]:
        """For each file that holds one of these rows: all rows deleted from it, with these."""
        return {
            self._files.path(number): self._files.deleted(number) | BitMap(rows)
            for number, _, rows in by_file(where)
        }

    def by_path(self, where: Locations) -> Iterator[tuple[str, npt.NDArray[np.uint32]]]:
        """The files that hold these rows, and the rows' numbers there."""
        for number, _, rows in by_file(where):
            yield self._files.path(number), rows

    def read(self, where: Locations, schema: pa.Schema) -> pa.Table:
        """The columns of `schema` of rows, in the order of `where`."""
        parts, order = [schema.empty_table()], [np.empty(0, np.intp)]
        for number, positions, rows in by_file(where):
            path = self._files.path(number)
            parts.append(read_rows(self._storage, path, schema, rows.astype(np.int64)))
            order.append(positions)
        back = np.argsort(np.concatenate(order))
        return pa.concat_tables(parts).take(pa.array(back))

    def committed(
        self,
        deletions: Mapping[str, tuple[Mapping[str, Any] | None, BitMap]],
        removed: Iterable[str],
        added: Iterable[tuple[str, Hashes]],
    ) -> None:
        """Follow a commit of our own, without reading anything."""
        with self._step():
            for path in removed:
                self._files.drop(path)
            self._files.delete((path, *vector) for path, vector in deletions.items())
            self._add(
                (hashes, locations(self._files.add(path, None, BitMap()), np.arange(len(hashes))))
                for path, hashes in added
            )

    def deleted(self, path: str) -> BitMap:
        """All rows deleted from a file of the table."""
        return self._files.deleted(self._files.number(path))

    def numbered(self, rows: pa.Table) -> tuple[Hashes, npt.NDArray[np.uint32]]:
        """The numbers of keys, and which of the rows have them: past ones have none.

        May be called from any thread. Raises NullKeyError as `Hasher.hash` does.
        """
        which = np.arange(rows.num_rows, dtype=np.uint32)
        if self.history is not None:
            which = which[rows.column(self.history).is_null().to_numpy()]
        return self._hasher.hash(rows.select(self.schema.names)).take(which), which

    def moved(self, removed: Iterable[str], added: Iterable[Moved]) -> None:
        """Follow rows from files that go to new ones, without reading anything."""
        with self._step():
            for path in removed:
                self._files.drop(path)
            self._add(
                (m.hashes, locations(self._files.add(m.path, m.descriptor, m.deleted), m.rows))
                for m in added
            )


@dataclass(frozen=True)
class Moved:
    """A file made of others: `rows` of it have the keys with these numbers, sorted by the high one;
    those in `deleted` have been deleted since."""

    path: str
    descriptor: Mapping[str, Any] | None
    deleted: BitMap
    hashes: Hashes
    rows: npt.NDArray[np.uint32]


def load_vector(storage: Storage, descriptor: Mapping[str, Any] | None) -> BitMap:
    """The rows that a descriptor takes away, from wherever they are stored."""
    return read_vector(
        descriptor, lambda path, offset, length: read_range(storage, path, offset, length)
    )


def live_rows(
    storage: Storage, file: Mapping[str, Any], schema: pa.Schema, gone: BitMap | None = None
) -> Iterator[pa.Table]:
    """The rows of a data file but for those `gone`, a batch at a time: by default those that its
    deletion vector takes away."""
    return (rows for _, rows in numbered_rows(storage, file, schema, gone))


def numbered_rows(
    storage: Storage,
    file: Mapping[str, Any],
    schema: pa.Schema,
    gone: BitMap | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[tuple[npt.NDArray[np.int64], pa.Table]]:
    """The same, with the rows' numbers in the file."""
    if gone is None:
        gone = load_vector(storage, file.get("deletionVector"))
    deleted = np.frombuffer(gone.to_array(), np.uint32).astype(np.int64)
    start = 0
    for rows in read_columns(storage, file["path"], schema, batch_rows):
        numbers = np.arange(start, start + rows.num_rows)
        first, last = np.searchsorted(deleted, [start, start + rows.num_rows])
        start += rows.num_rows
        if first < last:
            alive = np.ones(rows.num_rows, np.bool_)
            alive[deleted[first:last] - numbers[0]] = False
            numbers, rows = numbers[alive], rows.filter(pa.array(alive))
        yield numbers, rows


def count_rows(storage: Storage, file: Mapping[str, Any]) -> int:
    """Rows of a data file, dead ones too, by its statistics or else its footer."""
    known = known_rows(file)
    if known is not None:
        return known
    with open_parquet(storage, file["path"]) as parquet:
        if parquet.metadata.num_rows >= 1 << 32:
            raise DestinationError(
                f"{file['path']} has more rows than Headrace can number",
                hint="rewrite the file in smaller ones",
            )
        return int(parquet.metadata.num_rows)
