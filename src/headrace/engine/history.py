"""Turns an ordered stretch of changes of one table into versions: every state that a row had.

A version is what a transaction left under a key, so several changes of a row inside one transaction
make one version, and a transaction that leaves the tracked columns as they were makes none. It
stands from the transaction that brought it to the one that replaced or removed it; the current one
has no end. Order is that of the log. Times are the source's commit times, moved on by a microsecond
where they do not grow from one version of a key to the next.

Invariant 5: one row per version and key, no overlap, no gap, no version that nobody wrote. A pure
function of the changes and of the versions that stand; Arrow and numpy over whole columns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.engine.decorating import require_free
from headrace.engine.factorize import factorize
from headrace.engine.gather import take, take_column
from headrace.engine.lineage import OUTSIDE, Bools, Ints, origins
from headrace.engine.ordered import (
    TRUNCATE,
    UPDATE,
    NamedKeys,
    OrderedChanges,
    in_order,
    joined,
    named_keys,
    unsent_lost,
)
from headrace.errors import UnsuitableShapeError
from headrace.model import (
    COMMIT_LSN,
    COMMIT_TS,
    END_AT,
    START_AT,
    ChangeBatch,
    Column,
    Lsn,
    NetChanges,
    TableSchema,
)

TIME: Final = pa.timestamp("us", "UTC")
_NONE: Final = -1
_NEVER: Final = np.iinfo(np.int64).max
_EPOCH: Final = datetime.fromtimestamp(0, UTC)

# The versions that stand under keys: positions among the keys asked for, and the rows. Given with
# the keys is the time of the oldest change; of keys without a current version those are told that
# ended at that time or later, for the next one must not begin before.
Standing = Callable[[pa.Table, datetime], tuple[npt.NDArray[np.intp], pa.Table]]


def versioned(schema: TableSchema, since: datetime | None = None) -> TableSchema:
    """The columns of a table that keeps the history of `schema`'s rows; rows of a snapshot stand
    `since` it was taken, as `missing` tells.

    Raises:
        UnsuitableShapeError: the table has no key, by which a row's versions belong together, or
            has a column of such a name itself.
    """
    if not schema.key:
        raise UnsuitableShapeError(
            f"{schema.table} has no key, and mode: scd2 needs one to tell whose version a row is",
            hint=f"ALTER TABLE {schema.table.quoted} ADD PRIMARY KEY (…), name unique "
            "columns with key:, or set mode: append",
            table=str(schema.table),
        )
    require_free(schema, (START_AT, END_AT))
    period = tuple(Column(name, TIME, "timestamptz") for name in (START_AT, END_AT))
    began = {} if since is None else {START_AT: pa.scalar(since, TIME)}
    return replace(schema, columns=schema.columns + period, missing={**schema.missing, **began})


def require_tracked(schema: TableSchema, tracked: Sequence[str]) -> None:
    """Refuse a table that lacks a column which `track` names."""
    for name in tracked:
        if name not in schema.names:
            raise UnsuitableShapeError(
                f"track: {schema.table} has no column {name}",
                hint=f"name some of {', '.join(schema.names)}",
                table=str(schema.table),
                column=name,
            )


def history(
    schema: TableSchema,
    batches: Sequence[ChangeBatch],
    after: Lsn,
    tracked: Collection[str],
    standing: Standing,
) -> NetChanges:
    """The versions that the changes committed after `after` bring, end or amend.

    Upserts have `schema`'s columns, in the types that the table holds them in, START_AT and END_AT:
    new versions, and those that stood and now have an end, or other values in columns that are not
    `tracked`. Where there was a truncate, every current row that is not named here ends too.

    Raises:
        UnsupportedSchemaChangeError: an older batch differs by more than can be followed.
        DivergedError: a column was not sent and nothing holds its value.
        LogCorruptError: a change lacks the old key that it must have.
    """
    data = joined(schema, batches, after)
    changes = in_order(schema, data)
    stretch = _Stretch.of(changes, data, standing)
    states = stretch.states()
    values = stretch.values(states)
    runs = _Runs.of(states, values, [n for n in schema.names if n in tracked])
    times = stretch.times(states, runs)
    truncates = np.flatnonzero(changes.ops == TRUNCATE)
    kept = runs.worth_writing(states, values, anyway=bool(len(truncates)))
    rows = take(values, states.row[runs.last[kept]])
    for name, column in ((START_AT, times.start[kept]), (END_AT, times.end[kept])):
        rows = rows.append_column(name, _moments(column))
    return NetChanges(
        schema,
        rows,
        deletes=take(stretch.keys, states.gone()),
        truncate=bool(len(truncates)),
        truncated_at=_moment(stretch.times_of[truncates[0]]) if len(truncates) else None,
    )


@dataclass(frozen=True)
class _States:
    """What transactions left under keys, ordered by key and position.

    Each has the code of its `key`, the `change` that left it (_NONE where it stood before), and
    where its row is: `source`, the change that put it, or n + its place among the rows that stood,
    n being the number of changes; _NONE where there is no row. `row` numbers those with one.
    """

    key: Ints
    change: Ints
    source: Ints

    @property
    def exists(self) -> Bools:
        return cast("Bools", self.source != _NONE)

    @property
    def row(self) -> Ints:
        return np.cumsum(self.exists) - 1

    @property
    def follows(self) -> Bools:
        """Whether the state before is of the same key."""
        return np.concatenate([[False], self.key[1:] == self.key[:-1]])[: len(self.key)]

    def gone(self) -> Ints:
        """The keys whose row stood before, and stands no more."""
        final = np.concatenate([~self.follows[1:], [True]])[: len(self.key)]
        stood = self.key[self.change == _NONE]
        lost = self.key[final & ~self.exists]
        return np.intersect1d(stood, lost)


@dataclass(frozen=True)
class _Stretch:
    """The changes, the keys that they name, by code, and the versions that stand under these."""

    changes: OrderedChanges
    named: NamedKeys
    keys: pa.Table
    stood: pa.Table
    held: Ints  # per key the place of its current row in `stood`, or _NONE
    ended: Ints  # keys, and the places in `stood` of versions of theirs that ended
    transactions: Ints  # per change
    times_of: Ints  # per change, microseconds

    @classmethod
    def of(cls, changes: OrderedChanges, data: pa.Table, standing: Standing) -> _Stretch:
        named = named_keys(changes)
        keys = take(named.table, named.specimens())
        times = data[COMMIT_TS].cast(pa.int64()).to_numpy()
        which, stood = standing(keys, _moment(times.min() if len(times) else 0))
        place, is_current = np.arange(len(which)), stood[END_AT].is_null().to_numpy()
        held = np.full(named.count, _NONE)
        held[which[is_current]] = place[is_current]
        ended = np.stack([which[~is_current], place[~is_current]])
        lsn = data[COMMIT_LSN].to_numpy()
        transactions = np.cumsum(np.concatenate([[0], lsn[1:] != lsn[:-1]]))[: len(lsn)]
        return cls(changes, named, keys, stood, held, ended, transactions, times)

    def states(self) -> _States:
        """What each transaction left under each key that it touched, and what stood before."""
        key, time, source = self._events()
        order = np.lexsort((time, key))
        key, change, source = key[order], time[order] // 2, source[order]
        transaction = self.transactions[change]
        again = (key[1:] == key[:-1]) & (transaction[1:] == transaction[:-1])
        last = np.concatenate([~again, [True]])[: len(key)]
        stood = np.flatnonzero(self.held != _NONE)
        key = np.concatenate([stood, key[last]])
        change = np.concatenate([np.full(len(stood), _NONE), change[last]])
        source = np.concatenate([len(self.changes.ops) + self.held[stood], source[last]])
        order = np.lexsort((change, key))
        return _States(key[order], change[order], source[order])

    def _events(self) -> tuple[Ints, Ints, Ints]:
        """Keys, times and sources of all that happened to rows: change c removes at 2c, puts at
        2c + 1."""
        events = self.named.events
        removals = np.flatnonzero(events.removed != _NONE)
        puts = np.flatnonzero(events.put != _NONE)
        key = np.concatenate([events.removed[removals], events.put[puts]])
        time = np.concatenate([2 * removals, 2 * puts + 1])
        source = np.concatenate([np.full(len(removals), _NONE), puts])
        truncates = 2 * np.flatnonzero(self.changes.ops == TRUNCATE)
        if not len(truncates):
            return key, time, source
        # One takes away what the event before it left, and the first one what stood before all.
        following = np.searchsorted(truncates, time)
        cut = np.flatnonzero(following < len(truncates))
        every = np.arange(self.named.count)
        key = np.concatenate([key, key[cut], every])
        first = np.full(len(every), truncates[0])
        time = np.concatenate([time, truncates[following[cut]], first])
        return key, time, np.concatenate([source, np.full(len(cut) + len(every), _NONE)])

    def values(self, states: _States) -> pa.Table:
        """The rows of the states that have one, unsent columns taken from where they were sent."""
        source = states.source[states.exists]
        roots = self._roots(source)
        columns = {}
        for name in self.changes.schema.names:
            kind = self.stood.schema.field(name).type
            put, stood = self.changes.rows[name].cast(kind), self.stood[name]
            both = pa.chunked_array([*put.chunks, *stood.chunks], kind)
            columns[name] = take_column(both, roots.get(name, source))
        return pa.table(columns)

    def _roots(self, source: Ints) -> dict[str, Ints]:
        """For each column that some change did not send, where the values of `source` are."""
        changes, events = self.changes, self.named.events
        if not changes.unsent:
            return {}
        n = len(changes.ops)
        predecessors = events.predecessors(changes.ops == UPDATE)
        truncates = np.flatnonzero(changes.ops == TRUNCATE)
        first = truncates[0] if len(truncates) else n
        old = np.where(events.removed == _NONE, events.put, events.removed)
        put = np.flatnonzero(source < n)
        found = {}
        for name, mask in changes.unsent.items():
            root = origins(mask, predecessors)[source[put]]
            lacking = mask[root]
            stood = self.held[old[root]]
            lost = (predecessors[root] != OUTSIDE) | (root > first) | (stood == _NONE)
            if (lacking & lost).any():
                raise unsent_lost(changes.schema, name)
            found[name] = source.copy()
            found[name][put] = np.where(lacking, n + stood, root)
        return found

    def times(self, states: _States, runs: _Runs) -> _Times:
        """When the runs begin and end."""
        bounds = np.flatnonzero(runs.bounds)
        times = self.times_of[states.change[bounds]]
        before = np.flatnonzero(states.change[bounds] == _NONE)
        if len(before):
            places = states.source[bounds[before]] - len(self.changes.ops)
            times[before] = _microseconds(self.stood[START_AT])[places]
        key = states.key[bounds]
        times = self._after_ended(times, key)
        begins = np.flatnonzero(states.exists[bounds])
        following = np.append(np.where(key[1:] == key[:-1], times[1:], _NEVER), _NEVER)
        return _Times(times[begins], following[: len(key)][begins])

    def _after_ended(self, times: Ints, key: Ints) -> Ints:
        """The times, moved on where they do not grow: from those of versions that ended, too."""
        ended, places = self.ended
        ends = _microseconds(self.stood[END_AT])[places]
        in_time = np.argsort(ends)
        keys = np.concatenate([ended[in_time], key])
        order = np.argsort(keys, kind="stable")
        grown = increasing(np.concatenate([ends[in_time], times])[order], keys[order])
        return grown[order >= len(ended)]


@dataclass(frozen=True)
class _Times:
    """Of each run, in microseconds; _NEVER for the end of one that is current."""

    start: Ints
    end: Ints


@dataclass(frozen=True)
class _Runs:
    """States of a key that follow each other with the same tracked values: one version.

    `bounds` marks the states that begin a run or end one with nothing after it; `first` and `last`
    are the places of each run's states.
    """

    bounds: Bools
    first: Ints
    last: Ints
    exact: bool  # whether all columns are tracked

    @classmethod
    def of(cls, states: _States, values: pa.Table, tracked: Sequence[str]) -> _Runs:
        codes = factorize(values.select(tracked), zeros_equal=False).values
        exists = states.exists
        code = np.full(len(exists), _NONE)
        code[exists] = codes
        before = np.where(states.follows, np.roll(code, 1), _NONE)
        bounds = code != before
        begins = np.flatnonzero(bounds & exists)
        ends = np.append(bounds[1:] | ~states.follows[1:], True)[: len(bounds)]
        last = np.flatnonzero(ends & exists)
        return cls(bounds, begins, last, len(tracked) == values.num_columns)

    def worth_writing(self, states: _States, values: pa.Table, *, anyway: bool) -> Ints:
        """The runs that are not just what stands already."""
        stood = states.change[self.first] == _NONE
        following = np.append(states.follows, False)[self.last + 1]
        as_before = stood & ~following
        if not self.exact and as_before.any():
            codes = factorize(values, zeros_equal=False).values
            row = states.row
            as_before &= codes[row[self.first]] == codes[row[self.last]]
        return np.flatnonzero(~as_before | anyway)


def increasing(times: Ints, key: Ints) -> Ints:
    """The times, each moved on where it is not after the one before it of the same key.

    Equal keys stand together.
    """
    same = key[1:] == key[:-1]
    if not np.any(same & (times[1:] <= times[:-1])):
        return times
    place = np.arange(len(times))
    began = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), place, 0))
    rank = place - began
    levels, level = np.unique(times - rank, return_inverse=True)
    highest = np.maximum.accumulate(began * len(levels) + level) % len(levels)
    grown: Ints = levels[highest] + rank
    return grown


def _microseconds(times: pa.ChunkedArray) -> Ints:
    return cast("Ints", times.cast(pa.int64()).fill_null(0).to_numpy())


def _moments(times: Ints) -> pa.Array:
    return pa.array(times, pa.int64(), mask=times == _NEVER).cast(TIME)


def _moment(time: np.int64 | int) -> datetime:
    return _EPOCH + timedelta(microseconds=int(time))
