"""Sorted entries in leaves of a fixed size: a tier of the key index, searched in whole batches.

An entry is two words: the high number of a key, by which entries are sorted, and a word for the
rest. A tier is a directory (the first key, the place and the length of each leaf) over a pool of
leaves, which stands in memory or in a mapped file. A leaf is never changed: what is merged into it
makes new leaves, and its place is free again as soon as no saved directory names it. So a merge
costs by the leaves that it touches, never by the tier, and a file that was saved stays true.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Alive = Callable[[Words], npt.NDArray[np.bool_]]  # by the words beside the keys

LEAF: Final = 2048  # entries; 32 KiB: a merge of 1 in 16 moves few hundred KiB for each
LEAF_BYTES: Final = 16 * LEAF
_AT_ONCE: Final = 64  # leaves that one step of a merge holds in memory
_GROWTH: Final = 256  # leaves; a file grows by at least 8 MiB
_READ: Final = 64 << 20  # bytes
_LAST: Final = np.uint64(0xFFFFFFFFFFFFFFFF)
_NO_RESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)


class Pool:
    """Leaves, in memory up to `memory` bytes, beyond in a file that is mapped.

    `path` is where the file is to be; without one it is a temporary file without a name. What is
    in memory is written there too when it is to last.
    """

    def __init__(self, memory: int, path: Path | None = None) -> None:
        self.path = path
        self._limit = memory // LEAF_BYTES
        self.is_mapped = False
        self._file: int | None = None  # its descriptor, once it is mapped
        self._used = 0
        self._free: list[int] = []
        self._pinned: frozenset[int] = frozenset()  # leaves that a saved directory names
        self._resting: list[int] = []  # free, but for that
        self._array = np.empty((0, 2, LEAF), np.uint64)
        self.changed: set[int] = set()  # since these were last taken

    @property
    def nbytes(self) -> int:
        """Of leaves in use."""
        return (self._used - len(self._free) - len(self._resting)) * LEAF_BYTES

    @property
    def array(self) -> Words:
        """By leaf: its keys, and the words beside them."""
        return self._array

    def reserve(self, leaves: int) -> None:
        """Go to a file at once, where so many leaves will need one. Raises OSError."""
        if leaves > max(self._limit, len(self._array)):
            self._grow(leaves)

    def store(self, keys: Words, rest: Words) -> tuple[Words, Places, Places]:
        """Cut sorted entries into leaves; gives their first keys, their places and lengths."""
        full, over = divmod(len(keys), LEAF)
        count = full + (over > 0)
        places = self._places(count)
        for at, words in enumerate((keys, rest)):
            if full:
                self._array[places[:full], at] = words[: full * LEAF].reshape(full, LEAF)
            if over:
                self._array[places[-1], at, :over] = words[full * LEAF :]
                self._array[places[-1], at, over:] = _LAST
        lengths = np.full(count, LEAF, np.int64)
        if over:
            lengths[-1] = over
        return keys[::LEAF].copy(), places, lengths

    def load(self, places: Places, lengths: Places) -> tuple[Words, Words]:
        """The entries of leaves, one after the other."""
        leaves = self._array[places]
        if (lengths == LEAF).all():
            return leaves[:, 0].reshape(-1), leaves[:, 1].reshape(-1)
        inside = np.arange(LEAF) < lengths[:, None]
        return leaves[:, 0][inside], leaves[:, 1][inside]

    def release(self, places: Places) -> None:
        gone = places.tolist()
        self.changed.difference_update(gone)
        if not self._pinned:
            self._free += gone
            return
        for place in gone:
            (self._resting if place in self._pinned else self._free).append(place)

    def pin(self, places: frozenset[int]) -> None:
        """These leaves stay as they are, even when released, until others are pinned."""
        self._pinned = places
        resting, self._resting = self._resting, []
        self.release(np.array(resting, np.int64))

    def restore(self, places: frozenset[int]) -> None:
        """Take these leaves from the file. Raises OSError, ValueError: it does not have them."""
        used = max(places, default=-1) + 1
        with self._opened(os.O_RDWR) as file:
            if os.fstat(file).st_size < used * LEAF_BYTES:
                raise ValueError("leaves are missing")
            if used > self._limit:
                self._map(used)
            else:
                self._array = _mapped(_reserved(self._limit * LEAF_BYTES), self._limit)
                _read(file, self._array[:used])
        self._used = used
        self._free = [place for place in range(used) if place not in places]

    def write(self, changed: Iterable[int]) -> None:
        """Make leaves durable in the file, which may lack the `changed` ones unless it is mapped.

        May be called from another thread, for leaves that are pinned. Raises OSError.
        """
        array = self._array
        with self._opened(os.O_RDWR | os.O_CREAT) as file:
            if not self.is_mapped:
                for place in sorted(changed):
                    _write(file, array[place], place * LEAF_BYTES)
            os.fsync(file)

    def checksums(self, places: Places) -> Words:
        """CRC-32 of each of these leaves."""
        array = self._array
        return np.fromiter((zlib.crc32(array[place]) for place in places), np.uint64, len(places))

    def _places(self, count: int) -> Places:
        short = count - len(self._free)
        if short > 0:
            if self._used + short > len(self._array):
                self._grow(self._used + short)
            self._free += range(self._used + short - 1, self._used - 1, -1)
            self._used += short
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        self.changed.update(taken)
        return np.array(taken[::-1], np.int64)

    def _grow(self, leaves: int) -> None:
        """Raises OSError: there is no room."""
        if not self.is_mapped and leaves <= self._limit:
            self._array = _mapped(_reserved(self._limit * LEAF_BYTES), self._limit)
            return
        before, mapped = self._array[: self._used], self.is_mapped
        self._map(max(leaves + _GROWTH, leaves * 9 // 8))
        if not mapped:
            self._array[: len(before)] = before  # once in a table's life: 1 GiB takes half a second

    def _map(self, leaves: int) -> None:
        file = self._kept_open()
        _allocate(file, leaves * LEAF_BYTES)
        self._array = _mapped(mmap.mmap(file, leaves * LEAF_BYTES), leaves)
        self.is_mapped = True

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        """The file's descriptor, for the length of the block unless it is mapped: a process may
        have thousands of small pools, and often no more than 1,024 descriptors."""
        if self.is_mapped:
            yield self._kept_open()
            return
        assert self.path is not None
        file = os.open(self.path, flags, 0o600)
        try:
            yield file
        finally:
            os.close(file)

    def _kept_open(self) -> int:
        """The descriptor of the file that is mapped, or is to be."""
        if self._file is None:
            if self.path is None:
                with tempfile.TemporaryFile() as temporary:
                    self._file = os.dup(temporary.fileno())
            else:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            weakref.finalize(self, os.close, self._file)
        return self._file


def _read(file: int, into: Words) -> None:
    view, at = into.data.cast("B"), 0
    while at < len(view):
        count = os.preadv(file, [view[at : at + _READ]], at)
        if not count:
            raise ValueError("leaves are missing")
        at += count


def _write(file: int, leaf: Words, at: int) -> None:
    view = leaf.data.cast("B")
    while len(view):
        count = os.pwrite(file, view, at)
        view, at = view[count:], at + count


def _reserved(size: int) -> mmap.mmap:
    """Memory that takes no room until it is touched."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)


