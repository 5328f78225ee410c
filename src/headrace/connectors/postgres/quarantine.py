"""Rows that a destination's table does not hold, kept beside it with their reasons: replayable.

A row is parked in the transaction that applies the rest of its batch, so that it is in exactly
one place (DESIGN §13, invariant 12). Whatever happens later to its key (an upsert, a delete, a
truncate, a new generation of the table) supersedes it, again in that transaction: a parked row is
never older than what the table holds under its key, and may be tried again at any time.

Of a table without a key a parked row is one of a multiset: a delete of an equal row takes it away,
instead of one from the table.

Rows come as they were to be written: transformed, masked, with unsent columns filled in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.connectors.postgres.bisection import (
    Operation,
    Part,
    Refused,
    TooManyRefusedError,
    land,
)
from headrace.connectors.postgres.parked import (
    Key,
    ParkedRow,
    decode_row,
    encode_row,
    key_texts,
    keys_among,
)
from headrace.connectors.postgres.refusals import FOREIGN_KEYS, Refusal
from headrace.connectors.postgres.target_session import Cursor, only_row
from headrace.errors import QuarantineFullError, RowsWaitError
from headrace.model import Checkpoint, Fill, NetChanges, Rejected, TableId

# For `records.ensure`. `key` are the texts of the key's values (of all columns without a key);
# `payload` is an Arrow IPC stream of one row, exact where no text would be.
DDL: Final = (
    """
CREATE TABLE IF NOT EXISTS headrace.quarantine (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_schema      text NOT NULL,
    table_name        text NOT NULL,
    pipeline          text NOT NULL,
    operation         text NOT NULL,  -- upsert or delete
    key               text[] NOT NULL,
    code              text NOT NULL,
    reason            text NOT NULL,
    sqlstate          text,           -- null where not the server but a rule refused the row
    constraint_schema text,           -- of the table whose constraint it is
    constraint_table  text,
    constraint_name   text,
    column_name       text,
    log_id            text NOT NULL,
    version           bigint NOT NULL,  -- of the source, with which the row came
    parked_at         timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    tried_at          timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    attempts          int NOT NULL DEFAULT 1,
    payload           bytea NOT NULL
)
""",
    """
CREATE INDEX IF NOT EXISTS quarantine_table ON headrace.quarantine (table_schema, table_name)
""",
)

_COUNT: Final = """
SELECT count(*) FROM headrace.quarantine WHERE table_schema = %s AND table_name = %s
"""

_COUNTS: Final = """
SELECT table_schema, table_name, count(*) FROM headrace.quarantine
 WHERE %(pipeline)s::text IS NULL OR pipeline = %(pipeline)s
 GROUP BY 1, 2 ORDER BY 1, 2
"""

_WAITS: Final = """
SELECT EXISTS (SELECT FROM headrace.quarantine
                WHERE table_schema = %s AND table_name = %s AND sqlstate = ANY (%s))
"""

_KEYS: Final = """
SELECT id, key FROM headrace.quarantine WHERE table_schema = %s AND table_name = %s ORDER BY id
"""

_PARK: Final = """
INSERT INTO headrace.quarantine
       (table_schema, table_name, pipeline, operation, key, code, reason, sqlstate,
        constraint_schema, constraint_table, constraint_name, column_name, log_id, version, payload)
VALUES (%s, %s, %s, %s, %s, %s, %s, nullif(%s, ''), nullif(%s, ''), nullif(%s, ''), nullif(%s, ''),
        nullif(%s, ''), %s, %s, %s)
"""

_CLEAR: Final = "DELETE FROM headrace.quarantine WHERE table_schema = %s AND table_name = %s"

_DROP: Final = "DELETE FROM headrace.quarantine WHERE id = ANY (%s)"

_REFUSED_AGAIN: Final = """
UPDATE headrace.quarantine
   SET code = %s, reason = %s, sqlstate = nullif(%s, ''), constraint_schema = nullif(%s, ''),
       constraint_table = nullif(%s, ''), constraint_name = nullif(%s, ''),
       column_name = nullif(%s, ''), attempts = attempts + 1,
       tried_at = pg_catalog.clock_timestamp()
 WHERE id = %s
