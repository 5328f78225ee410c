"""Slots: numbers for the rows of data files, by which one look tells whether a row still lives.

The key index holds one slot for each row. Rows of a file that follow each other have slots that
follow each other, so a few numbers a file lead from slot to row. Whether the row of a slot is dead
is one bit in a page, and pages without a dead row, or without a living one, take no room: an eighth
of a byte a row where deletions are spread, however many files there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

Numbers = npt.NDArray[np.uint64]

SLOT_BITS: Final = 40
SLOTS: Final = 1 << SLOT_BITS  # given away once each: 120 days of 100,000 rows a second
_PAGE_BITS: Final = 16  # slots of a page: 8 KiB of bits
_PAGE: Final = 1 << _PAGE_BITS
_PAGE_BYTES: Final = _PAGE // 8
_ALIVE: Final = 0  # the page of slots that all live, or were never given away
_DEAD: Final = 1
_NONE: Final = np.empty(0, np.uint64)
_ROW_BITS: Final = np.uint64(32)


def are_spent(taken: int) -> bool:
    """Whether so many were given away that an index has to begin anew."""
    return taken > SLOTS // 2


class Slots:
    """Extents of slots, each for rows of one file that follow each other."""

    def __init__(self) -> None:
        self.taken = 0
        self.extents = 0
        self._starts = np.empty((3, 16), np.uint64)  # first slot, file, first row of each extent
        self._of_file: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        self._page_of = np.zeros(16, np.int64)
        self._pages = np.zeros((16, _PAGE_BYTES), np.uint8)
        self._pages[_DEAD] = 0xFF
        self._free = list(range(15, _DEAD, -1))

    @property
    def nbytes(self) -> int:
        pages = (len(self._pages) - len(self._free)) * _PAGE_BYTES
        return int(24 * self.extents + self._page_of.nbytes + pages)

    def allot(self, file: int, row: int, count: int) -> int:
        """Slots for `count` rows of a file from `row` on; gives the first of them."""
        if self.extents == self._starts.shape[1]:
            self._starts = np.concatenate([self._starts, np.empty_like(self._starts)], axis=1)
        first = self.taken
        self._starts[:, self.extents] = (first, file, row)
        self.extents += 1
        self._of_file[file].append((first, row, count))
        self.taken += count
        self._make_pages()
        return first

    def _make_pages(self) -> None:
        pages = (self.taken >> _PAGE_BITS) + 1
        if pages > len(self._page_of):
            grown = np.zeros(max(pages, 2 * len(self._page_of)), np.int64)
            grown[: len(self._page_of)] = self._page_of
            self._page_of = grown

    def extents_of(self, file: int) -> list[tuple[int, int, int]]:
        """The first slot, the first row and the number of rows of each extent of a file."""
        return self._of_file.get(file, [])

    def places(self, slots: Numbers) -> Numbers:
        """Where the rows of these slots are: file << 32 | row."""
        first, file, row = self._starts[:, : self.extents]
        extent = np.searchsorted(first, slots, "right") - 1
        where: Numbers = (file[extent] << _ROW_BITS) | (slots - first[extent] + row[extent])
        return where

    def live(self, slots: Numbers) -> npt.NDArray[np.bool_]:
        """Which of these slots have a row that lives."""
        slots = slots.view(np.int64)  # which numpy takes as an index as it is
        page = self._page_of.take(slots >> _PAGE_BITS)
        if not page.any():
            return np.ones(len(slots), np.bool_)
        byte = self._pages.reshape(-1).take(page * _PAGE_BYTES + (slots >> 3 & _PAGE_BYTES - 1))
        bit = (slots & 7).astype(np.uint8)
        return (byte >> bit) & 1 == 0  # type: ignore[no-any-return]  # numpy's stubs

    def kill_rows(self, rows: Iterable[tuple[int, BitMap]]) -> None:
        """These rows of files live no longer; those without a slot never had an entry."""
        self._kill(np.concatenate([_NONE, *(self._slots(*some) for some in rows)]))

    def _slots(self, file: int, rows: BitMap) -> Numbers:
        numbers = np.frombuffer(rows.to_array(), np.uint32).astype(np.uint64)
        slots = [
            numbers[(numbers >= row) & (numbers < row + count)] - np.uint64(row) + np.uint64(first)
            for first, row, count in self.extents_of(file)
        ]
        return slots[0] if len(slots) == 1 else np.concatenate([_NONE, *slots])

    def kill_file(self, file: int) -> None:
        """No row of the file lives; it will not come back under this number."""
        for first, _, count in self._of_file.pop(file, []):
            self._kill_range(first, first + count)

    def restore(self, taken: int, extents: Iterable[tuple[int, int, int, int]]) -> None:
        """Give away slots as they were: the first slot, file, first row and length of each extent,
        in order. The slots between them had rows of files that are gone."""
        for first, file, row, count in extents:
            self._kill_range(self._skip(first), first)
            self.allot(file, row, count)
        self._kill_range(self._skip(taken), taken)

    def _skip(self, to: int) -> int:
        first, self.taken = self.taken, to
        self._make_pages()
        return first

    def _kill_range(self, first: int, end: int) -> None:
        whole = range(-(-first // _PAGE), end // _PAGE)
        if len(whole) == 0:
            edges = [(first, end)]
        else:
            edges = [(first, whole.start * _PAGE), (whole.stop * _PAGE, end)]
        for start, stop in edges:
            self._kill(np.arange(start, stop, dtype=np.uint64))
        for page in whole:
            self._bury(page)
        for page in {start >> _PAGE_BITS for start, stop in edges if stop > start}:
            if (self._pages[self._page_of[page]] == 0xFF).all():
                self._bury(page)

    def _bury(self, page: int) -> None:
        if self._page_of[page] > _DEAD:
            self._free.append(int(self._page_of[page]))
        self._page_of[page] = _DEAD

    def _kill(self, slots: Numbers) -> None:
        slots = slots.view(np.int64)
        pages = slots >> _PAGE_BITS
        for page in np.unique(pages[self._page_of[pages] == _ALIVE]).tolist():
            self._page_of[page] = self._new_page()
        bits = np.left_shift(1, slots & 7, dtype=np.uint8, casting="unsafe")
        at = self._page_of[pages] * _PAGE_BYTES + (slots >> 3 & _PAGE_BYTES - 1)
        np.bitwise_or.at(self._pages.reshape(-1), at, bits)

    def _new_page(self) -> int:
        if not self._free:
            count = len(self._pages)
            self._pages = np.concatenate([self._pages, np.zeros_like(self._pages)])
            self._free = list(range(2 * count - 1, count - 1, -1))
        page = self._free.pop()
        self._pages[page] = 0
        return page
