"""Files of transactions in progress: durable, but of no manifest until the commit is known.

They are kept by transaction. What a subtransaction wrote may still be rolled back; so each file is
known with the subtransactions that it has rows of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headrace.log import LogFile
from headrace.model import XID, ChangeBatch


@dataclass(frozen=True, eq=False)
class Spill:
    """A file, and the (sub)transactions of its rows: 4 bytes for each."""

    file: LogFile
    xids: npt.NDArray[np.uint32]

    def holds(self, xids: npt.NDArray[np.uint32]) -> bool:
        """Whether it has rows of one of these."""
        return bool(np.isin(self.xids, xids).any())


def spill(file: LogFile, batch: ChangeBatch) -> Spill:
    """`file` as the one that `batch` was written to."""
    xids = batch.data.column(XID).drop_null()
    return Spill(file, np.unique(xids.to_numpy()))


Spills = Mapping[int, tuple[Spill, ...]]  # by transaction


def files_of(spills: Spills) -> list[LogFile]:
    """All files."""
    return [held.file for of_one in spills.values() for held in of_one]


@dataclass
class HandOver:
    """What one hand-over of the stream comes to, while it is being staged.

    `staged` is to be committed, `spills` waits for commits, `obsolete` is to be removed once it is
    certain that nobody asks for it.
    """

    spills: dict[int, tuple[Spill, ...]]
    staged: list[LogFile] = field(default_factory=list)
    obsolete: list[LogFile] = field(default_factory=list)

    def hold(self, xid: int, held: Spill) -> None:
        self.spills[xid] = (*self.spills.get(xid, ()), held)

    def leave_out(self, tables: Iterable[object]) -> None:
        """Commit nothing of these tables."""
        self.obsolete += [file for file in self.staged if file.table in tables]
        self.staged = [file for file in self.staged if file.table not in tables]

    def in_order(self) -> list[LogFile]:
        """What is to be committed, by commit LSN; equal ones as they were staged."""
        return sorted(self.staged, key=lambda file: file.first_lsn or 0)
