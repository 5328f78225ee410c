"""A table's whole content changed in place, for tables that cannot be swapped for a new one.

In one transaction, in bounded memory: the keys of all rows are staged first, so that what is
missing can go before the others come, and a unique value is free when its next row wants it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.bisection import Refused, TooManyRefusedError, land
from headrace.connectors.postgres.merge import Landing, WritePlan
from headrace.connectors.postgres.parts import parts as as_parts
from headrace.connectors.postgres.quarantine import Quarantine, overflow, too_many
from headrace.connectors.postgres.staging import Pace, Staging, send
from headrace.connectors.postgres.statements import missing_statement
from headrace.connectors.postgres.target_session import Cursor
from headrace.model import OnDelete, Rejected, RowPart, TableSchema
from headrace.model.feed import tables
from headrace.model.fingerprint import Hasher, Words, concat_hashes, repeated

DUPLICATE: Final = "duplicate_key"

Outcome = tuple[list[Refused], list[Rejected]]


def present_staging(plan: WritePlan) -> Staging:
    """Where the keys of all rows are staged."""
    return Staging.of("present", plan.keys)


def reconcile(
    cursor: Cursor,
    plan: WritePlan,
    schema: TableSchema,
    place: Quarantine,
    pace: Pace,
    parts: Sequence[RowPart],
) -> Outcome:
    """Make the rows of `parts` the table's content; returns what was refused, and rejected.

    `present_staging` must stand; a transaction that holds the checkpoint's row must be open.

    Raises:
        QuarantineFullError: too many rows are refused.
    """
    work = _Work(cursor, plan, place, Landing(cursor, plan, pace))
    if not plan.key:
        work.landing.truncate()
        for rows in tables(parts):
            work.upsert(rows)
        return work.refused, []
    hasher = Hasher.of(schema.arrow(), exact=False)
    shared = _stage_keys(cursor, plan, pace, parts, hasher)
    if plan.on_delete is not OnDelete.IGNORE:
        cursor.execute(missing_statement(plan, present_staging(plan), sql.SQL("now()")))
    contested: list[pa.Table] = []
    for rows in tables(parts):
        doubtful = np.isin(hasher.hash(rows.select(list(plan.key))).high, shared)
        if doubtful.any():
            contested.append(rows.filter(pa.array(doubtful)))
            if sum(part.num_rows for part in contested) > place.max_rows:
                raise too_many(place, ["several rows have one key"])
        work.upsert(rows.filter(pa.array(~doubtful)) if doubtful.any() else rows)
    if not contested:
        return work.refused, []
    alone, doubled = _told_apart(pa.concat_tables(contested), hasher, plan.key)
    work.upsert(alone)
    return work.refused, _rejected(schema, doubled)


class _Work:
    """Upserts batch after batch, and counts what is refused against the quarantine's budget."""

    def __init__(
        self, cursor: Cursor, plan: WritePlan, place: Quarantine, landing: Landing
    ) -> None:
        self._cursor = cursor
        self._plan = plan
        self._place = place
        self.landing = landing
        self.refused: list[Refused] = []

    def upsert(self, rows: pa.Table) -> None:
        none = rows.select(list(self._plan.key)).schema.empty_table()
        made = as_parts(self._cursor, self._plan, self.landing, rows, none)
        try:
            self.refused += land(self._cursor.connection, made, self._place.max_rows)
        except TooManyRefusedError as error:
            self.refused += error.refused
        if len(self.refused) > self._place.max_rows:
            raise overflow(self._place, self.refused)


def _stage_keys(
    cursor: Cursor, plan: WritePlan, pace: Pace, parts: Sequence[RowPart], hasher: Hasher
) -> Words:
    """Stage the key of every row; returns half the fingerprint of each key that several rows have,
    and perhaps of others."""
    hashes = []
    for rows in tables(parts):
        keys = rows.select(list(plan.key))
        send(cursor, present_staging(plan), keys, pace)
        hashes.append(hasher.hash(keys))
    return repeated(concat_hashes(hashes).high) if hashes else np.empty(0, np.uint64)


def _told_apart(rows: pa.Table, hasher: Hasher, key: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """Rows whose key no other has, by the whole fingerprint, and the others."""
    hashes = hasher.hash(rows.select(list(key)))
    assert hashes.low is not None  # but exact numbers have two halves
    whole = list(zip(hashes.high.tolist(), hashes.low.tolist(), strict=True))
    times = Counter(whole)
    alone = np.array([times[one] == 1 for one in whole], np.bool_)
    return rows.filter(pa.array(alone)), rows.filter(pa.array(~alone))


def _rejected(schema: TableSchema, doubled: pa.Table) -> list[Rejected]:
    key = ", ".join(schema.key)
    why = f"several rows have one key ({key}), and nothing says which is right"
    return [Rejected(doubled, DUPLICATE, why)] if doubled.num_rows else []
