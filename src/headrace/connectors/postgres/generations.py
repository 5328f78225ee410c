"""Swapping a new generation of a table in, in one transaction with its checkpoint, and undoing it.

The new table takes the live one's name, its members' names, and everything that hung on it
(`dependents`); the former one moves to schema PREVIOUS under a name of its own and stays until the
next run. Readers wait for the length of a few catalog changes, and see the old rows or the new.

Three things are less obvious than they look:

- Whoever holds a snapshot from before the load (REPEATABLE READ) would find the new table empty or
  half filled: it is not MVCC-safe, as TRUNCATE is not. So a swap waits for those transactions.
- A lock that is waited for makes all later readers wait behind it. No attempt waits longer than
  LOCK_WAIT in all, less than deadlock_timeout: a reader who comes from the other side (table
  first, then view) is never chosen as a deadlock's victim, because the swap gives up before.
- Prepared statements and PL/pgSQL go on: Postgres plans them anew by name, and as long as the
  columns are what they were, their clients notice nothing. Cached plans of another result type
  fail with "cached plan must not change result type", as after any ALTER TABLE.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from headrace.connectors.postgres import records
from headrace.connectors.postgres.building import (
    PREVIOUS,
    WORK,
    Built,
    mark,
    run_script,
    table_oid,
    unswappable,
)
from headrace.connectors.postgres.definition import (
    QUALIFIED_NAMES,
    Definition,
    catalog_rows,
    read_definition,
    read_grantees,
    read_stripping,
)
from headrace.connectors.postgres.dependents import Dependents, obstacles, read_dependents
from headrace.connectors.postgres.exchange import (
    dress,
    move_away,
    move_home,
    positions,
    revoke,
    stored_names,
)
from headrace.connectors.postgres.former import Previous, drop, previous, remember, settle
from headrace.connectors.postgres.identifiers import relation
from headrace.connectors.postgres.table_locks import PATIENCE, Wait, take_turn
from headrace.connectors.postgres.target_session import Connection, Cursor
from headrace.errors import DestinationConflictError, NoGenerationError, UnsuitableTableError
from headrace.failpoints import hit
from headrace.model import TableId

Commit = Callable[[Cursor], None]


# -- whether ---------------------------------------------------------------------------------------

# Reasons that lie in the table itself, the most telling first.
_REASONS: Final = """
SELECT reason FROM (
SELECT 1, CASE WHEN c.relkind = 'p' THEN 'it is partitioned' WHEN c.relkind <> 'r' THEN
       'it is no table' WHEN c.relpersistence = 't' THEN 'it is temporary'
       WHEN c.relispartition THEN 'it is a partition' WHEN c.reloftype <> 0 THEN
       'it is a table of a type' END
  FROM pg_class c WHERE c.oid = $1::oid
 UNION ALL
SELECT 2, 'it inherits from ' || inhparent::regclass FROM pg_inherits WHERE inhrelid = $1::oid
 UNION ALL
SELECT 2, inhrelid::regclass || ' inherits from it' FROM pg_inherits WHERE inhparent = $1::oid
 UNION ALL
SELECT 3, format('column %I is none of the source''s', attname) FROM pg_attribute
 WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
   AND attname <> ALL ($2::text[])
 UNION ALL
SELECT 4, 'a subscription writes it' FROM pg_subscription_rel WHERE srrelid = $1::oid
 UNION ALL
SELECT 4, format('publication %I publishes it, and its subscribers would not see the new rows',
       pubname)
  FROM pg_publication_tables p JOIN pg_class c ON c.oid = $1::oid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE p.schemaname = n.nspname AND p.tablename = c.relname
 UNION ALL
SELECT 5, format('which rows break constraint %I only they can show one by one', k.conname)
  FROM pg_constraint k
 WHERE k.conrelid = $1::oid
   AND (k.contype = 'x' OR (to_jsonb(k) ->> 'conperiod')::boolean)
 UNION ALL
SELECT 6, format('%s is partitioned, and refers to it', k.conrelid::regclass)
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
 WHERE k.confrelid = $1::oid AND k.contype = 'f' AND c.relkind = 'p'
 UNION ALL
SELECT 7, format('the trigger of foreign key %I on %s is not simply enabled', k.conname,
                 g.tgrelid::regclass)
  FROM pg_constraint k JOIN pg_trigger g ON g.tgconstraint = k.oid
 WHERE $1::oid IN (k.conrelid, k.confrelid) AND k.contype = 'f' AND g.tgisinternal
   AND g.tgenabled <> 'O'
 UNION ALL
SELECT 8, format('constraint %I looks at the whole row', k.conname)
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
 WHERE k.conrelid = $1::oid AND k.contype = 'c'
   AND strpos(pg_get_constraintdef(k.oid), quote_ident(c.relname) || '.*') > 0
 UNION ALL
SELECT 8, format('index %I looks at the whole row', i.relname)
  FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
 WHERE x.indrelid = $1::oid
   AND strpos(pg_get_indexdef(i.oid), quote_ident(c.relname) || '.*') > 0
) reasons(step, reason) WHERE reason IS NOT NULL ORDER BY step, reason
"""


def swappable(connection: Connection, live: TableId, columns: Sequence[str]) -> str | None:
    """Why a table cannot be swapped without losing something, in a clause; None if it can be.

    `columns` are those that the source fills; generated ones need not be among them.

    Raises:
        UnsuitableTableError: there is no such table.
    """
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(QUALIFIED_NAMES)
        definition = _definition(cursor, live)
        reasons = catalog_rows(cursor, _REASONS, definition.oid, list(columns))
        found = [row[0] for row in reasons] or obstacles(cursor, definition.oid)
    return found[0] if found else None


# -- swapping --------------------------------------------------------------------------------------


def swap(
    connection: Connection,
    built: Built,
    commit: Commit,
    *,
    patience: float = PATIENCE,
    wait: Wait = time.sleep,
) -> None:
    """Let a new generation take the live table's place; `commit` writes the checkpoint.

    `commit` is called once per attempt that got the locks, in the transaction of the swap, and must
    leave a row for the table in headrace.checkpoints. `wait(seconds)` lets time pass between
    attempts, and may return True to give up. Tables of rows that were set aside are dropped.

    Raises:
        TableBusyError: others held the table or an older snapshot for `patience` seconds.
        DestinationConflictError: somebody changed the table's definition meanwhile.
        UnswappableError: the server refuses to give the new table what the live one has.
    """
    live, made = built.build.live, built.build.table
    exchange = partial(_exchange, built=built, commit=commit)
    take_turn(connection, live, made, exchange, built.snapshots, patience, wait)
    hit("postgres.swapped")
    settle(connection, live)


def _exchange(cursor: Cursor, built: Built, commit: Commit) -> None:
    """The swap itself, under all locks."""
    live = built.build.live
    definition, dependents = _unchanged(cursor, built)
    former = _former(cursor, definition, dependents)
    made = table_oid(cursor, built.build.table)
    granted = read_grantees(cursor, made)
    drop(cursor, live)
    away = TableId(PREVIOUS, former.table)
    script = [
        *dependents.release(),
        *_strip(cursor, definition),
        *read_stripping(cursor, made),
        *move_away(live, former.names, away),
        *move_home(built.build.table, built.names, live),
        *dress(definition, granted),
        *positions(definition, former.names, away.schema),
        *definition.finish,
        *dependents.attach(),
    ]
    try:
        run_script(cursor, script)
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError) as error:
        raise unswappable(live, error) from error
    commit(cursor)
    for aside in built.set_aside:
        cursor.execute(sql.SQL("DROP TABLE {}").format(relation(aside.table)))
    remember(cursor, live, former)
    hit("postgres.swap")


_CHECKPOINT: Final = """
SELECT to_jsonb(c) - 'previous' FROM headrace.checkpoints c
 WHERE table_schema = %s AND table_name = %s