"""

_SELECT: Final = """
SELECT id, table_schema, table_name, pipeline, operation, key, code, reason, coalesce(sqlstate, ''),
       coalesce(constraint_schema, ''), coalesce(constraint_table, ''),
       coalesce(constraint_name, ''), coalesce(column_name, ''), log_id, version, parked_at,
       tried_at, attempts, payload
  FROM headrace.quarantine
 WHERE (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s))
   AND (%(schema)s::text IS NULL OR (table_schema, table_name) = (%(schema)s, %(name)s))
   AND (%(pipeline)s::text IS NULL OR pipeline = %(pipeline)s)
 ORDER BY table_schema, table_name, id
 LIMIT %(limit)s
"""

SHOWN_REASONS: Final = 3  # in an error: enough to see what is wrong


@dataclass(frozen=True)
class Quarantine:
    """One table's; `key` names the columns that identify its rows, `max_rows` is its budget."""

    table: TableId
    pipeline: str
    key: tuple[str, ...]
    max_rows: int

    @property
    def _name(self) -> list[str]:
        return [self.table.schema, self.table.name]


# -- as a table's changes are applied, in their transaction ----------------------------------------


def supersede(cursor: Cursor, quarantine: Quarantine, changes: NetChanges) -> NetChanges:
    """Let go of parked rows that newer changes replace; returns the changes left to apply.

    To be called first in the transaction. Costs one statement where nothing is parked. Of a table
    without a key, deletes that took away a parked row are no longer among the changes; of one with
    a key, values that the source did not send because a parked row has them are filled in from it.
    """
    parked = cursor.execute(_KEYS, quarantine._name).fetchall()
    if not parked:
        return changes
    standing: dict[Key, list[int]] = {}
    for identity, key in parked:
        standing.setdefault(tuple(key), []).append(identity)
    if quarantine.key:
        changes = _filled(cursor, quarantine, standing, changes)
    if changes.truncate:
        clear(cursor, quarantine.table)
        return changes
    if not quarantine.key:
        return _take_away(cursor, standing, changes)
    newer = [changes.deletes, changes.upserts, *(r.rows for r in changes.rejected)]
    touched = {k for rows in newer for k in keys_among(rows, quarantine.key, standing)}
    forget(cursor, [identity for key in touched for identity in standing[key]])
    return changes


def _filled(
    cursor: Cursor, quarantine: Quarantine, standing: dict[Key, list[int]], changes: NetChanges
) -> NetChanges:
    """The changes without fills of rows that are parked, whose values go into the upserts.

    The table holds an older version of such a row, or none.
    """
    upserts = changes.upserts
    fills: list[Fill] = []
    for fill in changes.fills:
        held = [_newest(cursor, standing.get(k, ())) for k in key_texts(fill.keys, quarantine.key)]
        there = np.array([row is not None for row in held], np.bool_)
        if not there.any():
            fills.append(fill)
            continue
        rows = pa.concat_tables(row.select(fill.columns) for row in held if row is not None)
        for name in fill.columns:
            upserts = _replaced(upserts, name, fill.rows[there], rows.column(name))
        left = fill.keys.filter(pa.array(~there))
        fills.append(Fill(fill.columns, fill.rows[~there], left))
    return replace(changes, upserts=upserts, fills=tuple(f for f in fills if len(f.rows)))


def _newest(cursor: Cursor, ids: Sequence[int]) -> pa.Table | None:
    """The newest row of these that was to be written, whole."""
    rows = [r for r in find(cursor, ids=ids) if r.operation is Operation.UPSERT] if ids else []
    return rows[-1].row if rows else None


