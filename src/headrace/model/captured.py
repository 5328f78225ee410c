"""What sources hand to the engine: decoded stretches of a stream and parts of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.model.batch import ChangeBatch
from headrace.model.lsn import Lsn
from headrace.model.table import TableId


@dataclass(frozen=True)
class TransactionEnd:
    """What only a transaction's commit tells: `commit_lsn` is the end of its commit record."""

    commit_lsn: Lsn
    commit_ts: datetime
    xid: int


@dataclass(frozen=True)
class Finished:
    """A transaction of which earlier stretches had rows is over; `end` is None if it was aborted.

    What came of its subtransactions `rolled_back` is void, and what came of the tables `left_out`
    is not to be followed.
    """

    xid: int
    end: TransactionEnd | None
    rolled_back: frozenset[int] = frozenset()
    left_out: frozenset[TableId] = frozenset()


@dataclass(frozen=True)
class DecodedChanges:
    """A stretch of a stream, or a part of one.

    `finished` comes first, then `batches`, which hold committed rows; those of a transaction that
    `finished` names follow what was told of it before. `unfinished` batches belong each to the
    transaction, named by its xid, whose commit is still to come: null `_commit_lsn` and
    `_commit_ts`, and in `_xid` the subtransaction. `failed` names tables whose changes cannot be
    represented or followed; what came of them in the same stretch is to be left out.
    """

    batches: Sequence[ChangeBatch] = ()
    unfinished: Sequence[tuple[int, ChangeBatch]] = ()
    finished: Sequence[Finished] = ()
    failed: Sequence[tuple[TableId, HeadraceError]] = ()


@dataclass(frozen=True)
class KeyRange:
    """Rows whose key's first column is `low` or more and less than `high`, as texts of its values.

    None leaves an end open. The ranges of a table stand in order, and tile all that the column can
    hold. Its order has to be the same in the source and here: that of whole numbers, of dates and
    times, and of UUIDs, byte by byte.
    """

    low: str | None = None
    high: str | None = None


@dataclass(frozen=True)
class Visibility:
    """Which transactions a snapshot sees: those before `following` that were not `running`.

    Ids have 64 bits, as in pg_current_snapshot() (Postgres documentation, "Transaction ID and
    Snapshot Information Functions").
    """

    following: int
    running: frozenset[int]

    def sees(self, xids: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Of each transaction, by its 32-bit id; it may be 2^31 older or newer at most."""
        near = self.following & 0xFFFFFFFF
        ids = self.following + (xids - np.uint32(near)).astype(np.int32).astype(np.int64)
        running = np.fromiter(self.running, np.int64, len(self.running))
        return (ids < self.following) & ~np.isin(ids, running)


@dataclass(frozen=True)
class SnapshotChunk:
    """A part of one table to be copied; `where` is the source's own way to name it.

    With `keys`, it holds just the rows of that range, which stays the same from one snapshot to the
    next; else it means something in the snapshot that it is of only.
    """

    table: TableId
    number: int
    where: str
    rows: int  # the planner's estimate
    keys: KeyRange | None = None
