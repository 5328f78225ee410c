"""Where each key's row is: which live rows of which data file have it.

Sorted arrays in a few levels of geometrically growing size, as in a log-structured merge tree: a
batch is one small new level, looking up a batch costs O(batch * log rows), and merging levels is
paid for by the batches that filled them. Entries are never taken out one by one: whether a row is
alive is decided by its file's deletion vector, kept in memory, and dead entries go when levels
merge. 16 bytes a row for integer keys, 24 for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from headrace.connectors.delta.vectors import unique_id
from headrace.model.fingerprint import Hashes, Words, concat_hashes

Locations = npt.NDArray[np.uint64]  # file number << 32 | row of the file

_ROW_BITS: Final = np.uint64(32)
_ROW_MASK: Final = np.uint64(0xFFFFFFFF)
_FEW: Final = 64  # rows of one file that are looked up one by one, not through a bitmap


def locations(file: int, rows: npt.NDArray[Any]) -> Locations:
    return (np.uint64(file) << _ROW_BITS) | rows.astype(np.uint64)


def by_file(where: Locations) -> list[tuple[int, npt.NDArray[np.intp], npt.NDArray[np.uint32]]]:
    """Groups of one file each: its number, the positions in `where`, and its rows there."""
    if not len(where):
        return []
    files = where >> _ROW_BITS
    order = np.argsort(files.astype(np.uint16) if files.max() < 1 << 16 else files, kind="stable")
    numbers, starts = np.unique(files[order], return_index=True)
    rows = (where & _ROW_MASK).astype(np.uint32)
    groups = zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)
    return [(number, positions, rows[positions]) for number, positions in groups]


class LiveFiles:
    """The data files of one table version, numbered, with the rows deleted from each."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._paths: list[str] = []
        self._deleted: list[BitMap | None] = []  # None: the file is no longer in the table
        self._vectors: list[str | None] = []  # unique ids of the deletion vectors

    def add(self, path: str, descriptor: Mapping[str, Any] | None, deleted: BitMap) -> int:
        """Number a file, or note another vector of one that has a number."""
        number = self._numbers.setdefault(path, len(self._paths))
        if number == len(self._paths):
            self._paths.append(path)
            self._deleted.append(deleted)
            self._vectors.append(unique_id(descriptor))
        self._deleted[number] = deleted
        self._vectors[number] = unique_id(descriptor)
        return number

    def drop(self, path: str) -> None:
        number = self._numbers.pop(path)
        self._deleted[number] = self._vectors[number] = None
        self._paths[number] = ""

    @property
    def numbered(self) -> int:
        """Files that ever got a number."""
        return len(self._paths)

    def path(self, number: int) -> str:
        return self._paths[number]

    def number(self, path: str) -> int:
        return self._numbers[path]

    def deleted(self, number: int) -> BitMap:
        return self._deleted[number] or BitMap()

    def sync(
        self,
        files: Mapping[str, Mapping[str, Any]],
        read: Callable[[Mapping[str, Any] | None], BitMap],
    ) -> list[str]:
        """Follow the table's files to another version; returns the paths not seen before."""
        for path in self._numbers.keys() - files.keys():
            self.drop(path)
        fresh = [path for path in files if path not in self._numbers]
        for path, add in files.items():
            descriptor = add.get("deletionVector")
            number = self._numbers.get(path)
            if number is None or self._vectors[number] != unique_id(descriptor):
                self.add(path, descriptor, read(descriptor))
        return fresh

    def live(self, where: Locations) -> npt.NDArray[np.bool_]:
        """Which of these rows are in the table."""
        alive = np.ones(len(where), np.bool_)
        for number, positions, rows in by_file(where):
            deleted = self._deleted[number]
            if deleted is None:
                alive[positions] = False
            elif deleted:
                alive[positions] = ~_members(rows, deleted)
        return alive


def _members(rows: npt.NDArray[np.uint32], deleted: BitMap) -> npt.NDArray[np.bool_]:
    if len(rows) <= _FEW:
        return np.fromiter((row in deleted for row in rows.tolist()), np.bool_, len(rows))
    hits = BitMap(np.ascontiguousarray(rows)) & deleted
    return np.isin(rows, np.frombuffer(hits.to_array(), np.uint32))


