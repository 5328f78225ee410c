"""Turns a range of a table's change feed into its net effect, one operation per key.

A feed tells inserts, deletes and both images of updates, with the version of each and in no order
inside a version. Of a key only its newest version counts, and there a row that stands wins over one
that goes: overwrites, deletes with a re-insert and key changes put both into one version. An old
image whose key has no new row there is a delete: it is the only trace of a row that moved to
another key. Everything is Arrow and numpy over whole columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.factorize import factorize
from headrace.engine.gather import take, take_column
from headrace.engine.lineage import Bools, Ints
from headrace.errors import ProtocolError
from headrace.model import (
    CHANGE_TYPE,
    COMMIT_TIMESTAMP,
    COMMIT_VERSION,
    FEED_COLUMNS,
    Column,
    NetChanges,
    Rejected,
    TableSchema,
    TableVersion,
)

_TYPES: Final = pa.array(["delete", "update_preimage", "insert", "update_postimage"])
_DELETE, _BEFORE, _INSERT, _AFTER = range(4)  # those that leave a row from _INSERT on

# What the feed's own columns are called at the source, for the destination's choice of type.
_FEED_TYPES: Final = {CHANGE_TYPE: "string", COMMIT_VERSION: "long", COMMIT_TIMESTAMP: "timestamp"}


def net(schema: TableSchema, feed: pa.Table, newest_by: str | None = None) -> NetChanges:
    """The net effect of `feed` on a table whose key is `schema.key`.

    `feed` has the columns of `schema` and FEED_COLUMNS. Without a key rows are told apart by all of
    their values, and each that goes takes away an equal one.

    Rows of one key that one version puts side by side are one row if they are equal; else the
    greatest value of the column `newest_by` decides, null being the least; else all of them are
    rejected as `duplicate_key`, and the key is left as it is. Rows without a whole key are rejected
    as `null_key`, as far as they still stand. Updates that changed nothing are left out where the
    range holds nothing else of their key.

    Raises:
        ProtocolError: the feed has a change of an unknown type.
    """
    kinds = _kinds(schema, feed)
    rows = feed.select(schema.names)
    if not schema.key:
        upserts, deletes = _balance(rows, kinds)
        return NetChanges(schema, upserts, deletes, commit_ts=_newest(feed))
    keyless = without_key(schema, rows)
    changes = _net_by_key(schema, feed, kinds, np.flatnonzero(~keyless), newest_by)
    if keyless.any():
        which = np.flatnonzero(keyless)
        unkeyed, _ = _balance(take(rows, which), kinds[which])
        changes = replace(changes, rejected=(*changes.rejected, *null_keys(schema, unkeyed)))
    return replace(changes, commit_ts=_newest(feed))


def feed_schema(schema: TableSchema) -> pa.Schema:
    """The Arrow schema of what a feed tells of a table."""
    return pa.schema([*schema.arrow(), *FEED_COLUMNS])


def append_schema(schema: TableSchema) -> TableSchema:
    """The schema of a table that keeps every change as a row: no key, and the feed's columns."""
    feed = tuple(Column(f.name, f.type, _FEED_TYPES[f.name]) for f in FEED_COLUMNS)
    return replace(schema, columns=(*schema.columns, *feed), key=(), missing={})


def append_rows(schema: TableSchema, feed: pa.Table) -> NetChanges:
    """Every change of `feed` as a row to be added: inserts, deletes and both images of updates.

    They come in order of version, and inside one those that went before those that stand.
    """
    kinds = _kinds(schema, feed)
    order = np.lexsort((kinds >= _INSERT, _versions(feed)))
    appended = append_schema(schema)
    rows = take(feed.select(appended.names), order)
    return NetChanges(appended, rows, rows.schema.empty_table(), commit_ts=_newest(feed))


