"""Cuts changes where the schema of their table changes.

Each part is applied to a table that has the columns which its rows were made under, so that what a
dropped column held until then is written, and none of it has to be told in other columns. A table
stands at ends of transactions only: one that changed the schema between its own changes stays
whole, and its older rows are brought to the newest version (`conform`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

from headrace.model import COMMIT_LSN, COMMIT_TS, ChangeBatch, Lsn


def by_version(batches: Iterable[ChangeBatch], after: Lsn) -> list[list[ChangeBatch]]:
    """The changes that were committed after `after`, in parts that end with transactions.

    The newest version of a part is its last batch's. However the stream is cut into `batches`, a
    transaction is in a part whose newest version is the same.
    """
    parts: list[list[ChangeBatch]] = []
    for batch in batches:
        newer = _from(batch, np.uint64(after), "right")
        if not newer.num_rows:
            continue
        if parts and parts[-1][-1].schema.version == newer.schema.version:
            parts[-1].append(newer)
        else:
            before, same = _divided(parts.pop() if parts else [], _lsns(newer)[0])
            parts += [part for part in (before, [*same, newer]) if part]
    return parts


def end_of(part: list[ChangeBatch]) -> Lsn:
    """Where the last transaction of a part ends."""
    return Lsn(int(_lsns(part[-1])[-1]))


def committed_at(part: list[ChangeBatch]) -> datetime:
    """When that was committed."""
    moment: datetime = part[-1].data[COMMIT_TS][-1].as_py()
    return moment


def _divided(part: list[ChangeBatch], at: np.uint64) -> tuple[list[ChangeBatch], list[ChangeBatch]]:
    """The changes of transactions before `at`, and those of that one."""
    before = [_until(batch, at) for batch in part]
    same = [_from(batch, at, "left") for batch in part]
    return [b for b in before if b.num_rows], [b for b in same if b.num_rows]


def _lsns(batch: ChangeBatch) -> npt.NDArray[np.uint64]:
    lsns: npt.NDArray[np.uint64] = batch.data[COMMIT_LSN].to_numpy()
    return lsns


def _from(batch: ChangeBatch, lsn: np.uint64, side: Literal["left", "right"]) -> ChangeBatch:
    start = int(np.searchsorted(_lsns(batch), lsn, side))
    return ChangeBatch(batch.schema, batch.data.slice(start)) if start else batch


def _until(batch: ChangeBatch, lsn: np.uint64) -> ChangeBatch:
    return ChangeBatch(batch.schema, batch.data.slice(0, int(np.searchsorted(_lsns(batch), lsn))))
