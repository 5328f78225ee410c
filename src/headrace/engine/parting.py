"""Changes that memory does not hold together, in parts that it holds.

A part is collapsed and applied by itself, onto what those before it came to; the destination
commits them as one (`DestinationTable.apply`). So a part may end between any two changes, even
inside a transaction; where versions are kept (mode scd2) it ends with one, for what a transaction
leaves under a key is one version, whatever came in between. A transaction that is larger than a
part is divided by its keys there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Final

import pyarrow as pa

from headrace.engine.shares import Shares
from headrace.engine.versions import between, lsns_of
from headrace.log import LogFile
from headrace.model import ChangeBatch, Lsn, NetChanges, RowCounts

# Of Arrow, before it is collapsed: that takes as much again, and what a destination makes of it.
PART_ROWS: Final = 1 << 17
PART_BYTES: Final = 32 << 20

# Of files as they are stored; lz4 makes at most 255 bytes of each.
READ_BYTES: Final = 1 << 18

# So much is no part, but a whole: what is collapsed at once comes to less for its destination.
WHOLE_BYTES: Final = 128 << 20


class Parts:
    """Net changes part by part, made anew each time that they are asked for.

    `rows` and `counts` tell of those made since: the source's changes, and what they came to.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[ChangeBatch]],
        net: Callable[[Sequence[ChangeBatch]], NetChanges],
        *,
        whole_transactions: bool,
    ) -> None:
        self._read, self._net, self._whole = read, net, whole_transactions
        self._made: Generator[NetChanges] | None = None
        self.rows = 0
        self.counts = RowCounts()
        self.is_empty = True

    def __iter__(self) -> Iterator[NetChanges]:
        self.close()
        self.rows, self.counts, self.is_empty = 0, RowCounts(), True
        self._made = self._make()
        return self._made

    def close(self) -> None:
        """Let go of what making them holds, where somebody stopped asking half-way."""
        if self._made is not None:
            self._made.close()

    def _make(self) -> Generator[NetChanges]:
        for batches in cut(self._read(), whole_transactions=self._whole):
            changes = self._net(batches)
            self.rows += sum(batch.num_rows for batch in batches)
            self.counts += changes.counts
            self.is_empty &= changes.is_empty
            yield changes
            del batches, changes
            pa.default_memory_pool().release_unused()  # it keeps some 50 MB of what is let go of


def held_at_once(batches: Iterable[ChangeBatch]) -> list[ChangeBatch] | None:
    """All of these changes; None if they are too much: files tell little of what memory they take,
    where values repeat themselves."""
    held, size = [], 0
    for batch in batches:
        held.append(batch)
        size += batch.data.nbytes
        if size > WHOLE_BYTES:
            return None
    return held


def cut(
    batches: Iterable[ChangeBatch], *, whole_transactions: bool = False
) -> Iterator[list[ChangeBatch]]:
    """The changes in parts of bounded size. Where transactions have to be whole, one that exceeds
    it is divided by its keys; what such a transaction does to a key is in one part.

    Raises:
        LogFullError: there is no room to divide a transaction.
    """
    pieces = (piece for batch in batches for piece in _pieces(batch))
    if whole_transactions:
        yield from _cut_at_transactions(pieces)
        return
    held: list[ChangeBatch] = []
    for piece in pieces:
        if held and _exceed([*held, piece]):
            yield held
            held = []
        held.append(piece)
    if held:
        yield held


def _cut_at_transactions(pieces: Iterator[ChangeBatch]) -> Iterator[list[ChangeBatch]]:
    held: list[ChangeBatch] = []
    for piece in pieces:
        if not (held and _exceed([*held, piece])):
            held.append(piece)
            continue
        done, held = _divided(held, piece)
        if done:
            yield done
            held.append(piece)
            continue
        with closing(Shares(held[0].schema)) as shares:
            following = _shared_out(shares, chain(held, [piece], pieces))
            held = []
            yield from shares.parts(PART_ROWS, PART_BYTES)
        held = following
    if held:
        yield held


def _shared_out(shares: Shares, pieces: Iterable[ChangeBatch]) -> list[ChangeBatch]:
    """Share out the changes of the transaction that these begin with; gives what follows them of
    the last piece taken."""
    lsn = 0
    for piece in pieces:
        lsn = lsn or int(lsns_of(piece)[0])
        same = between(piece, Lsn(lsn - 1), Lsn(lsn))
        if same.num_rows:
            shares.put(same)
        if same.num_rows < piece.num_rows:
            return [ChangeBatch(piece.schema, piece.data.slice(same.num_rows))]
    return []


def _exceed(batches: Sequence[ChangeBatch]) -> bool:
    rows = sum(batch.num_rows for batch in batches)
    return rows > PART_ROWS or sum(batch.data.nbytes for batch in batches) > PART_BYTES


def _pieces(batch: ChangeBatch) -> Iterator[ChangeBatch]:
    """Slices of a batch of which several are a part."""
    per_row = max(batch.data.nbytes // max(batch.num_rows, 1), 1)
    rows = max(min(PART_ROWS, PART_BYTES // per_row) // 4, 1)
    for start in range(0, batch.num_rows, rows):
        yield ChangeBatch(batch.schema, batch.data.slice(start, rows))


def _divided(
    held: Sequence[ChangeBatch], following: ChangeBatch
) -> tuple[list[ChangeBatch], list[ChangeBatch]]:
    """What is held of other transactions than the one that goes on, and what of that one."""
    lsn = int(lsns_of(following)[0])
    before = [between(batch, Lsn(0), Lsn(lsn - 1)) for batch in held]
    same = [between(batch, Lsn(lsn - 1), Lsn(lsn)) for batch in held]
    return [b for b in before if b.num_rows], [b for b in same if b.num_rows]


def read_together(files: Iterable[LogFile]) -> Iterator[list[LogFile]]:
    """Files in order, as many at a time as can be read side by side, or a single one."""
    held: list[LogFile] = []
    for file in files:
        if held and sum(f.bytes for f in held) + file.bytes > READ_BYTES:
            yield held
            held = []
        held.append(file)
    if held:
        yield held