def as_feed(
    schema: TableSchema, rows: pa.Table, at: TableVersion, *, gone: bool = False
) -> pa.Table:
    """`rows` as inserts, or deletes, of one version of a feed; columns that they lack are null."""
    count = rows.num_rows
    columns = [
        rows[c.name] if c.name in rows.column_names else pa.nulls(count, c.type)
        for c in schema.columns
    ]
    stamps = ("delete" if gone else "insert", at.number, at.commit_ts)
    told = [
        pa.repeat(pa.scalar(v, f.type), count) for v, f in zip(stamps, FEED_COLUMNS, strict=True)
    ]
    return pa.Table.from_arrays([*columns, *told], schema=feed_schema(schema))


# -- reading a feed --------------------------------------------------------------------------------


def _kinds(schema: TableSchema, feed: pa.Table) -> Ints:
    """Per row its change type as a number, those that leave a row from _INSERT on."""
    kinds = pc.index_in(feed[CHANGE_TYPE], value_set=_TYPES)
    if kinds.null_count:
        unknown = feed[CHANGE_TYPE].filter(kinds.is_null())[0]
        raise ProtocolError(
            f"the change feed of {schema.table} tells of a change of type {unknown}",
            hint="a newer version of Headrace may know it",
            table=str(schema.table),
        )
    numbers: Ints = kinds.to_numpy().astype(np.int64)
    return numbers


def _versions(feed: pa.Table) -> Ints:
    versions: Ints = feed[COMMIT_VERSION].to_numpy()
    return versions


def _newest(feed: pa.Table) -> datetime | None:
    newest: datetime | None = pc.max(feed[COMMIT_TIMESTAMP]).as_py()
    return newest


def without_key(schema: TableSchema, rows: pa.Table) -> Bools:
    """Which rows lack a part of their key."""
    lacking = np.zeros(rows.num_rows, np.bool_)
    for name in schema.key:
        if rows[name].null_count:
            lacking |= rows[name].is_null().to_numpy()
    return lacking


# -- by key ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Groups:
    """Rows in order of key, version and type; `first` and `last` bound each key's stretch."""

    order: Ints
    first: Ints
    last: Ints


def _groups(codes: Ints, versions: Ints, kinds: Ints) -> _Groups:
    order = np.lexsort((kinds, versions, codes))
    ends = np.flatnonzero(np.diff(codes[order], append=-1))
    return _Groups(order, np.concatenate([[0], ends[:-1] + 1])[: len(ends)], ends)


def _net_by_key(
    schema: TableSchema, feed: pa.Table, kinds: Ints, keyed: Ints, newest_by: str | None
) -> NetChanges:
    """The net effect of the rows at `keyed`, all of which have a whole key."""
    rows, key = feed.select(schema.names), list(schema.key)
    kinds, versions = kinds[keyed], _versions(feed)[keyed]
    codes = factorize(take(rows.select(key), keyed), zeros_equal=True).values
    groups = _groups(codes, versions, kinds)
    newest = groups.order[groups.last]
    stands = kinds[newest] >= _INSERT
    contested = _contested(codes, versions, kinds, groups)
    winners, rejected = _decide(rows, keyed[contested], codes[contested], newest_by)
    settled = newest[stands & ~np.isin(codes[newest], codes[contested])]
    settled = np.setdiff1d(settled, _unchanged(rows, keyed, kinds, groups))
    upserts = np.sort(np.concatenate([keyed[settled], winners]))
    deletes = keyed[np.sort(newest[~stands])]
    return NetChanges(
        schema,
        take(rows, upserts),
        take(rows.select(key), deletes),
        rejected=_duplicates(schema, take(rows, rejected)),
    )


def _contested(codes: Ints, versions: Ints, kinds: Ints, groups: _Groups) -> Ints:
    """The rows that stand in the newest version of a key that has several of them there."""
    newest = np.empty(len(codes), np.int64)
    newest[groups.order] = np.repeat(versions[groups.order][groups.last], _sizes(groups))
    standing = np.flatnonzero((kinds >= _INSERT) & (versions == newest))
    _, which, counts = np.unique(codes[standing], return_inverse=True, return_counts=True)
    return standing[counts[which] > 1]


def _sizes(groups: _Groups) -> Ints:
    return groups.last - groups.first + 1


