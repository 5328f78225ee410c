"""A database for one test: fresh, and dropped afterwards with all that it holds on its server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import conninfo, sql


@dataclass(frozen=True)
class Database:
    """A database; `dsn` is its superuser's."""

    name: str
    dsn: str

    def connect(self, **parameters: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A new autocommit connection; the caller closes it."""
        return psycopg.connect(self.dsn, **{"autocommit": True, **parameters})

    def execute(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement, or several without parameters; the rows of the last, if any."""
        with self.connect() as connection:
            cursor = connection.execute(query.encode(), parameters)
            while cursor.nextset():
                pass
            # Rows without columns are rows too; such a result has no description.
            return [] if cursor.rownumber is None else cursor.fetchall()


@contextmanager
def temporary_database(server_dsn: str) -> Iterator[Database]:
    """A database on the server of `server_dsn`, a superuser's DSN, for the length of the block."""
    name = f"headrace_{secrets.token_hex(6)}"
    database = Database(name, conninfo.make_conninfo(server_dsn, dbname=name))
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield database
        finally:
            _drop(admin, database)


def _drop(admin: psycopg.Connection[Any], database: Database) -> None:
    """Dropping a database drops its slots too, once nobody uses them.

    A transaction that is still prepared would keep it from being dropped, and others from making
    slots on that server.
    """
    terminate_users = (
        "select pg_terminate_backend(active_pid) from pg_replication_slots"
        " where database = %s and active_pid is not null"
    )
    while admin.execute(terminate_users, [database.name]).fetchall():
        admin.execute("select pg_sleep(0.01)")
    prepared = "select gid from pg_prepared_xacts where database = %s"
    for (gid,) in admin.execute(prepared, [database.name]).fetchall():
        database.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)).as_string())
    admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(database.name)))