def _replaced(
    table: pa.Table, name: str, rows: npt.NDArray[np.int64], values: pa.ChunkedArray
) -> pa.Table:
    index = table.schema.get_field_index(name)
    field = table.schema.field(index)
    take = np.arange(table.num_rows)
    take[rows] = table.num_rows + np.arange(len(rows))
    both = pa.chunked_array([*table.column(index).chunks, *values.cast(field.type).chunks])
    return table.set_column(index, field, both.take(pa.array(take)))


def _take_away(cursor: Cursor, standing: dict[Key, list[int]], changes: NetChanges) -> NetChanges:
    """Of a multiset: each delete takes one equal row, a parked one before one of the table."""
    columns = changes.deletes.column_names
    if not keys_among(changes.deletes, columns, standing):
        return changes
    gone: list[int] = []
    left: list[bool] = []
    for key in key_texts(changes.deletes, columns):
        equal = standing.get(key)
        left.append(not equal)
        if equal:
            gone.append(equal.pop())
    forget(cursor, gone)
    return replace(changes, deletes=changes.deletes.filter(pa.array(left, pa.bool_())))


def land_or_park(
    cursor: Cursor,
    quarantine: Quarantine,
    parts: Sequence[Part],
    rejected: Sequence[Rejected],
    at: Checkpoint,
    completed: Callable[[pa.Table], pa.Table] = lambda row: row,
) -> int:
    """Land the parts, park the rows that are refused, and `rejected`; returns how many are parked.

    `completed` makes a refused row whole, where the server was to fill in what was not sent.

    Raises:
        QuarantineFullError: more rows than `max_rows` would be parked in all; the transaction is to
            be rolled back.
        psycopg.Error: what is no row's fault.
    """
    try:
        refused = land(cursor.connection, parts, quarantine.max_rows)
    except TooManyRefusedError as error:
        raise overflow(quarantine, error.refused) from error
    whole = [replace(r, row=completed(r.row)) for r in refused]
    return park(cursor, quarantine, whole, rejected, at)


def park(
    cursor: Cursor,
    quarantine: Quarantine,
    refused: Sequence[Refused],
    rejected: Sequence[Rejected],
    at: Checkpoint,
) -> int:
    """Park rows that were refused by the server or rejected before; returns how many.

    Raises:
        QuarantineFullError: as `land_or_park`.
    """
    total: int = len(refused) + sum(r.rows.num_rows for r in rejected)
    if not total:
        return 0
    if total + count(cursor, quarantine.table) > quarantine.max_rows:
        raise overflow(quarantine, refused, rejected)
    cursor.executemany(_PARK, list(_records(quarantine, refused, rejected, at)))
    return total


def clear(cursor: Cursor, table: TableId) -> None:
    """Let go of all of a table's rows: it was truncated, built anew or dropped."""
    cursor.execute(_CLEAR, [table.schema, table.name])


def _records(
    quarantine: Quarantine,
    refused: Iterable[Refused],
    rejected: Iterable[Rejected],
    at: Checkpoint,
) -> Iterator[list[Any]]:
    rows = [(r.operation, r.row, r.refusal) for r in refused]
    for group in rejected:
        why = Refusal(group.code, group.reason, "")
        singles = (group.rows.slice(i, 1) for i in range(group.rows.num_rows))
        rows += [(Operation.UPSERT, row, why) for row in singles]
    for operation, row, why in rows:
        key = key_texts(row, quarantine.key or row.column_names)[0]
        yield [
            *quarantine._name, quarantine.pipeline, operation.value, list(key),
            why.code, *_why(why), at.log_id, at.commit, encode_row(row),
        ]  # fmt: skip


def _why(refusal: Refusal) -> list[str]:
    """In the order of the columns of _PARK and _REFUSED_AGAIN."""
    named = [refusal.schema, refusal.table, refusal.constraint, refusal.column]
    return [refusal.reason, refusal.sqlstate, *named]


