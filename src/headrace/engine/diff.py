"""What a destination lacks of its source, found by comparing fingerprints of all rows.

Both sides are read once for their fingerprints: 16 bytes a row, and 16 more for the source's key.
Equal sets of them are equal tables, but for a chance below n**2 / 2**128. A second reading fetches
the few rows that differ. A value that a destination gives back in another form than it was handed
only makes its row look different; no difference is missed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.compare import difference
from headrace.engine.netting import as_feed, net
from headrace.model import NetChanges, TableSchema, TableVersion
from headrace.model.fingerprint import Hasher, Hashes, Words, concat_hashes

ReadRows = Callable[[], Iterable[pa.Table]]  # may be called again


class TooManyRowsError(Exception):
    """There is more to compare, or to fetch, than was allowed; never leaves the engine."""


@dataclass(frozen=True)
class Bounds:
    """How many rows may be compared, those of both sides together, and how many may differ."""

    compared: int
    differing: int


def row_changes(
    schema: TableSchema, source: ReadRows, destination: ReadRows, at: TableVersion, bounds: Bounds
) -> NetChanges:
    """The changes that make `destination` equal to `source`, which is the table as of `at`.

    Both give rows of `schema`, which has a key. Different rows of the source that share a key are
    rejected as `duplicate_key`, and the destination's row is left as it is.

    Raises:
        TooManyRowsError: there is more than `bounds` allow.
    """
    rows, keys = _Fingerprint.of(schema, schema.names), _Fingerprint.of(schema, schema.key)
    budget = _Budget(bounds.compared)
    wanted, wanted_keys = _gather(source(), (rows, keys), budget)
    (found,) = _gather(destination(), (rows,), budget)
    missing, extra = difference(wanted, found)
    shared = repeated(wanted_keys.high)
    _Budget(bounds.differing).spend(missing.total + extra.total + len(shared))
    came = _fetch(source(), ((rows, np.sort(missing.hashes.high)), (keys, shared)), rows.schema)
    went = _fetch(destination(), ((rows, np.sort(extra.hashes.high)),), rows.schema)
    told = [as_feed(schema, came, at), as_feed(schema, went, at, gone=True)]
    return net(schema, pa.concat_tables(told))


def vanished_keys(
    schema: TableSchema, source: ReadRows, destination: ReadRows, compared: int
) -> pa.Table:
    """The keys that `destination` has and `source` has not; both give key columns, perhaps more.

    Raises:
        TooManyRowsError: there are more than `compared` rows at the source.
    """
    keys = _Fingerprint.of(schema, schema.key)
    (known,) = _gather(source(), (keys,), _Budget(compared))
    present = np.sort(known.high)
    gone = [keys.schema.empty_table()]
    for part in destination():
        rows = part.select(keys.schema.names).cast(keys.schema)
        gone.append(rows.filter(pa.array(~_among(keys.hash(rows).high, present))))
    return pa.concat_tables(gone)


# -- fingerprints ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fingerprint:
    """Hashes some columns of a table, in the types that `schema` gives them."""

    schema: pa.Schema
    hasher: Hasher
    exact: bool

    @classmethod
    def of(cls, schema: TableSchema, names: Sequence[str]) -> _Fingerprint:
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


def _gather(
    parts: Iterable[pa.Table], wanted: Sequence[_Fingerprint], budget: _Budget
) -> list[Hashes]:
    """Each of the fingerprints of all rows."""
    empty = np.empty(0, np.uint64)
    hashes = [[Hashes(empty, empty)] for _ in wanted]
    for part in parts:
        budget.spend(part.num_rows)
        for found, fingerprint in zip(hashes, wanted, strict=True):
            found.append(fingerprint.hash(part))
    return [concat_hashes(found) for found in hashes]


def _fetch(
    parts: Iterable[pa.Table], wanted: Sequence[tuple[_Fingerprint, Words]], schema: pa.Schema
) -> pa.Table:
    """The rows that have one of the fingerprints, which are given sorted and by half."""
    found = [schema.empty_table()]
    if any(len(words) for _, words in wanted):
        for part in parts:
            hits = [_among(print_.hash(part).high, words) for print_, words in wanted]
            rows = part.filter(pa.array(np.logical_or.reduce(hits)))
            found.append(rows.select(schema.names).cast(schema))
    return pa.concat_tables(found)


def _among(words: Words, wanted: Words) -> npt.NDArray[np.bool_]:
    """Which of `words` are in `wanted`, which is sorted."""
    if not len(wanted):
        return np.zeros(len(words), np.bool_)
    at = np.minimum(np.searchsorted(wanted, words), len(wanted) - 1)
    return np.equal(wanted[at], words)


def repeated(words: Words) -> Words:
    """The words that are there more than once, sorted."""
    ordered = np.sort(words)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


class _Budget:
    """Counts rows down."""

    def __init__(self, rows: int) -> None:
        self._left = rows

    def spend(self, rows: int) -> None:
        self._left -= rows
        if self._left < 0:
            raise TooManyRowsError
