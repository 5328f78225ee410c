"""A batch of changes set against the table as it stands: which rows come, and which go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.connectors.delta.index import Locations
from headrace.connectors.delta.rows import RowIndex
from headrace.connectors.delta.types import to_stored
from headrace.model import Fill, NetChanges
from headrace.model.fingerprint import Hashes, concat_hashes


class RowsMissingError(Exception):
    """The table lacks rows that the changes say it must have; never leaves the connector."""


@dataclass(frozen=True)
class Changeset:
    """Rows to be added, with the numbers of their keys, and places of rows that go.

    `deleted` counts those of them that nothing brings back.
    """

    upserts: pa.Table
    hashes: Hashes
    doomed: Locations
    deleted: int


def set_against(rows: RowIndex, changes: NetChanges, stored: pa.Schema) -> Changeset:
    """What `changes` do to the rows that the index knows; `stored` is the table's Arrow schema.

    Raises:
        RowsMissingError: the table lacks a row that is to be deleted or to lend its values.
        NullKeyError: as `Hasher.hash` does.
    """
    upserts = to_stored(changes.upserts, stored)
    for fill in changes.fills:
        upserts = _filled(rows, upserts, fill)
    come = rows.hash(upserts.select(rows.schema.names))
    go = rows.hash(to_stored(changes.deletes, rows.schema))
    if not changes.schema.key:
        doomed = rows.find_each_once(go)
        if doomed is None:
            raise RowsMissingError("rows to be deleted are not there")
        return Changeset(upserts, come, doomed, len(doomed))
    which, where = rows.find(concat_hashes([go, come]))
    doomed, first = np.unique(where, return_index=True)
    return Changeset(upserts, come, doomed, int(np.count_nonzero(which[first] < len(go))))


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
