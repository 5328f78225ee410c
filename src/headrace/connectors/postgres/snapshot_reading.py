"""The reading part of snapshots: sessions that see an exported snapshot, and what they read."""

from __future__ import annotations

import queue
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import psycopg
import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.config import LIFT_LIMITS
from headrace.connectors.postgres.copy_out import copy_out
from headrace.connectors.postgres.decoding import BoundSchema
from headrace.errors import (
    HeadraceError,
    SourceError,
    SourceUnavailableError,
    TableRewrittenError,
)
from headrace.model import Lsn, SnapshotChunk, TableId, TableSchema

Reader: TypeAlias = psycopg.Connection[Any]

# Who alters a table may take any time; and while a reader waits, it does not copy another table.
LOCK_PATIENCE = "2s"

# TRUNCATE and ALTER TABLEs that rewrite a table are not MVCC-safe: a snapshot taken before finds it
# empty (Postgres documentation, "Caveats" of concurrency control). They give it a new file, which
# pg_relation_filenode tells as of now and pg_class as of the snapshot. Partitions count too.
REWRITTEN = """
SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
 WHERE (c.oid = {oid} OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree({oid})))
   AND nullif(c.relfilenode, 0) IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid)
"""

# libpq reads 16 KiB of the socket at a time, until a larger message has made its buffer grow, which
# stays so: a third of the time that receiving wide rows took was that of so many small reads.
GROW_BUFFER = "SELECT pg_catalog.repeat(' ', 256 * 1024)"

# SQLSTATE 22021 and 22P05: text that is not what the database's encoding says, or has no place in
# UTF-8.
UNREADABLE_TEXT = (psycopg.errors.CharacterNotInRepertoire, psycopg.errors.UntranslatableCharacter)


@dataclass(frozen=True)
class Plan:
    """How one table is copied."""

    bound: BoundSchema
    relation: str  # as FROM and LOCK name it
    oid: int
    select: str
    chunks: tuple[SnapshotChunk, ...]
    identity: str


class PostgresSnapshot:
    """See `engine.protocols.Snapshot`; at most as many chunks are read at once as connections."""

    def __init__(
        self,
        lsn: Lsn,
        taken_at: datetime,
        plans: Mapping[TableId, Plan | HeadraceError],
        readers: queue.SimpleQueue[Reader],
    ) -> None:
        self.lsn = lsn
        self.taken_at = taken_at
        self._plans = plans
        self._readers = readers

    def _plan(self, table: TableId) -> Plan:
        plan = self._plans[table]
        if isinstance(plan, HeadraceError):
            raise plan
        return plan

    def schema(self, table: TableId) -> TableSchema:
        return self._plan(table).bound.schema

    def chunks(self, table: TableId) -> Sequence[SnapshotChunk]:
        return self._plan(table).chunks

    def identity(self, table: TableId) -> str:
        return self._plan(table).identity

    def read(self, chunk: SnapshotChunk) -> Generator[pa.RecordBatch]:
        """The rows of a chunk, in the very types and values that the stream gives.

        Raises:
            TableRewrittenError: the snapshot no longer sees the table's rows, or somebody who
                may be about to bring that about has locked it.
            SourceUnavailableError: the connection was lost.
            SourceError: the role may not read the table.
        """
        plan = self._plan(chunk.table)
        query = f"{plan.select} WHERE {chunk.where}"
        reader = self._readers.get()
        try:
            _hold(reader, chunk.table, plan)
            for rows in copy_out(reader, query, plan.bound.wanted):
                yield plan.bound.copied(rows)
        except psycopg.Error as error:
            raise _read_error(chunk.table, error) from error
        finally:
            _let_go(reader)
            self._readers.put(reader)


def _hold(reader: Reader, table: TableId, plan: Plan) -> None:
    """Keep a table from being truncated or rewritten until it is read; refuse one that was.

    A reader holds one table's lock at a time, so that nobody who wants several can come into a
    deadlock with it.
    """
    patience = f"SET LOCAL lock_timeout = '{LOCK_PATIENCE}'"
    lock = f"{patience}; LOCK TABLE {plan.relation} IN ACCESS SHARE MODE"
    rewritten = REWRITTEN.format(oid=plan.oid)
    cursor = reader.execute(f"SAVEPOINT chunk; {lock}; {rewritten}".encode())  # one round trip
    while cursor.nextset():
        continue
    found = cursor.fetchone()
    if found is not None:
        raise TableRewrittenError(
            f"{table}: {found[0]} was truncated or rewritten after the snapshot was taken",
            hint="Headrace copies the table anew",
        )


def _let_go(reader: Reader) -> None:
    """Release the lock, and forget an error; where that fails, the reader's next chunk does too."""
    with suppress(psycopg.Error):
        reader.execute("ROLLBACK TO SAVEPOINT chunk")


def _read_error(table: TableId, error: psycopg.Error) -> SourceError:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return SourceError(
            f"{table}: the role may not read all of it: {error}",
            hint=f"GRANT SELECT ON {table} TO <role>; where row-level security hides rows: "
            f"ALTER ROLE <role> BYPASSRLS; then headrace resync {table}",
        )
    if isinstance(error, UNREADABLE_TEXT):
        return SourceError(  # no second attempt reads it better
            f"{table}: a value cannot be read: {error}",
            hint=f"mend it at the source, then: headrace resync {table}",
        )
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return TableRewrittenError(
            f"{table}: somebody has locked it, who may be about to rewrite it",
            hint="Headrace copies it anew, after the others; headrace status names who it is",
        )
    return SourceUnavailableError(
        f"{table}: copying it failed: {error}", hint="Headrace copies the table anew"
    )


def connect_reader(conninfo: str) -> Reader:
    try:
        with ExitStack() as stack:
            reader = stack.enter_context(closing(psycopg.connect(conninfo, autocommit=True)))
            reader.execute(LIFT_LIMITS)
            reader.execute(GROW_BUFFER)
            stack.pop_all()
            return reader
    except psycopg.Error as error:
        raise SourceUnavailableError(
            f"a connection for the snapshot was refused: {error}",
            hint="check max_connections and pg_hba.conf; Headrace tries again",
        ) from error


def close_reader(opening: Future[Reader]) -> None:
    if opening.exception() is None:
        opening.result().close()


def import_snapshot(reader: Reader, snapshot: str) -> Reader:
    """Begin a transaction that sees what the exported snapshot does, and all of its rows.

    Where a policy would hide some, since the preflight, the server refuses to read the table.
    """
    try:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        reader.execute("SET LOCAL row_security = off")
        reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
    except psycopg.Error as error:
        raise SourceUnavailableError(
            f"the exported snapshot could not be imported: {error}",
            hint="Headrace takes a new snapshot",
        ) from error
    return reader
