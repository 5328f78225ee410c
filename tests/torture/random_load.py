"""Transactions drawn by chance, several at a time, on a server that may die beneath them.

One thread goes on with one statement of one session after the other, in an order that the seed
decides. Whether a transaction that was under way when its server died has been committed, nobody
knows here, nor needs to: the source itself is what its copies are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Self

import psycopg
from random_statements import CHANGES, DEFINITIONS, LARGE, draw
from random_tables import Table, look

from headrace.testing.database import Database

NAMES = ("first", "second", "third")  # of sessions, and of what they prepare
ABANDONING = "third"  # it commits nothing that it has prepared
# One thread drives all sessions: none may wait for a lock that another one holds.
OPTIONS = "-c lock_timeout=100ms -c statement_timeout=20s"


class Session:
    """A connection with the transaction that it is in the middle of."""

    def __init__(self, database: Database, tables: Sequence[Table], name: str) -> None:
        self._database, self._tables, self._name = database, tables, name
        self._connection: psycopg.Connection[Any] | None = None
        self._steps: Iterator[None] = iter(())

    def step(self, chance: Random) -> None:
        """Go on by a statement or, where the last one was the end, with a new transaction."""
        try:
            if next(self._steps, self) is self:
                self._steps = self._transaction(self._connected(), chance)
                next(self._steps, None)
        except psycopg.OperationalError:
            self.leave()  # the server has died, or did while nobody asked it

    def leave(self) -> None:
        self._steps = iter(())
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            connection = self._database.connect(options=OPTIONS)
            self._connection = connection
        self.decide(self._connection)
        return self._connection

    def decide(self, connection: psycopg.Connection[Any]) -> None:
        """End what this session has prepared, maybe before its server died."""
        prepared = "select from pg_prepared_xacts where gid = %s"
        if connection.execute(prepared, [self._name]).fetchall():
            verb = "rollback" if self._name == ABANDONING else "commit"
            connection.execute(f"{verb} prepared '{self._name}'".encode())

    def _transaction(self, connection: psycopg.Connection[Any], chance: Random) -> Iterator[None]:
        """Its statements, one at a time; all chance is drawn before anything is tried."""
        weights = LARGE if chance.random() < 0.1 else CHANGES
        seeds = [chance.random() for _ in range(chance.randint(1, 7))]
        ending = chance.choices(("commit", "rollback", "prepare"), (8, 1, 1))[0]
        connection.execute("begin")
        for seed in seeds:
            with suppress(
                psycopg.Error
            ):  # a key that is there, a lock; the server's end shows below
                self._statements(connection, Random(seed), weights)
            if connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
                connection.execute("rollback")
                return
            yield
        connection.execute(f"prepare transaction '{self._name}'" if ending == "prepare" else ending)
        yield

    def _statements(
        self, connection: psycopg.Connection[Any], chance: Random, weights: dict[Any, float]
    ) -> None:
        """What is drawn for one table; in a savepoint, mostly, which may be rolled back."""
        table = chance.choice(self._tables)
        kind = chance.random()
        if kind < 0.1:
            weights = DEFINITIONS[table.temper]
        guarded, kept = chance.random() < 0.7, chance.random() < 0.75
        if guarded:
            connection.execute("savepoint s")
        try:
            for statement in draw(chance, weights, look(connection, table)):
                connection.execute(statement.encode())
        except psycopg.Error:
            kept = False
            if not guarded or connection.closed:
                raise
        if guarded:
            connection.execute("release s" if kept else "rollback to s")


class RandomLoad:
    """All sessions, from entering the block to leaving it, with nothing left half done."""

    def __init__(self, database: Database, tables: Sequence[Table], chance: Random) -> None:
        self._chance = chance
        self._database = database
        self._sessions = [Session(database, tables, name) for name in NAMES]

    def steps(self, count: int) -> None:
        """So many statements, by sessions in random order."""
        for _ in range(count):
            session = self._chance.choice(self._sessions)
            session.step(Random(self._chance.random()))

    def rest(self) -> None:
        """End every transaction."""
        with self._database.connect() as connection:
            for session in self._sessions:
                session.leave()
                session.decide(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._sessions:
            session.leave()