@dataclass(frozen=True)
class _Level:
    """Entries sorted by the high number."""

    hashes: Hashes
    where: Locations

    def __len__(self) -> int:
        return len(self.where)

    @property
    def nbytes(self) -> int:
        low = self.hashes.low
        return int(self.hashes.high.nbytes + self.where.nbytes + (0 if low is None else low.nbytes))


class KeyIndex:
    """From the numbers of keys to the places of their live rows."""

    def __init__(self, files: LiveFiles) -> None:
        self._files = files
        self._levels: list[_Level] = []  # from the biggest and oldest to the smallest and newest

    @property
    def nbytes(self) -> int:
        return sum(level.nbytes for level in self._levels)

    @property
    def entries(self) -> int:
        return sum(map(len, self._levels))

    def add(self, parts: Iterable[tuple[Hashes, Locations]]) -> None:
        """Take in rows, such as those of new files."""
        filled = [(hashes, where) for hashes, where in parts if len(where)]
        if not filled:
            return
        hashes = concat_hashes([hashes for hashes, _ in filled])
        self._levels.append(_sorted(hashes, np.concatenate([where for _, where in filled])))
        while len(self._levels) > 1 and len(self._levels[-2]) < 2 * len(self._levels[-1]):
            newer, older = self._levels.pop(), self._levels.pop()
            merged = _merged(self._alive(older), self._alive(newer))
            if len(merged):
                self._levels.append(merged)

    def _alive(self, level: _Level) -> _Level:
        alive = self._files.live(level.where)
        if alive.all():
            return level
        return _Level(level.hashes.take(alive), level.where[alive])

    def find(self, wanted: Hashes) -> tuple[npt.NDArray[np.intp], Locations]:
        """The live rows under each of `wanted`, in no particular order.

        Returns:
            Positions in `wanted`, and for each the place of one row.
        """
        order = np.argsort(wanted.high)  # neighbours share cache lines
        in_order = wanted.take(order)
        found = [_find(level, in_order) for level in self._levels]
        which = np.concatenate([np.empty(0, np.intp), *(order[asked] for asked, _ in found)])
        where = np.concatenate([np.empty(0, np.uint64), *(where for _, where in found)])
        alive = self._files.live(where)
        return which[alive], where[alive]


def _sorted(hashes: Hashes, where: Locations) -> _Level:
    if np.all(hashes.high[:-1] <= hashes.high[1:]):
        return _Level(hashes, where)
    order = np.argsort(hashes.high)
    return _Level(hashes.take(order), where[order])


def _merged(big: _Level, small: _Level) -> _Level:
    total = len(big) + len(small)
    after = np.searchsorted(big.hashes.high, small.hashes.high, "right") + np.arange(len(small))
    from_big = np.ones(total, np.bool_)
    from_big[after] = False

    def woven(one: Words, other: Words) -> Words:
        out = np.empty(total, np.uint64)
        out[from_big], out[after] = one, other
        return out

    low = None
    if big.hashes.low is not None and small.hashes.low is not None:
        low = woven(big.hashes.low, small.hashes.low)
    return _Level(
        Hashes(woven(big.hashes.high, small.hashes.high), low), woven(big.where, small.where)
    )


def _find(level: _Level, wanted: Hashes) -> tuple[npt.NDArray[np.intp], Locations]:
    """All entries, dead or alive, under the sorted `wanted`."""
    first = np.searchsorted(level.hashes.high, wanted.high, "left")
    asked = np.flatnonzero(level.hashes.high[np.minimum(first, len(level) - 1)] == wanted.high)
    asked = asked[first[asked] < len(level)]
    first = first[asked]
    counts = np.searchsorted(level.hashes.high, wanted.high[asked], "right") - first
    spread = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    entries = (spread + np.arange(counts.sum())).astype(np.intp)
    asked = np.repeat(asked, counts)
    if level.hashes.low is not None and wanted.low is not None:
        same = level.hashes.low[entries] == wanted.low[asked]
        asked, entries = asked[same], entries[same]
    return asked, level.where[entries]
