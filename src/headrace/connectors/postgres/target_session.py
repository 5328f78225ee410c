"""One connection to a destination: opened when needed, opened anew after it was lost.

What goes wrong comes out as a destination's error. The mapping from libpq's texts and from
SQLSTATEs is the one of `config`, so that source and destination judge a server alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres.config import connect, query_error
from headrace.errors import (
    DestinationError,
    DestinationUnavailableError,
    HeadraceError,
    SourceError,
)

Cursor = psycopg.Cursor[tuple[Any, ...]]
Connection = psycopg.Connection[tuple[Any, ...]]

# `synchronous_commit = off` loses no change: a commit that a crash of the server takes away takes
# rows and checkpoint together, and the changes are applied again from the checkpoint that is left.
# What makes or alters tables is durable (`make_durable`).
# A lock is not waited for without end: whoever comes later would queue up behind us.
_SETTINGS: Final = """
SELECT pg_catalog.set_config('synchronous_commit', 'off', false),
       pg_catalog.set_config('lock_timeout', '30s', false)
"""


# Of sessions that write. What a batch costs is to follow the batch, not its table: staged rows find
# theirs by the key's index, unless the table is small beside the batch. The planner would expect a
# page from the disk for each and read the whole table instead (PostgreSQL documentation, "Planner
# Cost Constants": pages in memory); but keys come sorted or near each other, and INSERT … ON
# CONFLICT visits the same pages anyway.
_PLANNING: Final = """
SELECT pg_catalog.set_config('random_page_cost', '0.1', false),
       pg_catalog.set_config('seq_page_cost', '0.1', false)
"""


# What nobody would do again: whoever comes after goes by a table that stands, with its columns.
_DURABLE: Final = "SET LOCAL synchronous_commit = on"


def make_durable(cursor: Cursor) -> None:
    """Let the open transaction survive a crash of the server once its COMMIT is answered."""
    cursor.execute(_DURABLE)


def only_row(cursor: Cursor) -> tuple[Any, ...]:
    """What a query gave that always has one row."""
    row = cursor.fetchone()
    assert row is not None
    return row


class TargetSession:
    """Used by one thread at a time. `before` is called before each connection is made."""

    def __init__(
        self, settings: PostgresConnection, before: Callable[[], None] | None = None
    ) -> None:
        self.settings = settings
        self._before = before
        self.staged: set[str] = set()  # temporary tables that stand in this connection
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """The open connection, in autocommit.

        Raises:
            DestinationUnavailableError: the server cannot be reached for now.
            DestinationError: the server refuses us, or `before` does.
        """
        if self._connection is None or self._connection.closed:
            self.staged.clear()
            if self._before is not None:
                self._before()
            connection = connect_target(self.settings)
            with target_errors(self.settings):
                connection.execute(_PLANNING)
            self._connection = connection
        return self._connection

    @contextmanager
    def transaction(self, *, but: type[psycopg.Error] | None = None) -> Iterator[Cursor]:
        """A transaction for the length of a block, committed at its end. `but` comes out as it is.

        Raises:
            DestinationUnavailableError: the connection was lost; where that was in the COMMIT, the
                outcome is unknown until somebody reads the checkpoint.
            DestinationError: the server refused a statement.
        """
        connection = self.connection()
        errors = target_errors(self.settings, but=but)
        with errors, connection.transaction(), connection.cursor() as cursor:
            yield cursor

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def connect_target(settings: PostgresConnection) -> Connection:
    """An autocommit session as destinations are written through.

    Raises:
        DestinationUnavailableError: the server cannot be reached for now.
        DestinationError: the server refuses us.
    """
    try:
        connection = connect(settings)
    except SourceError as error:
        raise as_destination(error) from error.__cause__
    with target_errors(settings):
        connection.execute(_SETTINGS)
    return connection


@contextmanager
def target_errors(
    settings: PostgresConnection, *, but: type[psycopg.Error] | None = None
) -> Iterator[None]:
    """What psycopg raises inside comes out as a DestinationError of ours, all but `but`."""
    try:
        yield
    except psycopg.Error as error:
        if but is not None and isinstance(error, but):
            raise
        raise as_destination(query_error(error, settings)) from error


def as_destination(error: HeadraceError) -> HeadraceError:
    """An error of `config`, which speaks of sources, as one of a destination."""
    kind = DestinationUnavailableError if error.transient else DestinationError
    return kind(error.message, hint=error.hint, **error.context)
