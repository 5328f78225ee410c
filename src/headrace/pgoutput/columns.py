"""What a decoder hands over: rows as columns of raw text, in Arrow's own layout and not copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

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
        return self._array(pa.binary())

    def text(self) -> pa.StringArray:
        """The values as text, shared with this column; null where there is none.

        Raises:
            ProtocolError: a value is not UTF-8, although client_encoding is, or came in binary.
        """
        if (self.kinds == BINARY).any():
            raise ProtocolError(
                "the server sent values in binary, which nobody asked for",
                hint="start replication without the option binary",
            )
        array = self._array(pa.string())
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ProtocolError(
                f"the server sent text that is not UTF-8: {error}",
                hint="check client_encoding and server_encoding; UTF8 is needed for the former",
            ) from error
        return array

    def _array(self, kind: pa.DataType) -> Any:
        present = (self.kinds == TEXT) | (self.kinds == BINARY)
        nulls = len(present) - int(np.count_nonzero(present))
        validity = pa.py_buffer(np.packbits(present, bitorder="little")) if nulls else None
        buffers = [validity, pa.py_buffer(self.offsets), self.data]
        return pa.Array.from_buffers(kind, len(present), buffers, nulls)


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
class Decoded:
    """Everything that came since the take before.

    `batches` are in the order of their first rows; a table has several if its Relation message
    changed. `finished` is the end of the transaction that was open at the take before, if it came.
    `last_commit_lsn` is the end of the newest commit ever seen, 0 before the first.
    """

    batches: list[RawBatch]
    transactions: Transactions
    finished: TransactionEnd | None
    last_commit_lsn: int
    messages: list[Message]
