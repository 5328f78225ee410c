"""Which range of a table's key a row is in, and the net effect of changes inside of some ranges.

Ranges that were copied at different times stand at different LSNs. Those that are behind are
brought on by the changes in between, which the others hold already. So of the net effect of all
changes only what happens to keys of the ranges behind is of use: a row that moved out of them is
deleted, one that moved into them is added. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from headrace.engine.factorize import factorize
from headrace.engine.gather import take
from headrace.engine.lineage import Bools, Ints
from headrace.errors import TableRewrittenError
from headrace.model import Fill, KeyRange, NetChanges, TableId

_UUID_CHARACTERS = 36


def places(ranges: Sequence[KeyRange], keys: pa.Table) -> Ints:
    """The number of the range that each row is in, by the first column of `keys`.

    `ranges` tile the key's values, in order.
    """
    column = keys.column(0)
    bounds = pa.array([part.low for part in ranges[1:]], pa.string()).cast(column.type)
    found: Ints = np.searchsorted(_ordered(bounds), _ordered(column), "right")
    return found


def _ordered(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Values in numpy, whose order is that of Postgres; see `model.KeyRange`."""
    if pa.types.is_string(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False)).astype(f"S{_UUID_CHARACTERS}")
    width = pa.int32() if values.type == pa.date32() else values.type
    whole = pa.int64() if pa.types.is_timestamp(values.type) else width
    return np.asarray(values.cast(whole).to_numpy())


def among(rows: pa.Table, keys: pa.Table) -> Bools:
    """Which rows have one of `keys`; both tables hold the columns of the key."""
    codes = factorize(pa.concat_tables([keys, rows]), zeros_equal=True)
    wanted = np.zeros(codes.distinct, np.bool_)
    wanted[codes.values[: keys.num_rows]] = True
    return wanted[codes.values[keys.num_rows :]]


def inside(changes: NetChanges, ranges: Sequence[KeyRange], behind: Collection[int]) -> NetChanges:
    """What `changes` come to in the ranges with the numbers `behind`.

    Raises:
        TableRewrittenError: a row moved into them without a value that the source did not send
            (unchanged TOAST), out of a range that has let go of the row already.
    """
    numbers = np.array(sorted(behind))
    put = places(ranges, changes.upserts.select(list(changes.schema.key)))
    ours = selected(
        changes, np.isin(put, numbers), np.isin(places(ranges, changes.deletes), numbers)
    )
    for fill in ours.fills:
        if not np.isin(places(ranges, fill.keys), numbers).all():
            raise moved_without_value(changes.schema.table, fill.columns[0])
    return ours


def selected(changes: NetChanges, upserts: Bools, deletes: Bools) -> NetChanges:
    """Some of the upserts, with what they are filled from, and some of the deletes."""
    place, fills = np.cumsum(upserts) - 1, []
    for fill in changes.fills:
        wanted = np.flatnonzero(upserts[fill.rows])
        fills.append(Fill(fill.columns, place[fill.rows[wanted]], take(fill.keys, wanted)))
    return NetChanges(
        changes.schema,
        take(changes.upserts, np.flatnonzero(upserts)),
        take(changes.deletes, np.flatnonzero(deletes)),
        tuple(fill for fill in fills if len(fill.rows)),
        changes.truncate,
    )


def moved_without_value(table: TableId, column: str) -> TableRewrittenError:
    return TableRewrittenError(
        f"{table}: a row moved to another key between two snapshots of its ranges, and the stream "
        f"did not tell its {column}",
        hint="Headrace copies the table anew, as of one moment",
    )
