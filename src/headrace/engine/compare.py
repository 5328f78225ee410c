"""Two sets of rows, compared by fingerprint as multisets: 16 bytes a row, in any order.

Equal sets of fingerprints are equal sets of rows, but for a chance below n**2 / 2**128.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.gather import take
from headrace.model import TableSchema
from headrace.model.fingerprint import Hasher, Hashes, Words, concat_hashes

Counts = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]
ReadRows = Callable[[], Iterable[pa.Table]]  # may be called again, and gives the same rows then

_BUCKET_BITS: Final = 18
_BUCKETS: Final = 1 << _BUCKET_BITS  # 8 MB of sums; of 100 million rows each has 400

# Fingerprints in memory at a time; sorting them takes about five times their 16 bytes.
AT_ONCE: Final = 4_000_000


# -- fingerprints ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fingerprint:
    """Hashes some columns of a table, in the types that `schema` gives them."""

    schema: pa.Schema
    hasher: Hasher
    exact: bool

    @classmethod
    def of(cls, schema: TableSchema, names: Sequence[str]) -> Fingerprint:
        """Of keys, in which zeros are equal, or of whole rows, in which they are not."""
        arrow = pa.schema([schema.arrow().field(name) for name in names])
        seeds = (secrets.randbits(64), secrets.randbits(64))
        return cls(arrow, Hasher(exact=False, seeds=seeds), tuple(names) == schema.names)

    def hash(self, rows: pa.Table) -> Hashes:
        typed = rows.select(self.schema.names).cast(self.schema)
        return self.hasher.hash(_with_float_bits(typed) if self.exact else typed)


def _with_float_bits(rows: pa.Table) -> pa.Table:
    """The same with floats as integers, so that zeros are told apart; NaN stays one value."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_floating(field.type):
            bits = pa.chunked_array([_bits(c) for c in rows.column(index).chunks], pa.int64())
            rows = rows.set_column(index, field.name, bits)
    return rows


def _bits(values: pa.Array) -> pa.Array:
    doubles = values.cast(pa.float64())
    nan = pa.scalar(float("nan"))
    return pc.if_else(pc.is_nan(doubles), nan, doubles).view(pa.int64())


def among(words: Words, wanted: Words) -> npt.NDArray[np.bool_]:
    """Which of `words` are in `wanted`, which is sorted."""
    if not len(wanted):
        return np.zeros(len(words), np.bool_)
    at = np.minimum(np.searchsorted(wanted, words), len(wanted) - 1)
    return np.equal(wanted[at], words)


# -- what one side has more often ------------------------------------------------------------------


@dataclass(frozen=True)
class RowDifference:
    """Fingerprints, sorted, that one side has more often; `counts` says by how much."""

    hashes: Hashes
    counts: Counts

    @property
    def total(self) -> int:
        return int(self.counts.sum())


def difference(expected: Hashes, actual: Hashes) -> tuple[RowDifference, RowDifference]:
    """What is missing from `actual`, and what it has too much, as multisets."""
    balance = _Balance()
    balance.add(expected, 1)
    balance.add(actual, -1)
    return balance.sides()


class _Balance:
    """Fingerprints with how often one side has them more than the other."""

    def __init__(self) -> None:
        empty = np.empty(0, np.uint64)
        self._hashes = [Hashes(empty, empty)]
        self._counts = [np.empty(0, np.int64)]
        self._settled = 0

    def add(self, hashes: Hashes, sign: int) -> None:
        self._hashes.append(hashes)
        self._counts.append(np.full(len(hashes), sign, np.int64))
        if sum(map(len, self._counts)) > 2 * self._settled + AT_ONCE:
            self._settle()

    def sides(self) -> tuple[RowDifference, RowDifference]:
        hashes, counts = self._settle()
        more, less = np.flatnonzero(counts > 0), np.flatnonzero(counts < 0)
        return (
            RowDifference(hashes.take(more), counts[more]),
            RowDifference(hashes.take(less), -counts[less]),
        )

    def _settle(self) -> tuple[Hashes, Counts]:
        """Make one of equal fingerprints, and drop those that balance."""
        hashes, counts = concat_hashes(self._hashes), np.concatenate(self._counts)
        assert hashes.low is not None  # rows are never hashed as single integers
        order = np.lexsort((hashes.low, hashes.high))
        high, low, counts = hashes.high[order], hashes.low[order], counts[order]
        first = np.ones(len(order), np.bool_)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        starts = np.flatnonzero(first)
        counts = np.add.reduceat(counts, starts) if len(starts) else counts
        kept = np.flatnonzero(counts)
        settled = Hashes(high[starts[kept]], low[starts[kept]]), counts[kept]
        self._hashes, self._counts, self._settled = [settled[0]], [settled[1]], len(kept)
        return settled


