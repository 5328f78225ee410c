"""One table, source against destination, at one LSN, without stopping anything.

The source is read as of X, the destination as of a version that holds everything up to L >= X. What
changed in between is in the change log: the source's rows as of X, with the log's net changes of
(X, L] applied, are what the destination must hold at L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.connectors.delta.types import stored_schema, to_stored
from headrace.engine.collapse import collapse
from headrace.engine.compare import difference, rows_of
from headrace.errors import DivergedError
from headrace.model import ChangeBatch, Lsn, NetChanges, TableId, TableSchema
from headrace.model.fingerprint import Hasher, Hashes, Words, concat_hashes

SAMPLES = 10  # keys that a difference shows

ReadRows = Callable[[], Iterable[pa.Table]]  # may be called again, for samples


@dataclass(frozen=True)
class TableVerification:
    """The outcome for one table; `missing` and `extra` count rows, a changed row in both.

    `samples` are keys of rows that differ (whole rows where the table has no key), at most ten.
    """

    pipeline: str
    table: TableId
    lsn: Lsn
    rows: int
    missing: int
    extra: int
    samples: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return not (self.missing or self.extra)


def verify_table(
    pipeline: str,
    schema: TableSchema,
    source: ReadRows,
    destination: ReadRows,
    changes: Sequence[ChangeBatch],
    after: Lsn,
    at: Lsn,
) -> TableVerification:
    """Compare whole tables. `changes` are the log's, from `after` (X) to `at` (L)."""
    stored = stored_schema(schema.arrow())
    hasher = Hasher(exact=False, seeds=Hasher.of(stored).seeds)
    expected = Expected(schema, source, collapse(schema, changes, after))

    def wanted() -> Iterator[pa.Table]:
        return (to_stored(rows, stored) for rows in expected.rows())

    def found() -> Iterator[pa.Table]:
        return (to_stored(rows, stored) for rows in destination())

    taken = gather([to_stored(expected.taken, stored)], hasher)
    wanted_rows, found_rows = gather(wanted(), hasher), gather(found(), hasher)
    # Rows that a table without a key lost since X: what the source still shows, and they, balance.
    missing, extra = difference(wanted_rows, concat_hashes([found_rows, taken]))
    samples = [
        *rows_of(wanted(), hasher, missing.hashes, SAMPLES),
        *rows_of(found(), hasher, extra.hashes, SAMPLES),
    ]
    return TableVerification(
        pipeline,
        schema.table,
        at,
        len(found_rows),
        missing.total,
        extra.total,
        _describe(samples, schema.key or schema.names),
    )


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


def gather(parts: Iterable[pa.Table], hasher: Hasher) -> Hashes:
    """The fingerprints of all rows."""
    empty = np.empty(0, np.uint64)
    hashed = [hasher.hash(part) for part in parts if part.num_rows]
    return concat_hashes(hashed) if hashed else Hashes(empty, empty)


def _describe(samples: Sequence[pa.Table], columns: Sequence[str]) -> tuple[str, ...]:
    """The rows' keys as `id=1`, each once."""
    texts = (
        ", ".join(f"{name}={value}" for name, value in row.items())
        for part in samples
        for row in part.select(list(columns)).to_pylist()
    )
    return tuple(dict.fromkeys(texts))[:SAMPLES]
