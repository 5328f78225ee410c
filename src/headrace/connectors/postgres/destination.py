"""A Postgres database as a destination: its tables, and who may write them.

DESIGN.md §10. `table` gives a table that fulfils `SyncedTable`; see `replaceable_table`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import pyarrow as pa

from headrace.connectors.postgres import building, quarantine, querying, records
from headrace.connectors.postgres.check_target import check_database
from headrace.connectors.postgres.claim import Claim
from headrace.connectors.postgres.config import PostgresConnection, address
from headrace.connectors.postgres.former import drop_previous
from headrace.connectors.postgres.needed_types import NeededType, type_findings
from headrace.connectors.postgres.parked import ParkedRow
from headrace.connectors.postgres.replaceable_table import ReplaceableTable
from headrace.connectors.postgres.staging import Pace, at_once
from headrace.connectors.postgres.target_session import Cursor, TargetSession, target_errors
from headrace.model import Delivery, TableId
from headrace.model.finding import Finding

_TABLES: Final = """
SELECT n.nspname, c.relname
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'headrace', 'headrace_previous')
   AND n.nspname NOT LIKE 'pg\\_toast%'
 ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"""


class PostgresDestination:
    """`pace(rows, bytes)` is called before each batch is sent, and may block."""

    def __init__(self, connection: PostgresConnection, *, pace: Pace | None = None) -> None:
        self._settings = connection
        self._pace = pace or at_once
        self._session = TargetSession(connection)  # for what concerns no table; from one thread
        self._sessions: list[TargetSession] = []
        self._claims: list[Claim] = []

    @property
    def location(self) -> str:
        """The address, without secrets."""
        return address(self._settings)

    def table(
        self, name: TableId, pipeline: str, delivery: Delivery | None = None
    ) -> ReplaceableTable:
        """A table as one pipeline writes it, on a connection of its own; nothing is done yet."""
        session = TargetSession(self._settings, self._ensure_claims)
        self._sessions.append(session)
        return ReplaceableTable(session, name, pipeline, delivery or Delivery(), self._pace)

    def close(self) -> None:
        """Close the connections of all tables; they open new ones if they are used again."""
        for session in (self._session, *self._sessions):
            session.close()

    @contextmanager
    def claim(self, pipeline: str) -> Iterator[None]:
        """Be the only run of a pipeline here, for the length of a block.

        A claim that is lost with its connection is taken anew before any table makes one; those
        fail where another run came first.

        Raises:
            DestinationLockedError: another run is; says which.
        """
        claim = Claim(self._settings, pipeline)
        claim.take()
        self._claims.append(claim)
        try:
            yield
        finally:
            self._claims.remove(claim)
            claim.release()

    def _ensure_claims(self) -> None:
        for claim in [*self._claims]:
            claim.ensure()

    @contextmanager
    def running(self, pipeline: str) -> Iterator[None]:
        """Be the only run of a pipeline here, for the length of a block; see `begin_run`.

        Raises:
            DestinationLockedError: another run is; says which.
            UnsuitableTableError: somebody's object depends on a former generation.
        """
        with self.claim(pipeline):
            self.begin_run(pipeline)
            yield

    def begin_run(self, pipeline: str) -> None:
        """Sweep what a crashed run left, and let former generations go; hold the claim.

        Raises:
            UnsuitableTableError: somebody's object depends on a former generation.
        """
        with target_errors(self._settings):
            building.sweep(self._session.connection(), pipeline)
        with self._once() as cursor:
            names = records.with_former(cursor, pipeline) if records.are_there(cursor) else []
        for name in names:
            with target_errors(self._settings):
                drop_previous(self._session.connection(), name)
        self._session.close()  # a run lasts, and connections may be few

    def check_writable(self) -> None:
        """Make what Headrace keeps here, if it is missing.

        Raises:
            DestinationUnavailableError: the server cannot be reached for now.
            DestinationError: it cannot be done; says why.
        """
        with self._once() as cursor:
            records.ensure(cursor)

    def check(self) -> list[Finding]:
        """What the database lets us do; what is fine too, as OK."""
        return check_database(self._settings)

    def check_types(self, table: TableId, needed: Sequence[NeededType]) -> list[Finding]:
        """What of a source's own types is not here."""
        with self._session.transaction() as cursor:
            return list(type_findings(cursor.connection, table, needed))

    def latency(self) -> float:
        """Seconds that the least of questions takes.

        Raises:
            DestinationUnavailableError: the server cannot be reached for now.
        """
        connection = self._session.connection()
        asked = time.monotonic()
        with target_errors(self._settings):
            connection.execute("SELECT")
        return time.monotonic() - asked

    def tables(self) -> list[TableId]:
        """The tables of this database, whoever made them."""
        with self._once() as cursor:
            return [TableId(schema, name) for schema, name in cursor.execute(_TABLES)]

    def owner(self, name: TableId) -> str | None:
        """The pipeline that writes a table; None for another's table, or where there is none."""
        with self._once() as cursor:
            record = records.read(cursor, name) if records.are_there(cursor) else None
        return None if record is None else record.pipeline

    def query(self, sql: str) -> pa.Table:
        """The result of a query over this database, which cannot change anything.

        Raises:
            DestinationError: the query is wrong.
        """
        return querying.query(self._settings, sql)

    def forget_pipeline(self, pipeline: str) -> list[str]:
        """Drop what is kept for a pipeline; its tables stay. Gives a line for each thing."""
        with target_errors(self._settings):
            building.sweep(self._session.connection(), pipeline)
        with self._once() as cursor:
            names = records.tables_of(cursor, pipeline) if records.are_there(cursor) else []
        for name in names:
            with target_errors(self._settings):
                drop_previous(self._session.connection(), name)
        with self._once() as cursor:
            for name in names:
                quarantine.clear(cursor, name)
                records.forget(cursor, name)
        return [f"forgot where {name} stands; the table stays" for name in names]

    # -- rows that could not be applied ------------------------------------------------------------

    def quarantined_counts(self, pipeline: str | None = None) -> Mapping[TableId, int]:
        """How many rows of each table are parked; tables without any are left out."""
        with self._once() as cursor:
            there = records.are_there(cursor)
            return quarantine.counts(cursor, pipeline) if there else {}

    def parked(
        self,
        *,
        ids: Sequence[int] | None = None,
        table: TableId | None = None,
        pipeline: str | None = None,
    ) -> list[ParkedRow]:
        """Parked rows by table, oldest first; of all those named, or of all."""
        with self._once() as cursor:
            if not records.are_there(cursor):
                return []
            return quarantine.find(cursor, ids=ids, table=table, pipeline=pipeline)

    def forget_parked(self, ids: Sequence[int]) -> int:
        """Drop parked rows for good; returns how many there were."""
        with self._once() as cursor:
            return quarantine.forget(cursor, ids) if records.are_there(cursor) else 0

    @contextmanager
    def _once(self) -> Iterator[Cursor]:
        """A transaction on a connection of its own, for what is done now and then."""
        session = TargetSession(self._settings)
        try:
            with session.transaction() as cursor:
                yield cursor
        finally:
            session.close()
