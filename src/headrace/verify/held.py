"""The rows that a Postgres table holds, compared with those that it should.

Fingerprints are compared in the source's types. Only where some rows look missing and others too
much may both be the same in a type that the user chose: those the server compares, as a merge would
have written them. Rows in quarantine are left out on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa

from headrace.connectors.postgres.bisection import Operation
from headrace.connectors.postgres.confirming import confirming
from headrace.connectors.postgres.parked import ParkedRow
from headrace.connectors.postgres.reading import Held, Reading
from headrace.engine.compare import AT_ONCE, Comparison, Fingerprint, Quota, ReadRows, among
from headrace.model import Delivery, OnDelete, TableSchema
from headrace.verify.outcome import SAMPLES, Differences, described, keys_of


def compare_held(
    reading: Reading,
    schema: TableSchema,
    wanted: ReadRows,
    delivery: Delivery,
    *,
    taken: pa.Table | None = None,
) -> Differences:
    """What the table of `reading`, whose name `schema` bears, differs by from `wanted`.

    `taken` are rows that `wanted` shows though the table must not hold them any more. Rows that the
    source lost are no difference where deletes only mark or are ignored.

    Raises:
        UnsuitableTableError: the table lacks a column.
        DestinationUnavailableError: the connection is lost.
    """
    table = _Held(reading, schema, delivery, taken)
    fingerprint = Fingerprint.of(schema, schema.names)

    def expected() -> Iterator[pa.Table]:
        yield from wanted()
        yield table.undeleted

    comparison = Comparison(expected, table.rows, fingerprint, AT_ONCE)
    missing, extra, samples = _judge(table, comparison, fingerprint)
    return Differences(table.count + table.odd, missing, extra, samples, len(table.parked))


def _judge(
    table: _Held, comparison: Comparison, fingerprint: Fingerprint
) -> tuple[int, int, tuple[str, ...]]:
    """How many rows are missing, how many there are too much, and some of their keys."""
    if not comparison.extra + table.odd:
        return table.missing(comparison)
    if table.delivery.on_delete is OnDelete.IGNORE and not comparison.missing:
        return 0, 0, ()
    with confirming(table.reading, table.schema, table.delivery) as confirmation:
        for rows in comparison.missing_rows():
            confirmation.want(table.unparked(rows))
        for places in table.extra_places(comparison, fingerprint):
            confirmation.find(places)
        if table.keys.num_rows:
            confirmation.excuse(table.keys)
        found = confirmation.judge(SAMPLES)
    return found.missing, found.extra, described(table.identifying, found.keys)


class _Held:
    """What stands in a table and in its quarantine, as it can be compared.

    `count` are the rows of the last reading; `odd` those of them that hold a value which the
    source's type cannot have, and which nobody but the server can compare.
    """

    def __init__(
        self, reading: Reading, schema: TableSchema, delivery: Delivery, taken: pa.Table | None
    ) -> None:
        self.reading = reading
        self.schema = schema
        self.delivery = delivery
        self.parked = reading.parked()
        self.identifying = schema.key or schema.names
        self.count = self.odd = 0
        self._taken = _none(schema) if taken is None else taken
        self._arrived = self._whole(Operation.UPSERT)
        self.undeleted = self._whole(Operation.DELETE)
        self.keys = _conformed(self.parked if schema.key else (), schema, schema.key)
        self._key = Fingerprint.of(schema, schema.key)
        self._parked_words = np.sort(self._key.hash(self.keys).high) if schema.key else None

    def _whole(self, operation: Operation) -> pa.Table:
        """Parked rows of a table without a key: they, and those that stand, are what should."""
        parked = [row for row in self.parked if row.operation is operation]
        return _conformed(() if self.schema.key else parked, self.schema, self.schema.names)

    def _read(self, *, placed: bool = False) -> Iterator[Held]:
        marks = self.delivery.on_delete is OnDelete.MARK
        return self.reading.held(self.schema, self.schema.names, only_live=marks, placed=placed)

    def rows(self) -> Iterator[pa.Table]:
        """The rows that can be compared here, and what balances `wanted`."""
        self.count = self.odd = 0
        for held in self._read():
            if held.rows is None:
                self.odd += 1
            else:
                self.count += held.rows.num_rows
                yield pa.Table.from_batches([held.rows])
        yield self._arrived
        yield self._taken

    def unparked(self, rows: pa.Table) -> pa.Table:
        """Without those whose key is parked."""
        if self._parked_words is None or not len(self._parked_words):
            return rows
        parked = among(self._key.hash(rows).high, self._parked_words)
        return rows.filter(pa.array(~parked))

    def missing(self, comparison: Comparison) -> tuple[int, int, tuple[str, ...]]:
        """Where nothing is too much: what is missing, is."""
        count = 0
        keys: list[tuple[object, ...]] = []
        for rows in map(self.unparked, comparison.missing_rows()):
            count += rows.num_rows
            keys += keys_of([rows], self.identifying) if len(keys) < SAMPLES else []
        return count, 0, described(self.identifying, keys)

    def extra_places(self, comparison: Comparison, fingerprint: Fingerprint) -> Iterator[pa.Table]:
        """Where rows stand that seem to be too much."""
        for _, extra in comparison.pieces():
            quota = Quota(extra)
            for held in self._read(placed=True):
                if held.rows is not None:
                    hits = quota.take(fingerprint.hash(pa.Table.from_batches([held.rows])))
                    yield pa.Table.from_batches([held.places]).take(pa.array(hits))
        if self.odd:
            odd = (held for held in self._read(placed=True) if held.rows is None)
            yield from (pa.Table.from_batches([held.places]) for held in odd)


def _none(schema: TableSchema) -> pa.Table:
    return schema.arrow().empty_table()


def _conformed(parked: Sequence[ParkedRow], schema: TableSchema, names: Sequence[str]) -> pa.Table:
    """These columns of parked rows, as `schema` has them; columns that came later are null.

    A row of an older type that does not fit the new one stands nowhere else either: it is left out.
    """
    arrow = pa.schema([schema.arrow().field(name) for name in names])
    found = [arrow.empty_table()]
    for row in parked:
        with suppress(pa.ArrowException):
            found.append(row.conformed(arrow))
    return pa.concat_tables(found)
