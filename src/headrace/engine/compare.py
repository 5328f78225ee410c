"""Two sets of rows, compared by fingerprint as multisets: 16 bytes a row, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.model.fingerprint import Hasher, Hashes, concat_hashes

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowDifference:
    """Fingerprints that one side has more often; `count` says by how much, all positive."""

    hashes: Hashes
    counts: Counts

    @property
    def total(self) -> int:
        return int(self.counts.sum())


def difference(expected: Hashes, actual: Hashes) -> tuple[RowDifference, RowDifference]:
    """What is missing from `actual`, and what it has too much, as multisets."""
    both = concat_hashes([expected, actual])
    assert both.low is not None  # rows are never hashed as single integers
    signs = np.repeat(np.array([1, -1], np.int64), [len(expected), len(actual)])
    order = np.lexsort((both.low, both.high))
    high, low, signs = both.high[order], both.low[order], signs[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    starts = np.flatnonzero(first)
    net = np.add.reduceat(signs, starts) if len(starts) else signs
    return _side(high, low, starts, net), _side(high, low, starts, -net)


def _side(
    high: npt.NDArray[np.uint64],
    low: npt.NDArray[np.uint64],
    starts: npt.NDArray[np.intp],
    net: Counts,
) -> RowDifference:
    which = np.flatnonzero(net > 0)
    at = starts[which]
    return RowDifference(Hashes(high[at], low[at]), net[which])


def rows_of(rows: Iterable[pa.Table], hasher: Hasher, wanted: Hashes, limit: int) -> list[pa.Table]:
    """Up to `limit` rows whose fingerprints are among `wanted`."""
    found: list[pa.Table] = []
    left = limit
    for part in rows:
        hits = np.flatnonzero(np.isin(hasher.hash(part).high, wanted.high))[:left]
        if len(hits):
            found.append(part.take(pa.array(hits)))
            left -= len(hits)
        if left <= 0:
            break
    return found