def _mapped(memory: mmap.mmap, leaves: int) -> Words:
    return np.frombuffer(memory, np.uint64, leaves * 2 * LEAF).reshape(leaves, 2, LEAF)


def _allocate(file: int, size: int) -> None:
    """Room on the disk now: a mapped page that finds none later would end the process."""
    with contextlib.suppress(AttributeError):  # not on every system
        os.posix_fallocate(file, 0, size)
        return
    os.ftruncate(file, size)


class Tier:
    """Entries sorted by their keys."""

    def __init__(
        self,
        pool: Pool,
        firsts: Words | None = None,
        places: Places | None = None,
        lengths: Places | None = None,
    ) -> None:
        self._pool = pool
        self.firsts = np.empty(0, np.uint64) if firsts is None else firsts
        self.places = np.empty(0, np.int64) if places is None else places
        self.lengths = np.empty(0, np.int64) if lengths is None else lengths
        self._cursor = np.uint64(0)  # where the next entries are taken from, as a key
        self._starts = np.empty(0, np.int64)
        self._count()

    def _count(self) -> None:
        """How many entries come before each leaf, and how many there are."""
        ends = np.cumsum(self.lengths)
        self._starts, self._size = ends - self.lengths, int(ends[-1]) if len(ends) else 0

    def __len__(self) -> int:
        return self._size

    @property
    def columns(self) -> tuple[Words, Places, Places]:
        return self.firsts, self.places, self.lengths

    @property
    def nbytes(self) -> int:
        """Of the directory."""
        return 32 * len(self.firsts)

    # -- searching ---------------------------------------------------------------------------------

    def find(self, wanted: Words) -> tuple[npt.NDArray[np.intp], Words]:
        """All entries under the sorted `wanted`: positions there, and the words beside the keys."""
        if not len(self):
            return np.empty(0, np.intp), np.empty(0, np.uint64)
        low = self._bound(wanted, "left")
        keys, _ = self._at(np.minimum(low, len(self) - 1))
        asked = np.flatnonzero((low < len(self)) & (keys == wanted))
        low = low[asked]
        counts = self._bound(wanted[asked], "right") - low
        spread = np.repeat(low - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        _, rest = self._at((spread + np.arange(counts.sum())).astype(np.int64))
        return np.repeat(asked, counts), rest

    def _at(self, ranks: Places) -> tuple[Words, Words]:
        leaf = np.searchsorted(self._starts, ranks, "right") - 1
        place, inside = self.places[leaf], ranks - self._starts[leaf]
        return self._pool.array[place, 0, inside], self._pool.array[place, 1, inside]

    def _bound(self, wanted: Words, side: str) -> Places:
        """How many entries are before each of `wanted`; with "right", also those that equal it."""
        leaf = np.searchsorted(self.firsts, wanted, "left" if side == "left" else "right") - 1
        leaf = np.maximum(leaf, 0)
        array, place = self._pool.array, self.places[leaf]
        before = np.less if side == "left" else np.less_equal
        inside = np.zeros(len(wanted), np.int64)
        step = LEAF // 2
        while step:
            inside += step * before(array[place, 0, inside + (step - 1)], wanted)
            step //= 2
        inside += before(array[place, 0, inside], wanted)
        return self._starts[leaf] + np.minimum(inside, self.lengths[leaf])

    # -- changing ----------------------------------------------------------------------------------

    def absorb(self, keys: Words, rest: Words, alive: Alive) -> int:
        """Take in sorted entries, and let go of the dead ones that stand in their way; gives how
        many entries were moved."""
        if not len(self):
            keys, rest = _living(keys, rest, alive)
            self._replace([(0, 0, self._pool.store(keys, rest))])
            return len(keys)
        leaf = np.maximum(np.searchsorted(self.firsts, keys, "right") - 1, 0)
        moved, changes = 0, []
        for first, last, start, end in _stretches(leaf):
            places, lengths = self.places[first:last], self.lengths[first:last]
            old = self._pool.load(places, lengths)
            self._pool.release(places)
            woven = _woven(old, (keys[start:end], rest[start:end]))
            changes.append((first, last, self._pool.store(*_living(*woven, alive))))
            moved += len(woven[0])
        self._replace(changes)
        return moved

    def refresh(self, entries: int, alive: Alive) -> int:
        """Let go of the dead among about so many entries, going round; gives how many it looked at.

        Its leaves are merged with each other, too.
        """
        first = int(np.searchsorted(self.firsts, self._cursor, "left"))
        last = first + min(-(-entries // LEAF), _AT_ONCE)
        places, lengths = self.places[first:last], self.lengths[first:last]
        self._cursor = self.firsts[last] if last < len(self.firsts) else np.uint64(0)
        if len(places):
            keys, rest = _living(*self._pool.load(places, lengths), alive)
            self._pool.release(places)
            self._replace([(first, first + len(places), self._pool.store(keys, rest))])
        return int(lengths.sum())

    def take(self, entries: int) -> tuple[Words, Words]:
        """Take about so many entries out, going round."""
        first = int(np.searchsorted(self.firsts, self._cursor, "left"))
        if first == len(self.firsts):
            first = 0
        last = first + -(-entries // LEAF)
        found = self._pool.load(self.places[first:last], self.lengths[first:last])
        self._pool.release(self.places[first:last])
        self._cursor = self.firsts[last] if last < len(self.firsts) else np.uint64(0)
        nothing = (np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))
        self._replace([(first, min(last, len(self.firsts)), nothing)])
        return found

    def _replace(self, changes: Sequence[tuple[int, int, tuple[Words, Places, Places]]]) -> None:
        """Other leaves in the place of some, which are free already; in order."""
        for at, name in enumerate(("firsts", "places", "lengths")):
            column, parts, end = getattr(self, name), [], 0
            for first, last, new in changes:
                parts += [column[end:first], new[at]]
                end = last
            setattr(self, name, np.concatenate([*parts, column[end:]]))
        self._count()


def in_order(keys: Words, rest: Words) -> tuple[Words, Words]:
    """Entries sorted by their keys, in half the time of `np.argsort`.

    Positions are sorted in the low bits of keys, in place of bits by which two keys differ only if
    they have all others in common: by rare chance.
    """
    low = np.uint64((1 << max(len(keys) - 1, 0).bit_length()) - 1)
    packed = (keys & ~low) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    order = (packed & low).view(np.int64)
    ordered = keys.take(order)
    if not np.all(ordered[:-1] <= ordered[1:]):
        order = np.argsort(keys)
        ordered = keys.take(order)
    return ordered, rest.take(order)


def _living(keys: Words, rest: Words, alive: Alive) -> tuple[Words, Words]:
    living = alive(rest)
    return (keys, rest) if living.all() else (keys[living], rest[living])


def _woven(big: tuple[Words, Words], small: tuple[Words, Words]) -> tuple[Words, Words]:
    """Two sorted lists of entries as one."""
    total = len(big[0]) + len(small[0])
    after = np.searchsorted(big[0], small[0], "right") + np.arange(len(small[0]))
    from_big = np.ones(total, np.bool_)
    from_big[after] = False
    out = np.empty((2, total), np.uint64)
    for at in (0, 1):
        out[at, from_big], out[at, after] = big[at], small[at]
    return out[0], out[1]


def _stretches(leaf: npt.NDArray[np.intp]) -> Iterator[tuple[int, int, int, int]]:
    """Leaves to be merged together, first and last + 1, and which of the new entries go there.

    `leaf` tells for each new entry, in order, where it goes. Leaves that nearly touch are taken
    together, so that they end up full.
    """
    start = 0
    while start < len(leaf):
        first = int(leaf[start])
        end = int(np.searchsorted(leaf, first + _AT_ONCE, "left"))
        end = min(end, start + _AT_ONCE * LEAF)
        gaps = np.flatnonzero(np.diff(leaf[start:end]) > 2)
        if len(gaps):
            end = start + int(gaps[0]) + 1
        last = int(leaf[end - 1]) + 1
        if end < len(leaf) and leaf[end] < last:  # the same leaf's entries stay together
            end = int(np.searchsorted(leaf, last, "left"))
        yield first, last, start, end
        start = end


# -- many tiers into one ---------------------------------------------------------------------------


class _Reader:
    """A tier's entries in order; leaves are free as soon as they are read."""

    def __init__(self, pool: Pool, tier: Tier) -> None:
        self._pool, self._tier, self._leaf = pool, tier, 0
        self._keys = self._rest = np.empty(0, np.uint64)

    def until(self, end: np.uint64 | None) -> tuple[Words, Words]:
        """The entries before `end` that have not been read."""
        tier, first = self._tier, self._leaf
        count = len(tier.firsts)
        last = count if end is None else int(np.searchsorted(tier.firsts, end, "left"))
        if last > first:
            places, self._leaf = tier.places[first:last], last
            keys, rest = self._pool.load(places, tier.lengths[first:last])
            self._pool.release(places)
            self._keys = np.concatenate([self._keys, keys])
            self._rest = np.concatenate([self._rest, rest])
        at = len(self._keys) if end is None else int(np.searchsorted(self._keys, end, "left"))
        found = self._keys[:at], self._rest[:at]
        self._keys, self._rest = self._keys[at:], self._rest[at:]
        return found


def merged(pool: Pool, tiers: Sequence[Tier], alive: Alive | None) -> Tier:
    """One tier of several, a stretch of keys at a time; the room of what was read is used again.

    Without `alive` all entries live. Tiers of which each ends before another begins are not read.
    """
    tiers = [tier for tier in tiers if len(tier)]
    if alive is None and _are_apart(pool, tiers):
        return _joined(pool, tiers)
    starts = np.sort(np.concatenate([np.empty(0, np.uint64), *(tier.firsts for tier in tiers)]))
    ends: list[np.uint64 | None] = [*np.unique(starts[2 * _AT_ONCE :: 2 * _AT_ONCE]), None]
    readers = [_Reader(pool, tier) for tier in tiers]
    out: list[tuple[Words, Places, Places]] = []
    keys = rest = np.empty(0, np.uint64)
    for end in ends:
        found = [part for reader in readers if len((part := reader.until(end))[0])]
        more = np.concatenate([np.empty(0, np.uint64), *(part[0] for part in found)])
        more_rest = np.concatenate([np.empty(0, np.uint64), *(part[1] for part in found)])
        more, more_rest = in_order(more, more_rest)
        if alive is not None:
            more, more_rest = _living(more, more_rest, alive)
        keys, rest = np.concatenate([keys, more]), np.concatenate([rest, more_rest])
        full = len(keys) if end is None else len(keys) // LEAF * LEAF
        out.append(pool.store(keys[:full], rest[:full]))
        keys, rest = keys[full:], rest[full:]
    firsts, places, lengths = (np.concatenate(column) for column in zip(*out, strict=True))
    return Tier(pool, firsts, places, lengths)


def _are_apart(pool: Pool, tiers: Sequence[Tier]) -> bool:
    ordered = sorted(tiers, key=lambda tier: tier.firsts[0])
    ends = [pool.array[tier.places[-1], 0, tier.lengths[-1] - 1] for tier in ordered]
    return all(end <= tier.firsts[0] for end, tier in zip(ends, ordered[1:], strict=False))


def _joined(pool: Pool, tiers: Sequence[Tier]) -> Tier:
    ordered = sorted(tiers, key=lambda tier: tier.firsts[0])
    if not ordered:
        return Tier(pool)
    columns = zip(*((t.firsts, t.places, t.lengths) for t in ordered), strict=True)
    firsts, places, lengths = (np.concatenate(column) for column in columns)
    return Tier(pool, firsts, places, lengths)
