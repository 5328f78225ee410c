"""Turns an ordered stretch of changes of one table into its net effect.

DESIGN §8: one operation per key, rows followed through key changes, and unchanged TOAST columns
found in an older change, in the old row, or left to the destination's own row (invariant 6).
Everything is Arrow and numpy over whole columns; no row becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from headrace.engine.factorize import Codes, factorize
from headrace.engine.gather import take, take_column
from headrace.engine.lineage import OUTSIDE, Ints, origins
from headrace.engine.ordered import (
    TRUNCATE,
    UPDATE,
    NamedKeys,
    OrderedChanges,
    in_order,
    joined,
    named_keys,
    operations,
    put_and_removed,
    unsent_lost,
)
from headrace.model import ChangeBatch, Fill, Lsn, NetChanges, TableSchema


def collapse(
    schema: TableSchema, batches: Sequence[ChangeBatch], after: Lsn, *, keep: bool = False
) -> NetChanges:
    """The net effect of the changes in `batches` that were committed after `after`.

    `batches` are in position order and may have older versions of `schema`, which is the newest.
    Upserts of a keyed table come in position order. A key that came and went inside the stretch is
    deleted, which does no harm. With `keep` a keyed row stays where another one moved away from its
    key; the batches hold no deletes.

    Raises:
        UnsupportedSchemaChangeError: an older batch differs by more than added columns.
        DivergedError: a column was not sent and nothing holds its value.
        LogCorruptError: a change lacks the old key, or the old row, that it must have.
    """
    data, truncate = _since_truncate(joined(schema, batches, after))
    stretch = in_order(schema, data, truncate=truncate)
    return _net_by_key(stretch, keep=keep) if schema.key else _net_by_row(stretch)


def _since_truncate(data: pa.Table) -> tuple[pa.Table, bool]:
    truncates = np.flatnonzero(operations(data) == TRUNCATE)
    return (data.slice(truncates[-1] + 1), True) if len(truncates) else (data, False)


# -- tables with a key -----------------------------------------------------------------------------


def _net_by_key(stretch: OrderedChanges, *, keep: bool) -> NetChanges:
    keys = named_keys(stretch)
    events = keys.events.without_removals() if keep else keys.events
    standing, gone = events.last(keys.count)
    deletes = keys.old(gone)
    if not stretch.unsent:
        upserts = take(stretch.rows, standing)
        return NetChanges(stretch.schema, upserts, deletes, truncate=stretch.truncate)
    upserts, roots = _follow(keys, standing)
    fills = tuple(_fills(keys, roots))
    return NetChanges(stretch.schema, upserts, deletes, fills, stretch.truncate)


def _follow(keys: NamedKeys, standing: Ints) -> tuple[pa.Table, dict[str, Ints]]:
    """The rows of `standing` with values from older changes, and where each value came from."""
    stretch = keys.changes
    predecessors = keys.events.predecessors(stretch.ops == UPDATE)
    roots = {n: origins(m, predecessors)[standing] for n, m in stretch.unsent.items()}
    for name, root in roots.items():
        lost = stretch.unsent[name][root] & ((predecessors[root] != OUTSIDE) | stretch.truncate)
        if lost.any():
            raise unsent_lost(stretch.schema, name)
    sent = [n for n in stretch.rows.column_names if n not in roots]
    taken = take(stretch.rows.select(sent), standing)
    for name, root in roots.items():
        taken = taken.append_column(stretch.rows.field(name), take_column(stretch.rows[name], root))
    return taken.select(stretch.rows.column_names), roots


def _fills(keys: NamedKeys, roots: dict[str, Ints]) -> Iterator[Fill]:
    """What the destination's own rows must add, grouped by the set of columns."""
    lacking = {n: keys.changes.unsent[n][root] for n, root in roots.items()}
    rows = np.flatnonzero(np.logical_or.reduce(list(lacking.values())))
    sets = factorize(pa.table({n: mask[rows] for n, mask in lacking.items()}), zeros_equal=True)
    for number in range(sets.distinct):
        chosen = rows[sets.values == number]
        columns = tuple(n for n, mask in lacking.items() if mask[chosen[0]])
        # All lacking columns of a row end at the same change: its oldest one.
        yield Fill(columns, chosen, keys.old(roots[columns[0]][chosen]))


# -- tables without a key --------------------------------------------------------------------------


def _net_by_row(stretch: OrderedChanges) -> NetChanges:
    if not len(stretch.removals):
        upserts = take(stretch.rows, stretch.puts)
        return NetChanges(
            stretch.schema, upserts, upserts.schema.empty_table(), (), stretch.truncate
        )
    rows = put_and_removed(stretch, stretch.rows.column_names)
    codes = factorize(rows, zeros_equal=False)
    counts = _net_counts(codes, len(stretch.puts))
    specimen = np.empty(codes.distinct, np.int64)
    specimen[codes.values] = np.arange(len(codes.values))
    upserts = take(rows, np.repeat(specimen, np.maximum(counts, 0)))
    deletes = take(rows, np.repeat(specimen, np.maximum(-counts, 0)))
    return NetChanges(stretch.schema, upserts, deletes, truncate=stretch.truncate)


def _net_counts(codes: Codes, puts: int) -> Ints:
    put, removed = np.split(codes.values, [puts])
    return np.bincount(put, minlength=codes.distinct) - np.bincount(
        removed, minlength=codes.distinct
    )
