"""What a destination lacks of its source, found by comparing fingerprints of all rows.

Both sides are read once for their fingerprints: 16 bytes a row, and 16 more for the source's key.
Equal sets of them are equal tables, but for a chance below n**2 / 2**128. A second reading fetches
the few rows that differ. A value that a destination gives back in another form than it was handed
only makes its row look different; no difference is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.engine.compare import Fingerprint, ReadRows, among, difference
from headrace.engine.netting import as_feed, net
from headrace.model import NetChanges, TableSchema, TableVersion
from headrace.model.fingerprint import Hashes, Words, concat_hashes, repeated


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
    rows, keys = Fingerprint.of(schema, schema.names), Fingerprint.of(schema, schema.key)
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
    keys = Fingerprint.of(schema, schema.key)
    (known,) = _gather(source(), (keys,), _Budget(compared))
    present = np.sort(known.high)
    gone = [keys.schema.empty_table()]
    for part in destination():
        rows = part.select(keys.schema.names).cast(keys.schema)
        gone.append(rows.filter(pa.array(~among(keys.hash(rows).high, present))))
    return pa.concat_tables(gone)


# -- reading both sides ---------------------------------------------------------------------------


def _gather(
    parts: Iterable[pa.Table], wanted: Sequence[Fingerprint], budget: _Budget
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
    parts: Iterable[pa.Table], wanted: Sequence[tuple[Fingerprint, Words]], schema: pa.Schema
) -> pa.Table:
    """The rows that have one of the fingerprints, which are given sorted and by half."""
    found = [schema.empty_table()]
    if any(len(words) for _, words in wanted):
        for part in parts:
            hits = [among(print_.hash(part).high, words) for print_, words in wanted]
            rows = part.filter(pa.array(np.logical_or.reduce(hits)))
            found.append(rows.select(schema.names).cast(schema))
    return pa.concat_tables(found)


class _Budget:
    """Counts rows down."""

    def __init__(self, rows: int) -> None:
        self._left = rows

    def spend(self, rows: int) -> None:
        self._left -= rows
        if self._left < 0:
            raise TooManyRowsError