"""


def _unchanged(cursor: Cursor, built: Built) -> tuple[Definition, Dependents]:
    """The live table as it is now, which must be what the new one was made like."""
    build = built.build
    definition = _definition(cursor, build.live)
    dependents = read_dependents(cursor, definition.oid)
    keys = build.dependents.foreign_keys
    lost = obstacles(cursor, definition.oid)
    if definition != build.definition or dependents.foreign_keys != keys or lost:
        raise DestinationConflictError(
            f"{build.live} was changed while it was built anew"
            + (f": {lost[0]}" if lost else " (columns, indexes, rights or the like)"),
            hint="Headrace builds it again",
            table=str(build.live),
        )
    return definition, dependents


def _former(cursor: Cursor, definition: Definition, dependents: Dependents) -> Previous:
    live = definition.table
    token = f"t{secrets.token_hex(6)}"
    row = cursor.execute(_CHECKPOINT.encode(), [live.schema, live.name]).fetchone()
    return Previous(
        token,
        stored_names(definition, token),
        row[0] if row else {},
        tuple(dependents.validations()),
    )


# -- undoing ---------------------------------------------------------------------------------------


def undo(
    connection: Connection,
    live: TableId,
    why: str,
    *,
    patience: float = PATIENCE,
    wait: Wait = time.sleep,
) -> tuple[str, ...]:
    """Bring a table's former generation back, with its checkpoint; the table is held then.

    Rows, indexes and constraints are the former ones; rights, policies, triggers and what hangs on
    the table stay as they are now. The generation that was undone goes with the next `sweep`: a
    function that was parsed before may just be about to read it. Hold the pipeline's claim
    (`PostgresDestination.claim`), so that no run writes meanwhile.

    Returns statements that are true of the table now and could not be carried over, because the
    former generation lacks a column or an index.

    Raises:
        NoGenerationError: there is none.
        TableBusyError: others held the table for `patience` seconds.
    """
    with connection.transaction(), connection.cursor() as cursor:
        stored = TableId(PREVIOUS, _wanted(cursor, live).table)
    bring_back = partial(_bring_back, live=live, why=why)
    lost = take_turn(connection, live, stored, bring_back, frozenset(), patience, wait)
    settle(connection, live)
    return lost


def _bring_back(cursor: Cursor, live: TableId, why: str) -> tuple[str, ...]:
    """The undoing itself, under all locks; gives what could not be carried over."""
    former = _wanted(cursor, live)
    definition = _definition(cursor, live)
    dependents = read_dependents(cursor, definition.oid)
    stored = TableId(PREVIOUS, former.table)
    granted = read_grantees(cursor, table_oid(cursor, stored))
    undone = TableId(WORK, f"t{secrets.token_hex(6)}")
    names = stored_names(definition, undone.name)
    moves = [
        *dependents.release(),
        *_strip(cursor, definition),
        *move_away(live, names, undone),
        *move_home(stored, former.names, live),
    ]
    run_script(cursor, moves)
    carried = [
        *dress(definition, granted),
        *positions(definition, names, undone.schema),
        *definition.finish,
    ]
    lost = tuple(_run_what_fits(cursor, carried))
    run_script(cursor, dependents.attach())
    mark(cursor, undone, live, _pipeline(cursor, live))
    _restore_checkpoint(cursor, live, former, why)
    remember(cursor, live, Previous("", (), {}, tuple(dependents.validations())))
    hit("postgres.undo")
    return lost


def _strip(cursor: Cursor, definition: Definition) -> Iterator[str]:
    """What leaves a table that moves away with its rows, indexes and constraints only."""
    yield from read_stripping(cursor, definition.oid)
    yield from revoke(definition, read_grantees(cursor, definition.oid))


def _run_what_fits(cursor: Cursor, statements: Iterable[str]) -> Iterator[str]:
    """Run statements, each by itself; yield those that name what the table does not have."""
    for statement in statements:
        try:
            with cursor.connection.transaction():
                cursor.execute(statement.encode())
        except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedObject):
            yield statement


def _pipeline(cursor: Cursor, live: TableId) -> str:
    record = records.read(cursor, live)
    return record.pipeline if record else ""


def _wanted(cursor: Cursor, live: TableId) -> Previous:
    former = previous(cursor, live)
    if former is None or not former.table:
        raise NoGenerationError(
            f"there is no former generation of {live}",
            hint="it is kept from a rebuild of the table until the next run begins; one that was "
            "changed in place has none",
            table=str(live),
        )
    return former


_RESTORE: Final = """
WITH undone AS (
    DELETE FROM headrace.checkpoints c WHERE table_schema = %s AND table_name = %s RETURNING c.*
)
INSERT INTO headrace.checkpoints
SELECT (jsonb_populate_record(NULL::headrace.checkpoints, to_jsonb(undone) || %s)).* FROM undone
"""


def _restore_checkpoint(cursor: Cursor, live: TableId, former: Previous, why: str) -> None:
    """The row as it was before the swap; columns that it did not have yet stay as they are."""
    row = Jsonb({**former.checkpoint, "held": why})
    cursor.execute(_RESTORE.encode(), [live.schema, live.name, row])


def _definition(cursor: Cursor, live: TableId) -> Definition:
    definition = read_definition(cursor, live)
    if definition is None:
        raise UnsuitableTableError(
            f"{live} does not exist", hint=f"headrace resync {live}", table=str(live)
        )
    return definition
