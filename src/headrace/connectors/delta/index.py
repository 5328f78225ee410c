"""Where each key's row is: which live rows of which data file have it.

An entry is 16 bytes: 64 bits of the key's number, then 24 more bits of it and the row's slot. For
integer keys that is exact. For others it is 88 bits of a fingerprint under a secret seed: that two
of a billion rows share them has a chance of 10**-9. To confirm each find by the key itself would
mean to decode a page of Parquet for each of 1,000 random rows, some 100 times the rest of a batch.

Entries stand in tiers (see `leaves`) of which each is 16 times smaller than the one before. A batch
goes to the smallest, whose excess goes on to the next, a bounded stretch of keys at a time: no
batch pays for more than some hundred entries moved for each of its own. Rows that come by the
million, as those do that a compaction has moved, wait in a tier of their own to go on so. Whether a
row lives is told by its slot, and dead entries go wherever a merge comes past, or a sweep for each
that died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from headrace.connectors.delta.index_file import FileEntry, TierColumns
from headrace.connectors.delta.leaves import LEAF, Pool, Tier, in_order, merged
from headrace.connectors.delta.slots import SLOT_BITS, Slots
from headrace.connectors.delta.vectors import unique_id
from headrace.model.fingerprint import Hashes, Words
from headrace.model.lake import INDEX_MEMORY

Locations = npt.NDArray[np.uint64]  # file number << 32 | row of the file
Part = tuple[Hashes, Locations]  # of rows of one file

_ROW_BITS: Final = np.uint64(32)
_ROW_MASK: Final = np.uint64(0xFFFFFFFF)
_FEW: Final = 64  # rows of one file that are looked up one by one, not through a bitmap
_TAG_SHIFT: Final = np.uint64(SLOT_BITS)
_SLOT_MASK: Final = np.uint64((1 << SLOT_BITS) - 1)

FANOUT: Final = 16  # dead entries are at most a sixteenth, and a step down moves 17 for one
SMALLEST: Final = 1 << 16  # entries of the smallest tier, which every batch rewrites: 1 ms
MOVES: Final = 128  # entries moved at most for one that came: three steps down take 51
MOVES_AT_LEAST: Final = 1 << 16
MANY: Final = 1 << 17  # entries that come together and do not wait
LONGEST_WAIT: Final = 16  # tiers that wait; each is searched by every batch
RUN: Final = 1 << 20  # entries sorted at once where many are taken in: 50 MB at work


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
        self.slots = Slots()
        self.deaths = 0  # rows deleted from files that stay, since this was last set to zero
        self._numbers: dict[str, int] = {}
        self._paths: list[str] = []
        self._deleted: list[BitMap | None] = []  # None: the file is no longer in the table
        self._vectors: list[str | None] = []  # unique ids of the deletion vectors

    def add(self, path: str, descriptor: Mapping[str, Any] | None, deleted: BitMap) -> int:
        """Number a file that has no number."""
        number = self._numbers[path] = len(self._paths)
        self._paths.append(path)
        self._deleted.append(deleted)
        self._vectors.append(unique_id(descriptor))
        return number

    def delete(self, vectors: Iterable[tuple[str, Mapping[str, Any] | None, BitMap]]) -> None:
        """Note other vectors of files: all rows deleted from each."""
        dead = []
        for path, descriptor, deleted in vectors:
            number = self._numbers[path]
            dead.append((number, deleted - self.deleted(number)))
            self._deleted[number] = deleted
            self._vectors[number] = unique_id(descriptor)
        self.slots.kill_rows(dead)
        self.deaths += sum(len(rows) for _, rows in dead)

    def entries(self) -> list[FileEntry]:
        """The files in the table, to be saved."""
        return [
            FileEntry(path, self._vectors[n], self.deleted(n), list(self.slots.extents_of(n)))
            for path, n in self._numbers.items()
        ]

    @classmethod
    def of(cls, entries: Sequence[FileEntry], taken: int) -> LiveFiles:
        """As they were when they were saved, with other numbers."""
        files = cls()
        files._numbers = {entry.path: number for number, entry in enumerate(entries)}
        files._paths = [entry.path for entry in entries]
        files._deleted = [entry.deleted for entry in entries]
        files._vectors = [entry.vector for entry in entries]
        numbered = enumerate(entries)
        extents = ((s, n, row, count) for n, entry in numbered for s, row, count in entry.extents)
        files.slots.restore(taken, sorted(extents))
        files.slots.kill_rows((number, entry.deleted) for number, entry in enumerate(entries))
        return files

    def drop(self, path: str) -> None:
        number = self._numbers.pop(path)
        self._deleted[number] = self._vectors[number] = None
        self._paths[number] = ""
        self.slots.kill_file(number)

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
        read: Callable[[Sequence[Mapping[str, Any] | None]], Iterable[BitMap]],
    ) -> list[str]:
        """Follow the table's files to another version; returns the paths to be indexed.

        These are files not seen before, and files of which rows came back to life, as RESTORE does.
        """
        for path in self._numbers.keys() - files.keys():
            self.drop(path)
        others = [add for path, add in files.items() if not self._knows(path, add)]
        fresh, changed = [], []
        descriptors = [add.get("deletionVector") for add in others]
        for add, descriptor, deleted in zip(others, descriptors, read(descriptors), strict=True):
            path = add["path"]
            number = self._numbers.get(path)
            if number is not None and self.deleted(number) <= deleted:
                changed.append((path, descriptor, deleted))
                continue
            if number is not None:
                self.drop(path)
            self.add(path, descriptor, deleted)
            fresh.append(path)
        self.delete(changed)
        return fresh

    def _knows(self, path: str, add: Mapping[str, Any]) -> bool:
        number = self._numbers.get(path)
        vector = unique_id(add.get("deletionVector"))
        return number is not None and self._vectors[number] == vector

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

    def allot(self, where: Locations) -> npt.NDArray[np.uint64]:
        """Slots for rows of one file, those between them included."""
        first, last = int(where.min()), int(where.max())
        number, row = first >> 32, first & int(_ROW_MASK)
        slot = self.slots.allot(number, row, last - first + 1)
        deleted = self._deleted[number]
        if deleted:
            inside = deleted & BitMap(range(row, row + last - first + 1))
            self.slots.kill_rows([(number, inside)])
        return where - np.uint64(first) + np.uint64(slot)


def _members(rows: npt.NDArray[np.uint32], deleted: BitMap) -> npt.NDArray[np.bool_]:
    if len(rows) <= _FEW:
        return np.fromiter((row in deleted for row in rows.tolist()), np.bool_, len(rows))
    hits = BitMap(np.ascontiguousarray(rows)) & deleted
    return np.isin(rows, np.frombuffer(hits.to_array(), np.uint32))


class KeyIndex:
    """From the numbers of keys to the places of their live rows, in leaves of `pool`."""

    def __init__(
        self,
        files: LiveFiles,
        pool: Pool | None = None,
        tiers: Sequence[TierColumns] = (),
        waiting: Sequence[TierColumns] = (),
    ) -> None:
        self._files = files
        self.pool = pool or Pool(INDEX_MEMORY)
        self.tiers = [Tier(self.pool, *columns) for columns in tiers]  # from the biggest on
        if not tiers:
            self.tiers = [Tier(self.pool)]
        self.waiting = [Tier(self.pool, *columns) for columns in waiting]

    @property
    def nbytes(self) -> int:
        """Of what is in memory or mapped."""
        directories = sum(tier.nbytes for tier in [*self.tiers, *self.waiting])
        return self.pool.nbytes + directories + self._files.slots.nbytes

    @property
    def entries(self) -> int:
        return sum(map(len, [*self.tiers, *self.waiting]))

    # -- finding -----------------------------------------------------------------------------------

    def find(self, wanted: Hashes) -> tuple[npt.NDArray[np.intp], Locations]:
        """The live rows under each of `wanted`, in no particular order.

        Returns:
            Positions in `wanted`, and for each the place of one row.
        """
        order = np.argsort(wanted.high)  # neighbours share cache lines
        keys = wanted.high[order]
        found = [tier.find(keys) for tier in [*self.tiers, *self.waiting]]
        which = order[np.concatenate([asked for asked, _ in found])]
        rest = np.concatenate([rest for _, rest in found])
        alive = self._alive(rest)
        if wanted.low is not None:
            alive &= (rest >> _TAG_SHIFT) == (wanted.low[which] >> _TAG_SHIFT)
        which, rest = which[alive], rest[alive]
        return which, self._files.slots.places(rest & _SLOT_MASK)

    def _alive(self, rest: Words) -> npt.NDArray[np.bool_]:
        return self._files.slots.live(rest & _SLOT_MASK)

    # -- changing ----------------------------------------------------------------------------------

    def add(self, parts: Iterable[Part]) -> None:
        """Take in rows of files, and settle what died since; costs by the rows.

        Raises:
            OSError: there is no room for them.
        """
        added = 0
        for keys, rest in _runs(self._entries(*part) for part in parts if len(part[1])):
            if len(keys) > MANY:
                self.waiting.append(Tier(self.pool, *self.pool.store(keys, rest)))
                continue
            self._tier_for(len(keys)).absorb(keys, rest, self._alive)
            added += len(keys)
        self._settle(added)

    def add_many(self, parts: Iterable[Part], expected: int) -> None:
        """Take in rows, about `expected` and not much fewer than the index has: in runs, which are
        merged in the end.

        Raises:
            OSError: there is no room for them.
        """
        self.pool.reserve((self.entries + expected) // LEAF)
        runs = [*self.tiers, *self.waiting]
        for keys, rest in _runs(self._entries(*part) for part in parts if len(part[1])):
            runs.append(Tier(self.pool, *self.pool.store(keys, rest)))
        self.tiers = [merged(self.pool, runs, self._alive if self.entries else None)]
        self.waiting = []
        self._settle(0)

    def _entries(self, hashes: Hashes, where: Locations) -> tuple[Words, Words]:
        slots = self._files.allot(where)
        if hashes.low is None:
            return hashes.high, slots
        return hashes.high, (hashes.low & ~_SLOT_MASK) | slots

    def _tier_for(self, count: int) -> Tier:
        """The smallest that may hold so many."""
        for at in range(len(self.tiers) - 1, 0, -1):
            if count <= self._room(at):
                return self.tiers[at]
        return self.tiers[0]

    def _room(self, at: int) -> int:
        """Entries that a tier may hold: a sixteenth of those that the one before may."""
        return max(len(self.tiers[0]) // int(FANOUT**at), LEAF)

    def _settle(self, added: int) -> None:
        """Bounded work for the rows that came, and for those that died."""
        while self._room(len(self.tiers) - 1) > SMALLEST:
            self.tiers.insert(1, Tier(self.pool))
        left = MOVES * added + MOVES_AT_LEAST
        for at in range(len(self.tiers) - 1, 0, -1):
            while (excess := len(self.tiers[at]) - self._room(at)) > 0 and left > 0:
                keys, rest = self.tiers[at].take(min(max(excess, LEAF), 8 * LEAF))
                left -= self.tiers[at - 1].absorb(keys, rest, self._alive)
        while self.waiting and (left > 0 or len(self.waiting) > LONGEST_WAIT):
            keys, rest = self.waiting[0].take(8 * LEAF)
            left -= self._tier_for(len(self.waiting[0])).absorb(keys, rest, self._alive)
            if not len(self.waiting[0]):
                del self.waiting[0]
        sweep, self._files.deaths = FANOUT * self._files.deaths, 0
        while sweep > 0 and len(self.tiers[0]):
            sweep -= max(self.tiers[0].refresh(sweep, self._alive), LEAF)


def _sorted(keys: Words, rest: Words) -> tuple[Words, Words]:
    if np.all(keys[:-1] <= keys[1:]):
        return keys, rest
    return in_order(keys, rest)


def _runs(parts: Iterable[tuple[Words, Words]]) -> Iterable[tuple[Words, Words]]:
    """Sorted entries, some million at a time."""
    held: list[tuple[Words, Words]] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part[0])
        if count >= RUN:
            yield _sorted(*(np.concatenate(words) for words in zip(*held, strict=True)))
            held, count = [], 0
    if held:
        yield _sorted(*(np.concatenate(words) for words in zip(*held, strict=True)))
