"""A Delta table that keeps every version of its rows: which stand, and which a snapshot brings.

Versions of a key that ended are found by nobody (RowIndex, `history`); the one that is current is
its row. What is here looks beyond that: at versions that ended lately, at all that are current when
the source is truncated, and at those that a new snapshot finds otherwise (a resync). No more than a
batch of rows is in memory, besides the index of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t
from pyroaring import BitMap

from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.change_files import changes_of_files, write_change_files
from headrace.connectors.delta.index import Locations
from headrace.connectors.delta.leaving import Leaving
from headrace.connectors.delta.retained import write_batches
from headrace.connectors.delta.rows import RowIndex, live_rows, load_vector, numbered_rows
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.stats import stats_of
from headrace.connectors.delta.types import to_stored
from headrace.connectors.delta.writer import write_vectors
from headrace.failpoints import hit
from headrace.log.storage import Storage
from headrace.model import END_AT, START_AT, Shape, TableSchema
from headrace.model.fingerprint import Hasher, Hashes

TIME: Final = pa.timestamp("us", "UTC")
TICK: Final = timedelta(microseconds=1)
_PERIOD: Final = pa.schema([(START_AT, TIME), (END_AT, TIME)])

# Other writers cut the bounds in statistics to milliseconds.
_CUT: Final = timedelta(milliseconds=1)

Standing = tuple[npt.NDArray[np.intp], pa.Table]


# -- what stands -----------------------------------------------------------------------------------


def standing(
    storage: Storage,
    state: TableState,
    rows: RowIndex,
    keys: pa.Table,
    since: datetime,
) -> Standing:
    """The current rows under `keys`, and of keys without one the versions that ended at `since` or
    later, with their key and times only: positions in `keys`, and the rows.

    Raises:
        NullKeyError: as `Hasher.hash` does.
    """
    wanted, stored = rows.hash(to_stored(keys, rows.schema)), state.columns
    which, where = rows.find(wanted)
    found = [(which, rows.read(where, stored))]
    lacking = np.setdiff1d(np.arange(len(wanted)), which)
    if len(lacking):
        for file in state.files.values():
            if _may_hold_end(file, since):
                found += _ended(storage, file, rows, wanted.take(lacking), lacking, stored, since)
    positions = np.concatenate([which for which, _ in found])
    return positions, pa.concat_tables([table for _, table in found])


def _may_hold_end(file: Mapping[str, Any], since: datetime) -> bool:
    """Whether, by its statistics, a version in a file may have ended at a time or later."""
    stats = stats_of(file)
    if stats.get("nullCount", {}).get(END_AT) == stats.get("numRecords", -1):
        return False
    top = stats.get("maxValues", {}).get(END_AT)
    return top is None or datetime.fromisoformat(top) + _CUT >= since


def _ended(
    storage: Storage,
    file: Mapping[str, Any],
    rows: RowIndex,
    wanted: Hashes,
    positions: npt.NDArray[np.intp],
    stored: pa.Schema,
    since: datetime,
) -> Iterator[Standing]:
    columns = pa.schema([*rows.schema, *_PERIOD])
    order = np.argsort(wanted.high)
    sorted_by_key = wanted.take(order)
    for part in live_rows(storage, file, columns, rows.deleted(file["path"])):
        late = part.filter(
            pc.fill_null(pc.greater_equal(part[END_AT], pa.scalar(since, TIME)), False)
        )
        hashes = rows.hash(late.select(rows.schema.names))
        place = np.minimum(np.searchsorted(sorted_by_key.high, hashes.high), len(wanted) - 1)
        same = sorted_by_key.high[place] == hashes.high
        if hashes.low is not None and sorted_by_key.low is not None:
            same &= sorted_by_key.low[place] == hashes.low
        hits = np.flatnonzero(same)
        yield positions[order[place[hits]]], to_stored(late.take(pa.array(hits)), stored)


def _current(
    storage: Storage, file: Mapping[str, Any], schema: pa.Schema, gone: BitMap | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], pa.Table]]:
    """Likewise, but current versions only; a file without any, by its statistics, is not read."""
    if stats_of(file).get("nullCount", {}).get(END_AT) == 0:
        return
    for numbers, rows in numbered_rows(storage, file, schema, gone):
        is_current = rows[END_AT].is_null().to_numpy()
        yield numbers[is_current], rows.filter(pa.array(is_current))


def _ending(rows: pa.Table, moment: datetime) -> pa.Table:
    """The rows, each ended at `moment`, or at once where it began no earlier."""
    after = pc.add(rows[START_AT], pa.scalar(TICK)).cast(TIME)
    end = pa.scalar(moment, TIME)
    ends = pc.if_else(pc.greater(after, end), after, end)
    place = rows.schema.get_field_index(END_AT)
    return rows.set_column(place, rows.schema.field(place), ends)


# -- a truncate ------------------------------------------------------------------------------------


@dataclass
class Closed:
    """Versions that ended: new files that hold them, and by file the rows that have gone."""

    adds: list[Action] = field(default_factory=list)
    deletions: dict[str, BitMap] = field(default_factory=dict)


def all_closed(
    storage: Storage,
    state: TableState,
    replaced: Mapping[str, BitMap],
    schema: pa.Schema,
    moment: datetime,
) -> Closed:
    """Every current version ends at `moment`, but for those in `replaced`, by file the rows that
    go anyway and those that went before.

    Raises:
        LogError: a file cannot be read or written.
    """
    closed = Closed(deletions=dict(replaced))

    def ended() -> Iterator[pa.Table]:
        for path, file in state.files.items():
            gone = replaced.get(path)
            gone = load_vector(storage, file.get("deletionVector")) if gone is None else gone
            for numbers, rows in _current(storage, file, schema, gone):
                if len(numbers):
                    before = closed.deletions.get(path, gone)
                    closed.deletions[path] = before | BitMap(numbers)
                    yield _ending(rows, moment)

    closed.adds = write_batches(storage, ended(), schema, state.partition_by)
    hit("delta.versions_closed")
    return closed


# -- another snapshot ------------------------------------------------------------------------------


def continued(
    storage: Storage,
    state: TableState,
    index: RowIndex,
    schema: TableSchema,
    snapshot: Iterable[pa.Table],
    shape: Shape,
) -> list[Action]:
    """What a snapshot's rows make of a table's versions: differences become versions.

    A row that is as its current version has it leaves that alone; another one ends it and begins a
    new one when the snapshot was taken, as its START_AT says; so do rows that came. Versions of
    rows that the snapshot lacks end. Where the source's clock has gone back, all this happens just
    after the newest time in the table.

    Raises:
        LogError: a file cannot be read or written.
        NullKeyError: as `Hasher.hash` does.
    """
    stored = state.columns
    moment = max(schema.missing[START_AT].as_py(), _newest(storage, state) + TICK)
    met = _Met(index, _source_columns(schema, stored, shape), shape.track)
    differing = (met.differing(rows, moment) for rows in snapshot)
    adds = write_batches(storage, differing, stored, state.partition_by)
    deletions: dict[str, BitMap] = {}

    def ended() -> Iterator[pa.Table]:
        for path, file in state.files.items():
            for numbers, rows in _current(storage, file, stored):
                kept = met.kept.get(path, BitMap())
                leaving = BitMap(numbers) - kept
                if leaving:
                    before = deletions.get(path) or load_vector(storage, file.get("deletionVector"))
                    deletions[path] = before | leaving
                    ends = leaving - met.amended.get(path, BitMap())
                    yield _ending(rows.filter(pc.is_in(pa.array(numbers), _numbers(ends))), moment)

    adds += write_batches(storage, ended(), stored, state.partition_by)
    hit("delta.versions_closed")
    leaving = Leaving.of(storage, state, deletions)
    left = leaving.actions(storage, write_vectors(storage, leaving.vectors))
    told = changes_of_files(storage, leaving, adds)
    return [*adds, *left, *write_change_files(storage, told, state.partition_by)]


@dataclass
class _Met:
    """Current rows that a snapshot has, by file: `kept` as they are, or else `amended`, with other
    values in columns that make no version."""

    index: RowIndex
    source: pa.Schema
    tracked: Sequence[str]
    kept: dict[str, BitMap] = field(default_factory=dict)
    amended: dict[str, BitMap] = field(default_factory=dict)

    def differing(self, rows: pa.Table, moment: datetime) -> pa.Table:
        """The rows that are to be written, with the START_AT of their versions."""
        which, where = self.index.find(self.index.hash(rows.select(self.index.schema.names)))
        old = self.index.read(where, pa.schema([*self.source, *_PERIOD]))
        new = rows.take(pa.array(which))
        same = _same(old, new, self.source.names)
        goes_on = same | _same(old, new, self.tracked) if self.tracked else same
        self._note(self.kept, where[same])
        self._note(self.amended, where[goes_on & ~same])
        starts = np.full(rows.num_rows, np.datetime64(moment.replace(tzinfo=None), "us"))
        began = old[START_AT].cast(pa.timestamp("us")).to_numpy()
        starts[which[goes_on]] = began[goes_on]
        place = rows.schema.get_field_index(START_AT)
        stamped = rows.set_column(place, rows.schema.field(place), pa.array(starts).cast(TIME))
        wanted = np.ones(rows.num_rows, np.bool_)
        wanted[which[same]] = False
        return stamped.filter(pa.array(wanted))

    def _note(self, rows: dict[str, BitMap], where: Locations) -> None:
        for path, numbers in self.index.by_path(where):
            rows[path] = rows.get(path, BitMap()) | BitMap(numbers)


def _same(old: pa.Table, new: pa.Table, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which rows are equal in these columns, but for a chance of 2**-128."""
    columns = [_bits(table.select(names)) for table in (old, new)]
    hasher = Hasher.of(columns[0].schema, exact=False)
    one, other = (hasher.hash(table) for table in columns)
    assert one.low is not None
    assert other.low is not None
    equal: npt.NDArray[np.bool_] = (one.high == other.high) & (one.low == other.low)
    return equal


def _bits(rows: pa.Table) -> pa.Table:
    """Floating-point numbers as their bits: a hasher takes -0.0 for 0.0, as keys do."""
    for place, column in enumerate(rows.schema):
        if t.is_floating(column.type):
            kind = pa.int64() if column.type == pa.float64() else pa.int32()
            values = rows.column(place).combine_chunks()
            rows = rows.set_column(place, column.name, values.view(kind))
    return rows


def _numbers(rows: BitMap) -> pa.Array:
    return pa.array(np.frombuffer(rows.to_array(), np.uint32).astype(np.int64))


def _source_columns(schema: TableSchema, stored: pa.Schema, shape: Shape) -> pa.Schema:
    added = {START_AT, END_AT, *(word.column for word in shape.metadata)}
    return pa.schema([stored.field(c.name) for c in schema.columns if c.name not in added])


def _newest(storage: Storage, state: TableState) -> datetime:
    """The newest time of any version."""
    newest = datetime.fromtimestamp(0, UTC)
    for file in state.files.values():
        for rows in live_rows(storage, file, _PERIOD):
            for name in _PERIOD.names:
                newest = max(newest, pc.max(rows[name]).as_py() or newest)
    return newest
