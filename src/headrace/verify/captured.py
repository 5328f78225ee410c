"""One table, source against destination, at one LSN, without stopping anything.

The source is read as of X, the destination as of a version that holds everything up to L >= X. What
changed in between is in the change log: the source's rows as of X, with the log's net changes of
(X, L] applied, are what the destination must hold at L.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.connectors.delta.reading import PinnedTable
from headrace.connectors.delta.types import stored_schema, to_stored
from headrace.connectors.postgres.reading import Reading
from headrace.engine.compare import Comparison, Fingerprint, ReadRows
from headrace.errors import DivergedError
from headrace.model import Delivery, Lsn, NetChanges, TableId, TableSchema
from headrace.model.fingerprint import Hasher, Words
from headrace.verify.held import compare_held
from headrace.verify.outcome import TableVerification, described, keys_of


def verify_lake(
    pipeline: str, schema: TableSchema, expected: Expected, destination: PinnedTable, at: Lsn
) -> TableVerification:
    """Compare a Delta table, pinned at `at`, with what it must hold."""
    stored = stored_schema(schema.arrow())
    columns = tuple(replace(c, type=stored.field(c.name).type) for c in schema.columns)
    fingerprint = Fingerprint.of(replace(schema, columns=columns), schema.names)
    counted = _Counted(destination.rows)

    def wanted() -> Iterator[pa.Table]:
        return (to_stored(rows, stored) for rows in expected.rows())

    def found() -> Iterator[pa.Table]:
        yield from (to_stored(rows, stored) for rows in counted.read())
        yield to_stored(expected.taken, stored)

    comparison = Comparison(wanted, found, fingerprint)
    identifying = schema.key or schema.names
    samples = [
        *keys_of(comparison.missing_rows(), identifying),
        *keys_of(comparison.extra_rows(), identifying),
    ]
    return TableVerification(
        pipeline,
        schema.table,
        at,
        counted.rows,
        comparison.missing,
        comparison.extra,
        described(identifying, samples),
    )


def verify_transfer(
    pipeline: str,
    schema: TableSchema,
    expected: Expected,
    reading: Reading,
    target: TableId,
    delivery: Delivery,
) -> TableVerification:
    """Compare a Postgres table as of one moment with what it must hold there."""
    assert reading.at is not None
    named = replace(schema, table=target)
    found = compare_held(reading, named, expected.rows, delivery, taken=expected.taken)
    return TableVerification(
        pipeline,
        schema.table,
        reading.at.lsn,
        found.rows,
        found.missing,
        found.extra,
        found.samples,
        quarantined=found.quarantined,
    )


class _Counted:
    """Rows as they are read, counted; `rows` is the number of the last reading."""

    def __init__(self, read: ReadRows) -> None:
        self._read = read
        self.rows = 0

    def read(self) -> Iterator[pa.Table]:
        self.rows = 0
        for part in self._read():
            self.rows += part.num_rows
            yield part


class Expected:
    """What a table must hold: the source's rows as of X with the changes since then applied."""

    def __init__(self, schema: TableSchema, source: ReadRows, changes: NetChanges) -> None:
        self._source = source
        self._truncated = changes.truncate
        self._keys = list(schema.key)
        self._hasher = Hasher(exact=False, seeds=(1, 2))
        touched = [changes.deletes, changes.upserts.select(self._keys)] if self._keys else []
        self._touched = [self._hasher.hash(keys).high for keys in touched]
        self._upserts = self._filled(changes)
        self.taken = schema.arrow().empty_table() if self._keys else changes.deletes

    def rows(self) -> Iterator[pa.Table]:
        """The rows, in pieces; a table without a key still shows what is in `taken`."""
        if not self._truncated:
            for rows in self._source():
                yield rows.filter(pa.array(~self._under(rows, self._touched)))
        yield self._upserts

    def _under(self, rows: pa.Table, keys: Sequence[Words]) -> npt.NDArray[np.bool_]:
        """Which rows stand under one of the keys, given by their fingerprints."""
        if not keys:
            return np.zeros(rows.num_rows, np.bool_)
        return np.isin(self._hasher.hash(rows.select(self._keys)).high, np.concatenate(keys))

    def _filled(self, changes: NetChanges) -> pa.Table:
        """The upserts with the columns that the stream left out, taken from the source's rows."""
        upserts = changes.upserts
        for fill in changes.fills:
            wanted = self._hasher.hash(fill.keys).high
            held = [rows.filter(pa.array(self._under(rows, [wanted]))) for rows in self._source()]
            old = pa.concat_tables(held)
            place = _places(self._hasher.hash(old.select(self._keys)).high, wanted)
            for name in fill.columns:
                upserts = _replaced(
                    upserts, name, fill.rows, old.column(name).take(pa.array(place))
                )
        return upserts


def _places(held: Words, wanted: Words) -> npt.NDArray[np.intp]:
    """Where each of `wanted` stands in `held`."""
    order = np.argsort(held)
    at = np.searchsorted(held[order], wanted)
    if len(held) < len(wanted) or (held[order[np.minimum(at, len(held) - 1)]] != wanted).any():
        raise DivergedError(
            "a changed row's older version is at neither end", hint="headrace resync the table"
        )
    return order[at]


def _replaced(
    table: pa.Table, name: str, rows: npt.NDArray[np.int64], values: pa.ChunkedArray
) -> pa.Table:
    index = table.schema.get_field_index(name)
    take = np.arange(table.num_rows)
    take[rows] = table.num_rows + np.arange(len(rows))
    column = pa.chunked_array([*table.column(index).chunks, *values.chunks], values.type)
    return table.set_column(index, name, column.take(pa.array(take)))
