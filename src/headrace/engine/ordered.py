"""Changes of one table in order, column by column, and the keys that they name.

What collapsing to net changes (collapse.py) and making versions (history.py) have in common.
Everything is Arrow and numpy over whole columns; no row becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.conform import conform, with_common_identity
from headrace.engine.factorize import factorize
from headrace.engine.gather import take, take_column
from headrace.engine.lineage import Bools, Ints, KeyEvents
from headrace.engine.unchanged import unsent_columns
from headrace.errors import DivergedError, LogCorruptError
from headrace.model import (
    BEFORE,
    COMMIT_LSN,
    OP,
    UNCHANGED,
    ChangeBatch,
    Lsn,
    TableSchema,
    change_schema,
)

INSERT, UPDATE, DELETE, TRUNCATE = range(4)
_OPS = pa.array(["i", "u", "d", "t"])
_NONE: Final = -1


@dataclass(frozen=True)
class OrderedChanges:
    """Changes of one table in order of position, column by column.

    `truncate` says whether there was one before them all.

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
        return np.flatnonzero(self.ops <= UPDATE)

    @property
    def removals(self) -> Ints:
        """The changes that name an old row."""
        return np.flatnonzero(self.has_before)


def in_order(schema: TableSchema, data: pa.Table, *, truncate: bool = False) -> OrderedChanges:
    """The changes of `data`, as `joined` gives them.

    Raises:
        DivergedError: a column was not sent and cannot be anywhere else.
        LogCorruptError: a change lacks the old key, or the old row, that it must have.
    """
    ops = operations(data)
    has_before = data[BEFORE].is_valid().to_numpy()
    unsent = unsent_columns(data[UNCHANGED], schema.names)
    old = _unnest(data[BEFORE])
    wanted = [n for n in old.column_names if not schema.key or n in schema.key or n in unsent]
    changes = OrderedChanges(
        schema,
        truncate,
        ops,
        data.select(schema.names).combine_chunks(),
        old.select(wanted).combine_chunks(),
        has_before,
        unsent,
    )
    _require_old_rows(changes)
    return _complete(changes)


def joined(schema: TableSchema, batches: Sequence[ChangeBatch], after: Lsn) -> pa.Table:
    """The changes committed after `after`, one table as `change_schema` lays it out.

    Raises:
        UnsupportedSchemaChangeError: an older batch differs by more than `schema` can follow.
    """
    common = with_common_identity(schema, batches)
    parts = [_committed_after(conform(batch, common).data, after) for batch in batches]
    return pa.Table.from_batches(parts, schema=change_schema(common))


def _committed_after(data: pa.RecordBatch, after: Lsn) -> pa.RecordBatch:
    newer = data[COMMIT_LSN].to_numpy() > np.uint64(after)
    return data if newer.all() else data.filter(pa.array(newer))


def operations(data: pa.Table) -> Ints:
    """Per change INSERT, UPDATE, DELETE or TRUNCATE."""
    ops: Ints = pc.index_in(data[OP], value_set=_OPS).to_numpy()
    return ops


def _unnest(structs: pa.ChunkedArray) -> pa.Table:
    names = [field.name for field in structs.type]
    return pa.Table.from_arrays(structs.flatten(), names=names)


def _require_old_rows(changes: OrderedChanges) -> None:
    needed = changes.ops == DELETE if changes.schema.key else changes.ops != INSERT
    if np.any(needed & ~changes.has_before):
        table = changes.schema.table
        raise LogCorruptError(
            f"the change log has a change of {table} without the old row's key",
            hint=f"headrace resync {table}",
            table=str(table),
        )


def _complete(changes: OrderedChanges) -> OrderedChanges:
    """Takes unsent values from the change's own old row, as far as it tells them.

    Under FULL that is every value; otherwise that of a key column that is itself TOASTed.
    """
    rows, unsent = changes.rows, {}
    for name, mask in changes.unsent.items():
        known = mask & changes.has_before & (name in changes.before.column_names)
        if known.any():
            place = rows.column_names.index(name)
            both = pa.chunked_array([*rows[name].chunks, *changes.before[name].chunks])
            source = np.arange(len(mask)) + known * len(mask)
            rows = rows.set_column(place, rows.field(name), take_column(both, source))
        if (still := mask & ~known).any():
            unsent[name] = still
    for name in unsent:
        if not changes.schema.key or name in changes.schema.key:
            raise unsent_lost(changes.schema, name)
    return replace(changes, rows=rows, unsent=unsent)


@dataclass(frozen=True)
class NamedKeys:
    """Every key that changes name: first under which rows were put, then those of old rows."""

    changes: OrderedChanges
    table: pa.Table
    events: KeyEvents
    count: int

    def old(self, places: Ints) -> pa.Table:
        """The keys of the rows before the changes at `places`, as the destination holds them."""
        s = self.changes
        put = np.searchsorted(s.puts, places)
        told = len(s.puts) + np.searchsorted(s.removals, places)
        return take(self.table, np.where(s.has_before[places], told, put))

    def specimens(self) -> Ints:
        """For each code, the place of its key in `table`."""
        s, events = self.changes, self.events
        found = np.empty(self.count, np.int64)
        removed = events.removed[s.removals]
        found[removed[removed != _NONE]] = len(s.puts) + np.flatnonzero(removed != _NONE)
        found[events.put[s.puts]] = np.arange(len(s.puts))
        return found


def named_keys(changes: OrderedChanges) -> NamedKeys:
    names = list(changes.schema.key)
    puts, removals = changes.puts, changes.removals
    table = put_and_removed(changes, names)
    codes = factorize(table, zeros_equal=True)
    put, removed = np.full(len(changes.ops), -1), np.full(len(changes.ops), -1)
    put[puts], removed[removals] = np.split(codes.values, [len(puts)])
    removed[removed == put] = -1  # Postgres also tells old keys that did not change
    return NamedKeys(changes, table, KeyEvents(removed, put), codes.distinct)


def put_and_removed(changes: OrderedChanges, names: Sequence[str]) -> pa.Table:
    rows = take(changes.rows.select(names), changes.puts)
    return pa.concat_tables([rows, take(changes.before.select(names), changes.removals)])


def unsent_lost(schema: TableSchema, column: str) -> DivergedError:
    return DivergedError(
        f"an update of {schema.table} left column {column} unsent, and nothing holds its value",
        hint=f"headrace resync {schema.table}",
        table=str(schema.table),
        column=column,
    )