def overflow(
    quarantine: Quarantine, refused: Sequence[Refused], rejected: Sequence[Rejected] = ()
) -> QuarantineFullError:
    """The error for more rows than may be parked."""
    reasons = [r.refusal.reason for r in refused]
    reasons += [r.reason for r in rejected for _ in range(r.rows.num_rows)]
    return too_many(quarantine, reasons, waiting=any(r.refusal.waits for r in refused))


def too_many(
    quarantine: Quarantine, reasons: Iterable[str], *, waiting: bool = False
) -> QuarantineFullError:
    """As `overflow`, by the rows' reasons; `waiting` says that rows of other tables may cure it."""
    table = quarantine.table
    first = "; ".join(reason for reason, _ in Counter(reasons).most_common(SHOWN_REASONS))
    kind = RowsWaitError if waiting else QuarantineFullError
    return kind(
        f"{table}: more rows cannot be applied than its quarantine may hold "
        f"({quarantine.max_rows}); nothing of this batch was applied. "
        f"Among the reasons: {first}",
        hint=f"headrace quarantine list {table} shows those parked before; cure the cause, then "
        f"headrace quarantine retry --table {table}, or drop; or raise quarantine.max_rows",
        table=str(table),
    )


# -- for people ------------------------------------------------------------------------------------


def count(cursor: Cursor, table: TableId) -> int:
    return int(only_row(cursor.execute(_COUNT, [table.schema, table.name]))[0])


def waits(cursor: Cursor, table: TableId) -> bool:
    """Whether rows of a table wait for rows that they refer to, or that refer to them."""
    found = cursor.execute(_WAITS, [table.schema, table.name, sorted(FOREIGN_KEYS)])
    return bool(only_row(found)[0])


def counts(cursor: Cursor, pipeline: str | None = None) -> dict[TableId, int]:
    """How many rows of each table are parked; tables without any are left out."""
    found = cursor.execute(_COUNTS, {"pipeline": pipeline})
    return {TableId(schema, name): rows for schema, name, rows in found}


def find(
    cursor: Cursor,
    *,
    ids: Sequence[int] | None = None,
    table: TableId | None = None,
    pipeline: str | None = None,
    limit: int | None = None,
) -> list[ParkedRow]:
    """Parked rows by table, oldest first; of all those named, or of all."""
    values = {
        "ids": None if ids is None else list(ids),
        "schema": table.schema if table else None,
        "name": table.name if table else None,
        "pipeline": pipeline,
        "limit": limit,
    }
    return [_parked(row) for row in cursor.execute(_SELECT, values)]


def _parked(row: tuple[Any, ...]) -> ParkedRow:
    identity, schema, name, pipeline, operation, key, *rest, payload = row
    first = (identity, TableId(schema, name), pipeline, Operation(operation), tuple(key))
    fields: list[Any] = [*first, *rest, decode_row(payload)]
    return ParkedRow(*fields)


def forget(cursor: Cursor, ids: Sequence[int]) -> int:
    """Drop parked rows for good; returns how many there were."""
    return cursor.execute(_DROP, [list(ids)]).rowcount if ids else 0


def forget_keys(cursor: Cursor, quarantine: Quarantine, passed: Sequence[ParkedRow]) -> None:
    """Let go of rows that were applied, and of the others under the same keys."""
    ids = {row.id for row in passed}
    if quarantine.key and passed:
        keys = {row.key for row in passed}
        standing = cursor.execute(_KEYS, quarantine._name)
        ids |= {identity for identity, key in standing if tuple(key) in keys}
    forget(cursor, sorted(ids))


def refused_again(cursor: Cursor, reasons: dict[int, Refusal]) -> None:
    """Note why rows that were tried again stay."""
    cursor.executemany(_REFUSED_AGAIN, [[why.code, *_why(why), i] for i, why in reasons.items()])
