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
import pyarrow.compute as pc

from headrace.connectors.delta.standing import stored_columns
from headrace.connectors.delta.types import to_stored
from headrace.connectors.postgres.reading import Reading
from headrace.engine.compare import Comparison, Fingerprint, ReadRows, among
from headrace.engine.mending import mending, worth_mending
from headrace.errors import DivergedError
from headrace.model import (
    DELETED_AT,
    END_AT,
    Delivery,
    Lsn,
    Mode,
    NetChanges,
    OnDelete,
    Shape,
    TableId,
    TableSchema,
)
from headrace.model.fingerprint import Hasher, Words
from headrace.verify.held import compare_held
from headrace.verify.outcome import TableVerification, described, keys_of


class LakeComparison:
    """A Delta table, pinned at a version, compared with what it must hold there."""

    def __init__(
        self,
        pipeline: str,
        schema: TableSchema,
        expected: Expected,
        destination: ReadRows,
        shape: Shape,
    ) -> None:
        self._pipeline = pipeline
        self._schema = schema
        self._expected = expected
        self._held = stored_columns(schema)
        self._stored = self._held.arrow()
        self._found = _Counted(live_rows(destination, shape, self._stored))
        fingerprint = Fingerprint.of(self._held, schema.names)
        self._comparison = Comparison(self._wanted, self._standing, fingerprint)
        self._kept = self._kept_extra() if shape.on_delete is OnDelete.IGNORE else 0

    def _wanted(self) -> Iterator[pa.Table]:
        return (to_stored(rows, self._stored) for rows in self._expected.rows())

    def _standing(self) -> Iterator[pa.Table]:
        yield from (to_stored(rows, self._stored) for rows in self._found.read())
        yield to_stored(self._expected.taken, self._stored)

    def _kept_extra(self) -> int:
        """Rows that the source lost, which stay where deletes are ignored: no difference."""
        if not self._comparison.extra:
            return 0
        keys = Fingerprint.of(self._held, self._schema.key)
        there = [keys.hash(rows).high for rows in self._comparison.extra_rows()]
        extra = np.sort(np.concatenate(there))
        known = [extra[:0]]
        for rows in self._wanted():
            words = keys.hash(rows).high
            known.append(words[among(words, extra)])
        return int(np.count_nonzero(~among(extra, np.sort(np.concatenate(known)))))

    def verification(self, at: Lsn) -> TableVerification:
        """The outcome, as of `at`."""
        extra = self._comparison.extra - self._kept
        found = [*self._comparison_keys(self._comparison.missing_rows())]
        found += self._comparison_keys(self._comparison.extra_rows()) if extra else []
        return TableVerification(
            self._pipeline,
            self._schema.table,
            at,
            self._found.rows,
            self._comparison.missing,
            extra,
            described(self._identifying, found),
        )

    @property
    def _identifying(self) -> tuple[str, ...]:
        return self._schema.key or self._schema.names

    def _comparison_keys(self, rows: Iterator[pa.Table]) -> list[tuple[object, ...]]:
        return keys_of(rows, self._identifying)

    def repair(self) -> NetChanges | None:
        """The changes that make the table what it must be; None: it is better copied anew."""
        differing = self._comparison.missing + self._comparison.extra
        if self._expected.taken.num_rows or not worth_mending(differing, self._found.rows):
            return None
        return mending(self._schema, self._comparison, self._wanted, self._held)


def live_rows(read: ReadRows, shape: Shape, stored: pa.Schema) -> ReadRows:
    """The rows of a table that show the source's current state: none that is marked as deleted, and
    no version that has ended."""
    if shape.mode is Mode.SCD2:
        past = END_AT
    elif shape.on_delete is OnDelete.MARK:
        past = DELETED_AT
    else:
        return read
    columns = stored.append(pa.field(past, pa.timestamp("us", "UTC")))

    def live() -> Iterator[pa.Table]:
        for rows in read():  # may have views of text, which Arrow does not filter
            plain = to_stored(rows, columns)
            yield plain.filter(pc.is_null(plain.column(past))).select(stored.names)

    return live


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
