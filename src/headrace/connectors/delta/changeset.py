"""A batch of changes set against the table as it stands: which rows come, and which go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.delta.index import Locations
from headrace.connectors.delta.rows import RowIndex
from headrace.connectors.delta.types import to_stored
from headrace.model import Amendment, Fill, NetChanges
from headrace.model.fingerprint import Hashes, concat_hashes


class RowsMissingError(Exception):
    """The table lacks rows that the changes say it must have; never leaves the connector."""


@dataclass(frozen=True)
class Changeset:
    """Rows to be added, with the numbers of the keys of the first of them, and places of rows that
    go. The others have no key: they are history (see RowIndex).

    `deleted` counts those that go and that nothing brings back.
    """

    upserts: pa.Table
    hashes: Hashes
    doomed: Locations
    deleted: int

    def hashes_of(self, positions: npt.NDArray[np.int64]) -> Hashes:
        """Of some of the rows to be added, in order: the numbers of those that have a key."""
        return self.hashes.take(positions[positions < len(self.hashes)])


def set_against(rows: RowIndex, changes: NetChanges, stored: pa.Schema) -> Changeset:
    """What `changes` do to the rows that the index knows; `stored` is the table's Arrow schema.

    Raises:
        RowsMissingError: the table lacks a row that is to be deleted or to lend its values.
        NullKeyError: as `Hasher.hash` does.
    """
    upserts = to_stored(changes.upserts, stored)
    for fill in changes.fills:
        upserts = _filled(rows, upserts, fill)
    amended, left = _amended(rows, changes.amendments, stored)
    upserts, come = _keyed_first(rows, pa.concat_tables([upserts, *amended]))
    go = rows.hash(to_stored(changes.deletes, rows.schema))
    if not changes.schema.key:
        doomed = rows.find_each_once(go)
        if doomed is None:
            raise RowsMissingError("rows to be deleted are not there")
        return Changeset(upserts, come, doomed, len(doomed))
    which, where = rows.find(concat_hashes([go, come]))
    doomed, first = np.unique(np.concatenate([where, left]), return_index=True)
    taken = first[first < len(which)]
    return Changeset(upserts, come, doomed, int(np.count_nonzero(which[taken] < len(go))))


def _amended(
    rows: RowIndex, amendments: Sequence[Amendment], stored: pa.Schema
) -> tuple[list[pa.Table], Locations]:
    """The amended rows, and the places that they leave."""
    tables, places = [], [np.empty(0, np.uint64)]
    for amendment in amendments:
        which, where = rows.find(rows.hash(to_stored(amendment.keys, rows.schema)))
        table = rows.read(where, stored)
        for name in amendment.values.column_names:
            field = stored.field(name)
            values = to_stored(amendment.values.select([name]), pa.schema([field]))
            column = values.column(name).take(pa.array(which))
            table = table.set_column(stored.get_field_index(name), field, column)
        tables.append(table)
        places.append(where)
    return tables, np.concatenate(places)


def _keyed_first(rows: RowIndex, upserts: pa.Table) -> tuple[pa.Table, Hashes]:
    """The rows with history at the end, and the numbers of the keys of those before."""
    if rows.history is not None:
        current = upserts.column(rows.history).is_null()
        keyed = upserts.filter(current)
        upserts = pa.concat_tables([keyed, upserts.filter(pc.invert(current))])
    else:
        keyed = upserts
    return upserts, rows.hash(keyed.select(rows.schema.names))


def _filled(rows: RowIndex, upserts: pa.Table, fill: Fill) -> pa.Table:
    """The upserts with the old values of columns that the source did not send."""
    which, where = rows.find(rows.hash(to_stored(fill.keys, rows.schema)))
    found = np.zeros(len(fill.rows), np.bool_)
    found[which] = True
    if not found.all():
        missing = int(np.count_nonzero(~found))
        raise RowsMissingError(f"{missing} rows that keep their old values are not there")
    places = np.zeros(len(fill.rows), np.uint64)
    places[which] = where
    fields = pa.schema([upserts.schema.field(name) for name in fill.columns])
    old = rows.read(places, fields)
    for field in fields:
        column = _overlaid(upserts.column(field.name), old.column(field.name), fill.rows)
        upserts = upserts.set_column(upserts.schema.get_field_index(field.name), field, column)
    return upserts


def _overlaid(
    column: pa.ChunkedArray, values: pa.ChunkedArray, rows: npt.NDArray[np.int64]
) -> pa.ChunkedArray:
    """The column with `values` in place of its own at `rows`."""
    source = np.arange(len(column), dtype=np.int64)
    source[rows] = len(column) + np.arange(len(rows))
    return pa.chunked_array([*column.chunks, *values.chunks], column.type).take(pa.array(source))
