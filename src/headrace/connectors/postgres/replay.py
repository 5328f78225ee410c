"""Parked rows tried again, on a person's word or because what they waited for has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

import pyarrow as pa

from headrace.connectors.postgres import quarantine
from headrace.connectors.postgres.bisection import Operation, Part, land
from headrace.connectors.postgres.foreign_keys import against
from headrace.connectors.postgres.parked import ParkedRow
from headrace.connectors.postgres.quarantine import Quarantine
from headrace.connectors.postgres.refusals import Refusal
from headrace.connectors.postgres.target_session import Cursor
from headrace.model import TableSchema

# From upserts and deletes to the parts that land them, as for a batch of changes.
MakeParts = Callable[[pa.Table, pa.Table], Sequence[Part]]

AMBIGUOUS: Final = (
    "several parked rows have this key: retry the one that is right by its id, the others then go"
)


@dataclass(frozen=True)
class Replayed:
    """What came of parked rows that were tried again; `left` tell by id why they stay, and
    `waiting` counts those for which rows of other tables are still to come or to go."""

    applied: int
    left: dict[int, str]
    waiting: int = 0


def retry(
    cursor: Cursor,
    place: Quarantine,
    schema: TableSchema,
    parts: MakeParts,
    ids: Sequence[int] | None = None,
) -> Replayed:
    """Apply parked rows of one table again, those of `ids` or all, in a transaction that holds the
    table's checkpoint row.

    Rows that a rule had rejected (duplicate_key, null_key, expect:…) are applied as they are: who
    retries them decides. A row that passes leaves the quarantine, and with it other parked rows of
    its key; several of one key are left, unless one of them is named alone.

    Raises:
        psycopg.Error: what is no row's fault; the transaction is to be rolled back.
    """
    return _replay(cursor, place, schema, parts, _named(cursor, place, ids))


def retry_waiting(
    cursor: Cursor, place: Quarantine, schema: TableSchema, parts: MakeParts
) -> Replayed:
    """Apply again the parked rows whose foreign key can be fulfilled by now; as `retry`.

    One statement where no row waits, and two for each foreign key that rows wait for.
    """
    waiting = [row for row in _named(cursor, place, None) if row.refusal.waits]
    done = _replay(cursor, place, schema, parts, _ready(cursor, schema, waiting))
    return replace(done, waiting=len(waiting) - done.applied)


def _ready(cursor: Cursor, schema: TableSchema, waiting: Sequence[ParkedRow]) -> list[ParkedRow]:
    """The rows that wait no longer, as far as that can be asked; those of a foreign key that is
    gone are among them."""
    ready: list[ParkedRow] = []
    for _, group in groupby(sorted(waiting, key=_foreign_key), key=_foreign_key):
        rows = list(group)
        fields = _fields(rows[0].operation, schema)
        conformed = pa.concat_tables(row.conformed(fields) for row in rows)
        blocked = against(cursor.connection, rows[0].refusal, conformed)
        if blocked is not None:
            ready.extend(row for i, row in enumerate(rows) if i not in blocked)
    return ready


def _foreign_key(row: ParkedRow) -> tuple[str, str, str, str]:
    why = row.refusal
    return (why.schema, why.table, why.constraint, row.operation.value)


def _named(cursor: Cursor, place: Quarantine, ids: Sequence[int] | None) -> list[ParkedRow]:
    return quarantine.find(cursor, ids=ids, table=place.table)


def _replay(
    cursor: Cursor,
    place: Quarantine,
    schema: TableSchema,
    parts: MakeParts,
    rows: Sequence[ParkedRow],
) -> Replayed:
    rows, left = _unambiguous(place, rows)
    reasons: dict[int, Refusal] = {}
    tried: dict[Operation, list[tuple[int, pa.Table]]] = {op: [] for op in Operation}
    for row in rows:
        try:
            whole = row.conformed(_fields(row.operation, schema))
            tried[row.operation].append((row.id, whole))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reasons[row.id] = Refusal("type_changed", f"its type changed since: {error}", "")
    made = parts(*(_table(tried[op], op, schema) for op in (Operation.UPSERT, Operation.DELETE)))
    for refused in land(cursor.connection, made, limit=len(rows)):
        reasons[tried[refused.operation][refused.position][0]] = refused.refusal
    passed = [row for row in rows if row.id not in reasons]
    quarantine.forget_keys(cursor, place, passed)
    quarantine.refused_again(cursor, reasons)
    left |= {identity: why.reason for identity, why in reasons.items()}
    return Replayed(len(passed), left)


def _unambiguous(
    place: Quarantine, rows: Sequence[ParkedRow]
) -> tuple[list[ParkedRow], dict[int, str]]:
    """The rows that can be tried, and why others cannot: nobody said which of a key is meant."""
    if not place.key:
        return list(rows), {}
    times = Counter(row.key for row in rows)
    left = {row.id: AMBIGUOUS for row in rows if times[row.key] > 1}
    return [row for row in rows if row.id not in left], left


def _fields(operation: Operation, schema: TableSchema) -> pa.Schema:
    only_key = operation is Operation.DELETE and schema.key
    return pa.schema([f for f in schema.arrow() if not only_key or f.name in schema.key])


def _table(
    rows: Sequence[tuple[int, pa.Table]], operation: Operation, schema: TableSchema
) -> pa.Table:
    empty = _fields(operation, schema).empty_table()
    return pa.concat_tables([empty, *(row for _, row in rows)])
