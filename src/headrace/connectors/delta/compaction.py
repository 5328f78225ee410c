"""Compaction: rows of several files copied into new ones, beside the commits of the table's writer.

Copying takes seconds and needs no lock: data files are immutable. What was deleted from them in the
meantime is known by their deletion vectors, and the copy remembers where each of its rows came
from, so that the commit, which is the writer's, deletes the same rows of the copy and takes no
longer than another one. No row changes by it: all its actions say so (PROTOCOL.md, "Add File and
Remove File": dataChange).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyroaring import BitMap

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action, File
from headrace.connectors.delta.arrangement import in_order, pieces
from headrace.connectors.delta.index import Locations, locations
from headrace.connectors.delta.names import new_name
from headrace.connectors.delta.rows import Moved, RowIndex, load_vector, numbered_rows
from headrace.connectors.delta.schema import arrow_schema
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.vectors import unique_id
from headrace.connectors.delta.writer import (
    LASTING_COMPRESSION,
    ROW_GROUP_ROWS,
    DataWriter,
    write_vectors,
)
from headrace.failpoints import hit
from headrace.log.storage import FileGroup, Storage
from headrace.model.fingerprint import Hashes, NullKeyError, concat_hashes

Rows = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Copy:
    """A new file: its row `rows[i]` was at `origins[i]`, sorted, files numbered as sources are.

    `hashes` are the numbers of the keys of its rows `keyed`, if an index was at hand.
    """

    add: Action
    origins: Locations
    rows: Rows
    hashes: Hashes | None
    keyed: Rows

    @property
    def path(self) -> str:
        path: str = self.add["add"]["path"]
        return path

    def carried(self, lost: Locations) -> BitMap:
        """The rows of this file that came from the places `lost`."""
        at = np.minimum(np.searchsorted(self.origins, lost), len(self.origins) - 1)
        return BitMap(self.rows[at[self.origins[at] == lost]])

    def moved(self, descriptor: Mapping[str, Any] | None, deleted: BitMap) -> Moved:
        assert self.hashes is not None
        return Moved(self.path, descriptor, deleted, self.hashes, self.keyed)


@dataclass(frozen=True)
class Replacement:
    """A commit that puts copies in the place of their sources, and how the index that numbered them
    follows. `empty` are copies that lost all of their rows."""

    commit: Sequence[Action]
    follow: Callable[[RowIndex], None]
    empty: Sequence[str]


@dataclass(frozen=True)
class Compaction:
    """Copies that are durable and that no commit names yet; `deleted` are the rows of each source
    that were gone when it was copied. `index` numbered the keys; None where it could not."""

    metadata: Mapping[str, Any]
    sources: Sequence[File]
    deleted: Sequence[BitMap]
    copies: Sequence[Copy]
    index: RowIndex | None

    def against(
        self, storage: Storage, state: TableState, deleted: Callable[[File], BitMap]
    ) -> Replacement | None:
        """The commit, planned against what the table has become; None if it is a table of which a
        source is no longer a part, or with another schema.

        `deleted` gives all rows deleted from a file of the table.
        """
        current = [state.files.get(source["path"]) for source in self.sources]
        if state.metadata != self.metadata or not all(current):
            return None
        files = [file for file in current if file is not None]
        lost = self._lost(files, deleted)
        gone = {copy.path: copy.carried(lost) for copy in self.copies}
        empty = [copy.path for copy in self.copies if len(gone[copy.path]) == len(copy.rows)]
        kept = [copy for copy in self.copies if copy.path not in empty]
        vectors = {path: rows for path, rows in gone.items() if rows and path not in empty}
        descriptors = write_vectors(storage, vectors)
        metrics = {"numRemovedFiles": len(files), "numAddedFiles": len(kept)}
        commit = [
            actions.commit_info("OPTIMIZE", metrics=metrics),
            *(actions.remove(file, data_change=False) for file in files),
            *(_added(copy, descriptors.get(copy.path)) for copy in kept),
        ]

        def follow(index: RowIndex) -> None:
            moved = [copy.moved(descriptors.get(copy.path), gone[copy.path]) for copy in kept]
            index.moved([file["path"] for file in files], moved)

        return Replacement(commit, follow, empty)

    def _lost(self, files: Sequence[File], deleted: Callable[[File], BitMap]) -> Locations:
        """Where in the sources rows were deleted since they were copied; sorted."""
        lost = [np.empty(0, np.uint64)]
        for number, (then, now) in enumerate(zip(self.sources, files, strict=True)):
            if unique_id(then.get("deletionVector")) != unique_id(now.get("deletionVector")):
                rows = deleted(now) - self.deleted[number]
                lost.append(locations(number, np.frombuffer(rows.to_array(), np.uint32)))
        return np.concatenate(lost)

    def abandon(self, storage: Storage) -> None:
        """Delete the copies: nothing names them."""
        storage.delete([copy.path for copy in self.copies])


def _added(copy: Copy, descriptor: Mapping[str, Any] | None) -> Action:
    if descriptor is None:
        return copy.add
    return actions.with_vector(copy.add["add"], descriptor, len(copy.rows), data_change=False)


# -- copying ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    rows: pa.Table
    origins: Locations


def compact(
    storage: Storage,
    metadata: Mapping[str, Any],
    groups: Sequence[Sequence[File]],
    index: RowIndex | None,
    cluster_by: Sequence[str] = (),
) -> Compaction:
    """Copy the live rows of each group, files of one partition, into a new file; with `cluster_by`
    ordered by these columns, in as many files as it takes to keep each within its size.

    Runs beside the table's writer. Memory: what it remembers of a row is 30 bytes; with
    `cluster_by` it holds a group's rows.

    Raises:
        LogError: a file cannot be read or written.
    """
    schema = arrow_schema(metadata["schemaString"])
    sources = [file for group in groups for file in group]
    deleted = [load_vector(storage, file.get("deletionVector")) for file in sources]
    numbered = _numbering(index)
    copies: list[Copy] = []
    first = 0
    with storage.write() as group_of_files:
        for group in groups:
            numbers = range(first, first + len(group))
            first += len(group)
            batches = _living(storage, [(n, sources[n], deleted[n]) for n in numbers], schema)
            size = sum(file["size"] for file in group)
            values = group[0].get("partitionValues") or {}
            for part in _arranged(batches, cluster_by, size):
                copies += _copied(group_of_files, schema, part, values, numbered)
    hit("delta.compaction_written")
    whole = all(copy.hashes is not None for copy in copies)
    return Compaction(metadata, sources, deleted, copies, index if whole else None)


def _living(
    storage: Storage, sources: Iterable[tuple[int, File, BitMap]], schema: pa.Schema
) -> Iterator[_Batch]:
    for number, file, deleted in sources:
        for places, rows in numbered_rows(storage, file, schema, deleted, ROW_GROUP_ROWS):
            if len(places):
                yield _Batch(rows, locations(number, places))


def _arranged(
    batches: Iterator[_Batch], cluster_by: Sequence[str], size: int
) -> Iterator[Iterable[_Batch]]:
    """The batches of each new file."""
    if not cluster_by:
        yield batches
        return
    held = list(batches)
    if not held:
        return
    rows = pa.concat_tables([batch.rows for batch in held])
    origins = np.concatenate([batch.origins for batch in held])
    order = in_order(rows, cluster_by)
    for piece in pieces(order, size):
        yield (
            _Batch(rows.take(pa.array(part)), origins[part])
            for part in np.split(piece, range(ROW_GROUP_ROWS, len(piece), ROW_GROUP_ROWS))
        )


_Numbering = Callable[[pa.Table], tuple[Hashes, Rows] | None]


def _numbering(index: RowIndex | None) -> _Numbering:
    """The numbers of keys, as far as the index can tell: it is built anew over a null in one."""

    def numbered(rows: pa.Table) -> tuple[Hashes, Rows] | None:
        try:
            return None if index is None else index.numbered(rows)
        except NullKeyError:
            return None

    return numbered


def _copied(
    group: FileGroup,
    schema: pa.Schema,
    batches: Iterable[_Batch],
    partition_values: Mapping[str, str | None],
    numbered: _Numbering,
) -> Iterator[Copy]:
    """A copy of these batches; none if there are no rows."""
    writer: DataWriter | None = None
    origins: list[Locations] = []
    numbers: list[tuple[Hashes, Rows] | None] = []
    for batch in batches:
        if writer is None:
            path = new_name()
            writer = DataWriter(
                group.open(path), path, schema, LASTING_COMPRESSION, partition_values
            )
        found = numbered(batch.rows)
        numbers.append(found and (found[0], found[1] + np.uint32(writer.rows)))
        writer.write(batch.rows)
        origins.append(batch.origins)
    if writer is not None:
        add = writer.finish(data_change=False)
        pa.default_memory_pool().release_unused()  # some 40 MB, before as much is needed to sort
        where = np.concatenate(origins)
        origins.clear()
        rows = np.arange(len(where), dtype=np.uint32)
        if np.any(where[1:] < where[:-1]):  # rows that were clustered
            rows = np.argsort(where, kind="stable").astype(np.uint32)
            where = where[rows]
        hashes, keyed = _sorted(numbers)
        yield Copy(add, where, rows, hashes, keyed)


def _sorted(numbers: list[tuple[Hashes, Rows] | None]) -> tuple[Hashes | None, Rows]:
    """All numbers in the order that the index has them in; None if a batch has none. Takes them."""
    found = [pair for pair in numbers if pair is not None]
    if len(found) < len(numbers):
        return None, np.empty(0, np.uint32)
    hashes = concat_hashes([hashes for hashes, _ in found])
    rows = np.concatenate([rows for _, rows in found])
    numbers.clear()
    found.clear()
    order = np.argsort(hashes.high)
    return hashes.take(order), rows[order]