class Quota:
    """Picks the rows of a difference as they are read again, each as often as it is part of it."""

    def __init__(self, side: RowDifference) -> None:
        self._hashes = side.hashes
        self._left = side.counts.copy()

    def take(self, hashes: Hashes) -> Positions:
        """The positions of rows that belong to the difference, ascending."""
        high, low = self._hashes.high, self._hashes.low
        assert low is not None
        assert hashes.low is not None
        if not len(high):
            return np.empty(0, np.intp)
        at = np.minimum(np.searchsorted(high, hashes.high), len(high) - 1)
        hits = np.flatnonzero((high[at] == hashes.high) & (low[at] == hashes.low))
        which = at[hits]
        picked = hits[_rank(which) < self._left[which]]
        np.subtract.at(self._left, at[picked], 1)
        return picked


def _rank(values: Positions) -> Positions:
    """Of each value, how many equal ones stand before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(first)
    ranks = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    found = np.empty(len(order), np.intp)
    found[order] = ranks
    return found


# -- whole tables ----------------------------------------------------------------------------------


class Comparison:
    """Two readings of a table compared in bounded memory, whatever its size (invariant 10).

    The first reading of both sums their fingerprints up in buckets: equal sums are equal rows. Rows
    of buckets that differ are read again, of so many buckets at a time as hold `at_once` rows.
    `missing` counts rows that `found` lacks, `extra` those that it has too much.
    """

    def __init__(
        self, wanted: ReadRows, found: ReadRows, fingerprint: Fingerprint, at_once: int = AT_ONCE
    ) -> None:
        self._sides = ((wanted, 1), (found, -1))
        self._fingerprint = fingerprint
        sums = _Sums()
        for read, sign in self._sides:
            for rows in read():
                sums.add(fingerprint.hash(rows), sign)
        self._groups = sums.groups(at_once)
        self._only: tuple[RowDifference, RowDifference] | None = None
        totals = [(missing.total, extra.total) for missing, extra in self.pieces()]
        self.missing, self.extra = sum(m for m, _ in totals), sum(e for _, e in totals)

    def pieces(self) -> Iterator[tuple[RowDifference, RowDifference]]:
        """What is missing and what is extra, in pieces; each is a reading of both sides."""
        if self._only is not None:
            yield self._only
            return
        for buckets in self._groups:
            piece = self._piece(buckets)
            if len(self._groups) == 1:
                self._only = piece
            yield piece

    def _piece(self, buckets: npt.NDArray[np.bool_]) -> tuple[RowDifference, RowDifference]:
        balance = _Balance()
        for read, sign in self._sides:
            for rows in read():
                hashes = self._fingerprint.hash(rows)
                balance.add(hashes.take(np.flatnonzero(buckets[_buckets(hashes)])), sign)
        return balance.sides()

    def missing_rows(self) -> Iterator[pa.Table]:
        """The rows that are missing, as often as they are."""
        (wanted, _), _ = self._sides
        for missing, _ in self.pieces():
            yield from self._rows(wanted, missing)

    def extra_rows(self) -> Iterator[pa.Table]:
        """The rows that are too much, as often as they are."""
        _, (found, _) = self._sides
        for _, extra in self.pieces():
            yield from self._rows(found, extra)

    def _rows(self, read: ReadRows, side: RowDifference) -> Iterator[pa.Table]:
        if not side.total:
            return
        quota = Quota(side)
        for rows in read():
            yield take(rows, quota.take(self._fingerprint.hash(rows)))


class _Sums:
    """One side's fingerprints less the other's, added up by bucket."""

    def __init__(self) -> None:
        self._held = np.zeros(_BUCKETS, np.int64)  # rows of both sides
        self._net = np.zeros((3, _BUCKETS), np.uint64)  # rows, and the halves of fingerprints

    def add(self, hashes: Hashes, sign: int) -> None:
        assert hashes.low is not None
        buckets = _buckets(hashes)
        add = np.add.at if sign > 0 else np.subtract.at
        np.add.at(self._held, buckets, 1)
        rows, high, low = self._net
        add(rows, buckets, np.uint64(1))
        add(high, buckets, hashes.high)
        add(low, buckets, hashes.low)

    def groups(self, rows: int) -> list[npt.NDArray[np.bool_]]:
        """The buckets that differ, so many together as hold about that many rows."""
        differing = np.flatnonzero(self._net.any(axis=0))
        number = (np.cumsum(self._held[differing]) - 1) // rows
        groups = []
        for group in np.unique(number):
            chosen = np.zeros(_BUCKETS, np.bool_)
            chosen[differing[number == group]] = True
            groups.append(chosen)
        return groups


def _buckets(hashes: Hashes) -> Positions:
    return (hashes.high >> np.uint64(64 - _BUCKET_BITS)).astype(np.intp)
