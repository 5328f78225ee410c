"""A table's whole content changed in place, for tables that cannot be swapped for a new one.

In one transaction, in bounded memory: the keys of all rows are staged first, so that what is
missing can go before the others come, and a unique value is free when its next row wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.bisection import Refused, TooManyRefusedError, land
from headrace.connectors.postgres.merge import Landing, WritePlan
from headrace.connectors.postgres.parts import parts as as_parts
from headrace.connectors.postgres.quarantine import Quarantine, too_many
from headrace.connectors.postgres.refusals import FOREIGN_KEYS
from headrace.connectors.postgres.staging import Pace, Staging, send
from headrace.connectors.postgres.statements import missing_statement
from headrace.connectors.postgres.target_session import Cursor
from headrace.model import OnDelete, Rejected, RowPart, TableSchema
from headrace.model.fingerprint import Hasher, Words, concat_hashes

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
        for rows in _tables(parts):
            work.upsert(rows)
        return work.refused, []
    hasher = Hasher(exact=False, seeds=(1, 2))
    shared = _stage_keys(cursor, plan, pace, parts, hasher)
    if plan.on_delete is not OnDelete.IGNORE:
        cursor.execute(missing_statement(plan, present_staging(plan), sql.SQL("now()")))
    contested: list[pa.Table] = []
    for rows in _tables(parts):
        words = hasher.hash(rows.select(list(plan.key))).high
        doubled = np.isin(words, shared)
        if doubled.any():
            contested.append(rows.filter(pa.array(doubled)))
            work.spend(sum(part.num_rows for part in contested), "several rows have one key")
        work.upsert(rows.filter(pa.array(~doubled)))
    return work.refused, list(_rejected(schema, contested))


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
        waiting = any(r.refusal.sqlstate in FOREIGN_KEYS for r in self.refused)
        reasons = [r.refusal.reason for r in self.refused]
        self.spend(len(self.refused), *reasons, waiting=waiting)

    def spend(self, rows: int, *reasons: str, waiting: bool = False) -> None:
        if rows > self._place.max_rows:
            raise too_many(self._place, reasons, waiting=waiting)


def _stage_keys(
    cursor: Cursor, plan: WritePlan, pace: Pace, parts: Sequence[RowPart], hasher: Hasher
) -> Words:
    """Stage the key of every row; returns the fingerprints of keys that several rows have."""
    hashes = []
    for rows in _tables(parts):
        keys = rows.select(list(plan.key))
        send(cursor, present_staging(plan), keys, pace)
        hashes.append(hasher.hash(keys))
    if not hashes:
        return np.empty(0, np.uint64)
    words = np.sort(concat_hashes(hashes).high)
    return np.unique(words[1:][words[1:] == words[:-1]])


def _tables(parts: Sequence[RowPart]) -> Iterator[pa.Table]:
    return (pa.Table.from_batches([batch]) for part in parts for batch in part.read())


def _rejected(schema: TableSchema, contested: Iterable[pa.Table]) -> Iterator[Rejected]:
    found = list(contested)
    if found:
        key = ", ".join(schema.key)
        why = f"several rows have one key ({key}), and nothing says which is right"
        yield Rejected(pa.concat_tables(found), DUPLICATE, why)