def _decide(
    rows: pa.Table, contested: Ints, codes: Ints, newest_by: str | None
) -> tuple[Ints, Ints]:
    """The row of each contested key, and the rows of the keys that have none: see `net`."""
    if not len(contested):
        return contested, contested
    content = factorize(take(rows, contested), zeros_equal=False).values
    rank = np.zeros(len(contested), np.int64)
    if newest_by is not None:
        rank = _rank(take_column(rows[newest_by], contested))
    best = np.full(codes.max() + 1, -1)
    np.maximum.at(best, codes, rank)
    leads = rank == best[codes]
    low, high = np.full(len(best), len(content)), np.full(len(best), -1)
    np.minimum.at(low, codes[leads], content[leads])
    np.maximum.at(high, codes[leads], content[leads])
    decided = low == high
    winner = np.full(len(best), -1)
    winner[codes[leads]] = contested[leads]
    return winner[decided], contested[~decided[codes]]


def _rank(values: pa.ChunkedArray) -> Ints:
    """Dense ranks of values, equal ones sharing theirs; null ranks lowest."""
    ranks: Ints = pc.rank(values, "ascending", tiebreaker="dense").to_numpy().astype(np.int64)
    ranks[values.is_null().to_numpy()] = 0
    return ranks


def _unchanged(rows: pa.Table, keyed: Ints, kinds: Ints, groups: _Groups) -> Ints:
    """New images equal to the old ones, of keys of which the range holds nothing else."""
    pairs = np.flatnonzero(_sizes(groups) == len((_BEFORE, _AFTER)))
    before: Ints = groups.order[groups.first[pairs]]
    after: Ints = groups.order[groups.last[pairs]]
    images = (kinds[before] == _BEFORE) & (kinds[after] == _AFTER)
    before, after = before[images], after[images]
    for name in rows.column_names:  # each column leaves fewer to look at
        if not len(after):
            break
        same = _equal(rows[name], keyed[before], keyed[after])
        before, after = before[same], after[same]
    return after


def _equal(column: pa.ChunkedArray, left: Ints, right: Ints) -> Bools:
    """Whether the values at `left` are, bit by bit, those at `right`."""
    one, other = take_column(column, left), take_column(column, right)
    if pa.types.is_nested(column.type) or pa.types.is_floating(column.type):
        both = pa.table({"v": pa.chunked_array([*one.chunks, *other.chunks], column.type)})
        codes = factorize(both, zeros_equal=False).values
        same: Bools = np.equal(codes[: len(left)], codes[len(left) :])
        return same
    nulls = pc.and_(one.is_null(), other.is_null())
    equal: Bools = pc.or_(pc.fill_null(pc.equal(one, other), False), nulls).to_numpy()
    return equal


# -- by row --------------------------------------------------------------------------------------


def _balance(rows: pa.Table, kinds: Ints) -> tuple[pa.Table, pa.Table]:
    """The rows that came and those that went, when each that goes takes away an equal one."""
    codes = factorize(rows, zeros_equal=False)
    signs = np.where(kinds >= _INSERT, 1, -1)
    counts = np.bincount(codes.values, signs, codes.distinct).astype(np.int64)
    specimen = np.empty(codes.distinct, np.int64)
    specimen[codes.values] = np.arange(len(kinds))
    came, went = np.maximum(counts, 0), np.maximum(-counts, 0)
    return take(rows, np.repeat(specimen, came)), take(rows, np.repeat(specimen, went))


# -- what cannot be applied ------------------------------------------------------------------------


def null_keys(schema: TableSchema, rows: pa.Table) -> tuple[Rejected, ...]:
    """`rows`, which lack a part of their key, as what must not be applied; nothing if none."""
    reason = f"a row without a value of its key ({', '.join(schema.key)})"
    return (Rejected(rows, "null_key", reason),) if rows.num_rows else ()


def _duplicates(schema: TableSchema, rows: pa.Table) -> tuple[Rejected, ...]:
    reason = f"several different rows have the same key ({', '.join(schema.key)})"
    return (Rejected(rows, "duplicate_key", reason),) if rows.num_rows else ()
