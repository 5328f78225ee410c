"""Turns an ordered stretch of changes of one table into its net effect.

DESIGN §8: one operation per key, rows followed through key changes, and unchanged TOAST columns
found in an older change, in the old row, or left to the destination's own row (invariant 6).
Everything is Arrow and numpy over whole columns; no row becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.conform import conform, with_common_identity
from headrace.engine.factorize import Codes, factorize
from headrace.engine.gather import take, take_column
from headrace.engine.lineage import OUTSIDE, Bools, Ints, KeyEvents, origins
from headrace.engine.unchanged import unsent_columns
from headrace.errors import DivergedError, LogCorruptError
from headrace.model import (
    BEFORE,
    COMMIT_LSN,
    OP,
    UNCHANGED,
    ChangeBatch,
    Fill,
    Lsn,
    NetChanges,
    TableSchema,
    change_schema,
)

_INSERT, _UPDATE, _DELETE, _TRUNCATE = range(4)
_OPS = pa.array(["i", "u", "d", "t"])


def collapse(schema: TableSchema, batches: Sequence[ChangeBatch], after: Lsn) -> NetChanges:
    """The net effect of the changes in `batches` that were committed after `after`.

    `batches` are in position order and may have older versions of `schema`, which is the newest.
    Upserts of a keyed table come in position order. A key that came and went inside the stretch is
    deleted, which does no harm.

    Raises:
        UnsupportedSchemaChangeError: an older batch differs by more than added columns.
        DivergedError: a column was not sent and nothing holds its value.
        LogCorruptError: a change lacks the old key, or the old row, that it must have.
    """
    stretch = _complete(_read(schema, batches, after))
    return _net_by_key(stretch) if schema.key else _net_by_row(stretch)


@dataclass(frozen=True)
class _Stretch:
    """The changes after the last truncate, if there was one, column by column.

    `before` holds those columns of old rows that are of use, and means something in the rows that
    `has_before` marks. `unsent` marks, for each column that some row lacks, the rows that do.
    """

    schema: TableSchema
    truncate: bool
    ops: Ints
    rows: pa.Table
    before: pa.Table
    has_before: Bools
    unsent: dict[str, Bools]

    @property
    def puts(self) -> Ints:
        """The changes that leave a row."""
        return np.flatnonzero(self.ops <= _UPDATE)

    @property
    def removals(self) -> Ints:
        """The changes that name an old row."""
        return np.flatnonzero(self.has_before)


def _read(schema: TableSchema, batches: Sequence[ChangeBatch], after: Lsn) -> _Stretch:
    data, truncate = _since_truncate(_join(schema, batches, after))
    ops = _ops(data)
    has_before = data[BEFORE].is_valid().to_numpy()
    unsent = unsent_columns(data[UNCHANGED], schema.names)
    old = _unnest(data[BEFORE])
    wanted = [n for n in old.column_names if not schema.key or n in schema.key or n in unsent]
    stretch = _Stretch(
        schema,
        truncate,
        ops,
        data.select(schema.names).combine_chunks(),
        old.select(wanted).combine_chunks(),
        has_before,
        unsent,
    )
    _require_old_rows(stretch)
    return stretch


def _join(schema: TableSchema, batches: Sequence[ChangeBatch], after: Lsn) -> pa.Table:
    common = with_common_identity(schema, batches)
    parts = [_committed_after(conform(batch, common).data, after) for batch in batches]
    return pa.Table.from_batches(parts, schema=change_schema(common))


def _committed_after(data: pa.RecordBatch, after: Lsn) -> pa.RecordBatch:
    newer = data[COMMIT_LSN].to_numpy() > np.uint64(after)
    return data if newer.all() else data.filter(pa.array(newer))


def _since_truncate(data: pa.Table) -> tuple[pa.Table, bool]:
    truncates = np.flatnonzero(_ops(data) == _TRUNCATE)
    return (data.slice(truncates[-1] + 1), True) if len(truncates) else (data, False)


def _ops(data: pa.Table) -> Ints:
    ops: Ints = pc.index_in(data[OP], value_set=_OPS).to_numpy()
    return ops


def _unnest(structs: pa.ChunkedArray) -> pa.Table:
    names = [field.name for field in structs.type]
    return pa.Table.from_arrays(structs.flatten(), names=names)


def _require_old_rows(stretch: _Stretch) -> None:
    needed = stretch.ops == _DELETE if stretch.schema.key else stretch.ops != _INSERT
    if np.any(needed & ~stretch.has_before):
        table = stretch.schema.table
        raise LogCorruptError(
            f"the change log has a change of {table} without the old row's key",
            hint=f"headrace resync {table}",
            table=str(table),
        )


def _complete(stretch: _Stretch) -> _Stretch:
    """Takes unsent values from the change's own old row, as far as it tells them.

    Under FULL that is every value; otherwise that of a key column that is itself TOASTed.
    """
    rows, unsent = stretch.rows, {}
    for name, mask in stretch.unsent.items():
        known = mask & stretch.has_before & (name in stretch.before.column_names)
        if known.any():
            place = rows.column_names.index(name)
            both = pa.chunked_array([*rows[name].chunks, *stretch.before[name].chunks])
            source = np.arange(len(mask)) + known * len(mask)
            rows = rows.set_column(place, rows.field(name), take_column(both, source))
        if (still := mask & ~known).any():
            unsent[name] = still
    for name in unsent:
        if not stretch.schema.key or name in stretch.schema.key:
            raise _lost(stretch.schema, name)
    return replace(stretch, rows=rows, unsent=unsent)


# -- tables with a key -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Keys:
    """Every key that a stretch names: first under which rows were put, then those of old rows."""

    stretch: _Stretch
    table: pa.Table
    events: KeyEvents
    count: int

    def old(self, changes: Ints) -> pa.Table:
        """The keys of the rows before `changes`, as the destination holds them."""
        s = self.stretch
        put = np.searchsorted(s.puts, changes)
        told = len(s.puts) + np.searchsorted(s.removals, changes)
        return take(self.table, np.where(s.has_before[changes], told, put))


def _keys(stretch: _Stretch) -> _Keys:
    names = list(stretch.schema.key)
    puts, removals = stretch.puts, stretch.removals
    table = _put_and_removed(stretch, names)
    codes = factorize(table, zeros_equal=True)
    put, removed = np.full(len(stretch.ops), -1), np.full(len(stretch.ops), -1)
    put[puts], removed[removals] = np.split(codes.values, [len(puts)])
    removed[removed == put] = -1  # Postgres also tells old keys that did not change
    return _Keys(stretch, table, KeyEvents(removed, put), codes.distinct)


def _put_and_removed(stretch: _Stretch, names: Sequence[str]) -> pa.Table:
    rows = take(stretch.rows.select(names), stretch.puts)
    return pa.concat_tables([rows, take(stretch.before.select(names), stretch.removals)])


def _net_by_key(stretch: _Stretch) -> NetChanges:
    keys = _keys(stretch)
    standing, gone = keys.events.last(keys.count)
    deletes = keys.old(gone)
    if not stretch.unsent:
        upserts = take(stretch.rows, standing)
        return NetChanges(stretch.schema, upserts, deletes, truncate=stretch.truncate)
    upserts, roots = _follow(keys, standing)
    fills = tuple(_fills(keys, roots))
    return NetChanges(stretch.schema, upserts, deletes, fills, stretch.truncate)


def _follow(keys: _Keys, standing: Ints) -> tuple[pa.Table, dict[str, Ints]]:
    """The rows of `standing` with values from older changes, and where each value came from."""
    stretch = keys.stretch
    predecessors = keys.events.predecessors(stretch.ops == _UPDATE)
    roots = {n: origins(m, predecessors)[standing] for n, m in stretch.unsent.items()}
    for name, root in roots.items():
        lost = stretch.unsent[name][root] & ((predecessors[root] != OUTSIDE) | stretch.truncate)
        if lost.any():
            raise _lost(stretch.schema, name)
    sent = [n for n in stretch.rows.column_names if n not in roots]
    taken = take(stretch.rows.select(sent), standing)
    for name, root in roots.items():
        taken = taken.append_column(stretch.rows.field(name), take_column(stretch.rows[name], root))
    return taken.select(stretch.rows.column_names), roots


def _fills(keys: _Keys, roots: dict[str, Ints]) -> Iterator[Fill]:
    """What the destination's own rows must add, grouped by the set of columns."""
    lacking = {n: keys.stretch.unsent[n][root] for n, root in roots.items()}
    rows = np.flatnonzero(np.logical_or.reduce(list(lacking.values())))
    sets = factorize(pa.table({n: mask[rows] for n, mask in lacking.items()}), zeros_equal=True)
    for number in range(sets.distinct):
        chosen = rows[sets.values == number]
        columns = tuple(n for n, mask in lacking.items() if mask[chosen[0]])
        # All lacking columns of a row end at the same change: its oldest one.
        yield Fill(columns, chosen, keys.old(roots[columns[0]][chosen]))


def _lost(schema: TableSchema, column: str) -> DivergedError:
    return DivergedError(
        f"an update of {schema.table} left column {column} unsent, and nothing holds its value",
        hint=f"headrace resync {schema.table}",
        table=str(schema.table),
        column=column,
    )


# -- tables without a key --------------------------------------------------------------------------


def _net_by_row(stretch: _Stretch) -> NetChanges:
    if not len(stretch.removals):
        upserts = take(stretch.rows, stretch.puts)
        return NetChanges(
            stretch.schema, upserts, upserts.schema.empty_table(), (), stretch.truncate
        )
    rows = _put_and_removed(stretch, stretch.rows.column_names)
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
