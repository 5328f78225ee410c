"""A Postgres database as a destination: its tables, and who may write them.

DESIGN.md §10. `table` gives a table that fulfils `SyncedTable`; see `synced_table`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from headrace.connectors.postgres import records
from headrace.connectors.postgres.config import PostgresConnection, address
from headrace.connectors.postgres.staging import Pace, at_once
from headrace.connectors.postgres.synced_table import PostgresTable
from headrace.connectors.postgres.target_session import TargetSession, connect_target, target_errors
from headrace.model import Delivery, TableId

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

    def __init__(self, connection: PostgresConnection, *, pace: Pace = at_once) -> None:
        self._settings = connection
        self._pace = pace
        self._sessions: list[TargetSession] = []

    @property
    def location(self) -> str:
        """The address, without secrets."""
        return address(self._settings)

    def table(
        self, name: TableId, pipeline: str, delivery: Delivery | None = None
    ) -> PostgresTable:
        """A table as one pipeline writes it, on a connection of its own; nothing is done yet."""
        session = TargetSession(self._settings)
        self._sessions.append(session)
        return PostgresTable(session, name, pipeline, delivery or Delivery(), self._pace)

    def close(self) -> None:
        """Close the connections of all tables; they open new ones if they are used again."""
        for session in self._sessions:
            session.close()

    def claim(self, pipeline: str) -> AbstractContextManager[None]:
        """Be the only run of a pipeline here, for the length of a block.

        Raises:
            DestinationLockedError: another run is; says which.
        """
        return records.claim(self._settings, pipeline)

    def check_writable(self) -> None:
        """Make what Headrace keeps here, if it is missing.

        Raises:
            DestinationUnavailableError: the server cannot be reached for now.
            DestinationError: it cannot be done; says why.
        """
        session = TargetSession(self._settings)
        try:
            with session.transaction() as cursor:
                records.ensure(cursor)
        finally:
            session.close()

    def tables(self) -> list[TableId]:
        """The tables of this database, whoever made them."""
        with connect_target(self._settings) as connection, target_errors(self._settings):
            return [TableId(schema, name) for schema, name in connection.execute(_TABLES)]

    def owner(self, name: TableId) -> str | None:
        """The pipeline that writes a table; None for another's table, or where there is none."""
        with connect_target(self._settings) as connection, target_errors(self._settings):
            cursor = connection.cursor()
            record = records.read(cursor, name) if records.are_there(cursor) else None
        return None if record is None else record.pipeline
