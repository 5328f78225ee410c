"""What a decoder hands over: rows as columns of raw text, in Arrow's own layout and not copied."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import ProtocolError
from headrace.pgoutput.messages import BINARY, TEXT, Message, Relation

# Arrow's string and binary types count bytes in an int32.
MAX_COLUMN_BYTES: Final = (1 << 31) - 1

# What a row costs beside its values, for `buffered_bytes`: op, old kind, ordinal, LSN, time, xid …
ROW_BYTES: Final = 1 + 1 + 8 + 8 + 8 + 4
# … and, for each column of each tuple it has, kind and offset; a commit: end LSN, time, xid.
VALUE_BYTES: Final = 1 + 4
COMMIT_BYTES: Final = 8 + 8 + 4


@dataclass(frozen=True, eq=False, slots=True)
class RawColumn:
    """One column of n rows.

    `kinds`, n bytes: `t` text, `b` binary, `n` null, `u` unchanged and not sent, 0 where the row
    has no such tuple. Row i's value is `data[offsets[i]:offsets[i + 1]]`, empty unless `t` or `b`.
    """

    kinds: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int32]
    data: pa.Buffer

    def to_arrow(self) -> pa.BinaryArray:
        """The values as they came, shared with this column; null where there is none."""
        present = (self.kinds == TEXT) | (self.kinds == BINARY)
        nulls = len(present) - int(np.count_nonzero(present))
        validity = pa.py_buffer(np.packbits(present, bitorder="little")) if nulls else None
        buffers = [validity, pa.py_buffer(self.offsets), self.data]
        return pa.Array.from_buffers(pa.binary(), len(present), buffers, nulls)

    def text(self) -> pa.BinaryArray:
        """The values' texts, shared with this column; null where there is none.

        Whoever casts them checks that they are UTF-8, as client_encoding is.

        Raises:
            ProtocolError: a value came in binary.
        """
        if (self.kinds == BINARY).any():
            raise ProtocolError(
                "the server sent values in binary, which nobody asked for",
                hint="start replication without the option binary",
            )
        return self.to_arrow()

    def kept(self, rows: npt.NDArray[np.bool_]) -> RawColumn:
        """Some of the rows, as a column of their own."""
        buffers = [None, pa.py_buffer(self.offsets), self.data]
        values = pa.Array.from_buffers(pa.binary(), len(self.kinds), buffers, 0)
        kept = values.filter(pa.array(rows))
        _, offsets, data = kept.buffers()
        return RawColumn(
            self.kinds[rows],
            np.frombuffer(offsets, np.int32, len(kept) + 1).copy(),  # Arrow's may be written to
            pa.py_buffer(b"") if data is None else data,
        )


@dataclass(frozen=True, eq=False, slots=True)
class RawBatch:
    """Rows of one table under one Relation message, in the order they came.

    Per row: `ops` is `i`, `u`, `d` or `t` (truncate: all columns are without a tuple), `ordinals`
    its place inside its transaction across all tables, from 0 on, `commit_lsns` the end of its
    transaction's commit record, `commit_ts` microseconds since 1970-01-01 UTC. The transaction of
    the rows from `complete` on has not committed yet: their commit LSN and time are 0.

    `new` and `old` have one column per column of `relation`; `old` is None if no row has an old
    tuple. `old_kind` is 0 without an old tuple, `K` if it holds the key only, `O` if the whole row.
    """

    relation: Relation
    complete: int
    ops: npt.NDArray[np.uint8]
    ordinals: npt.NDArray[np.uint64]
    commit_lsns: npt.NDArray[np.uint64]
    commit_ts: npt.NDArray[np.int64]
    xids: npt.NDArray[np.uint32]
    old_kind: npt.NDArray[np.uint8]
    new: list[RawColumn]
    old: list[RawColumn] | None

    def kept(self, rows: npt.NDArray[np.bool_]) -> RawBatch:
        """Some of the rows, in a batch of their own."""
        old_kind = self.old_kind[rows]
        return RawBatch(
            self.relation,
            int(np.count_nonzero(rows[: self.complete])),
            self.ops[rows],
            self.ordinals[rows],
            self.commit_lsns[rows],
            self.commit_ts[rows],
            self.xids[rows],
            old_kind,
            [column.kept(rows) for column in self.new],
            [column.kept(rows) for column in self.old] if self.old and old_kind.any() else None,
        )

    def without(self, xids: npt.NDArray[np.uint32]) -> RawBatch | None:
        """The rows that other (sub)transactions than these made; None where there are none."""
        rows = ~np.isin(self.xids, xids)
        if rows.all():
            return self
        return self.kept(rows) if rows.any() else None


@dataclass(frozen=True, eq=False, slots=True)
class Transactions:
    """The commits of one take, in order, whether or not they changed a row."""

    end_lsns: npt.NDArray[np.uint64]
    commit_ts: npt.NDArray[np.int64]
    xids: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class TransactionEnd:
    """What only its Commit tells of a transaction; `commit_ts` in microseconds since 1970."""

    end_lsn: int
    commit_ts: int
    xid: int


@dataclass(frozen=True, eq=False, slots=True)
class Streamed:
    """What came of a streamed transaction since the take that had some of it before.

    In `batches` the `xids` tell which subtransaction made a row; LSN and time are 0, `end` has
    them once the transaction has committed. Rows of the subtransactions `rolled_back` are left out
    here; those of earlier parts have to be dropped. `aborted`: all of it came to nothing.

    If it has committed, the first `after` of `Decoded.batches` hold what was committed before it,
    the others what was committed later.
    """

    xid: int
    batches: list[RawBatch]
    rolled_back: frozenset[int]
    end: TransactionEnd | None
    after: int = 0
    aborted: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Decoded:
    """Everything that came since the take before.

    `batches` are in the order of their first rows; a table has several if its Relation message
    changed, or a streamed transaction committed in between. `finished` is the end of the
    transaction that was open at the take before, if it came. `streamed` are the streamed
    transactions that are over, in that order, then those of which more is to come.
    `last_commit_lsn` is the end of the newest commit ever seen, 0 before the first. `messages` may
    be of streamed transactions that come to nothing.
    """

    batches: list[RawBatch]
    transactions: Transactions
    finished: TransactionEnd | None
    streamed: list[Streamed]
    last_commit_lsn: int
    messages: list[Message]


def streamed_part(
    xid: int,
    batches: list[RawBatch],
    rolled_back: Collection[int],
    end: TransactionEnd | None,
    after: int,
) -> Streamed:
    """A part of a streamed transaction, without the rows that were rolled back."""
    if rolled_back:
        gone = np.fromiter(rolled_back, np.uint32, len(rolled_back))
        batches = [kept for batch in batches if (kept := batch.without(gone)) is not None]
    return Streamed(xid, batches, frozenset(rolled_back), end, after)


class Sized(Protocol):
    @property
    def bytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


def largest(streams: Iterable[T], keep: int) -> list[T]:
    """Those to hand over, so that the others need `keep` bytes or less: the largest first."""
    by_size = sorted(streams, key=lambda stream: -stream.bytes)
    left = sum(stream.bytes for stream in by_size)
    chosen = []
    for stream in by_size:
        if left <= keep:
            break
        chosen.append(stream)
        left -= stream.bytes
    return chosen
