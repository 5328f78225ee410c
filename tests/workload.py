"""A random workload, reproducible by its seed, on tables that are hard to replicate.

Few keys, so that they are deleted, inserted again and moved onto each other within a transaction;
values that are TOASTed and left alone by most updates; rows without a key that come twice;
savepoints and rollbacks; TRUNCATE.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import psycopg

from headrace.testing.database import Database

SCHEMA = """
create table customers (
    id int primary key, name text, balance numeric(12, 2), ratio double precision,
    seen timestamptz, born date, photo bytea, vip boolean
);
create table documents (code text primary key, body text, version int not null);
alter table documents alter column body set storage external;
create table lines (
    order_id bigint, line_no smallint, item text, price numeric(10, 3),
    primary key (order_id, line_no)
);
create table events (kind text, note text, blob text);
alter table events alter column blob set storage external;
alter table events replica identity full;
"""

# What is compared, with the source's columns as the destination shows them.
TABLES = ("customers", "documents", "lines", "events")

TOASTED = 10_000  # bytes; hexadecimal digits at random do not compress below TOAST's 2 kB


def create_tables(database: Database, seed: int, rows: int = 60) -> None:
    """Make the tables, with some rows in each: what the first snapshot copies."""
    database.execute(SCHEMA)
    with database.connect(autocommit=False) as connection:
        workload = Workload(connection, seed)
        for _ in range(rows):
            for insert in (workload.customer, workload.document, workload.line, workload.event):
                insert()


class Workload:
    """Transactions on one connection, which must not be in autocommit mode.

    `commits` counts the transactions of which the server told us that they are durable.
    """

    def __init__(self, connection: psycopg.Connection[Any], seed: int) -> None:
        self.connection = connection
        self.random = random.Random(seed)
        self.commits = 0

    def run(self, transactions: int) -> None:
        for _ in range(transactions):
            self.transaction()

    def transaction(self) -> None:
        """One transaction: some operations, half of them in savepoints; one in ten rolls back."""
        for _ in range(self.random.randint(1, 8)):
            with self._maybe_savepoint():
                self.operation()
        if self.random.random() < 0.1:
            self.connection.rollback()
        else:
            self.connection.commit()
            self.commits += 1

    @contextmanager
    def _maybe_savepoint(self) -> Iterator[None]:
        if self.random.random() < 0.5:
            yield
            return
        keep = self.random.random() < 0.7
        self.connection.execute("savepoint s")
        yield
        self.connection.execute("release savepoint s" if keep else "rollback to savepoint s")

    def operation(self) -> None:
        """One statement or two, chosen by weight."""
        (chosen,) = self.random.choices(
            [
                *(self.customer, self.change_customer, self.move_customer, self.forget_customer),
                *(self.document, self.touch_document, self.move_document, self.forget_document),
                *(self.line, self.renumber_lines, self.forget_lines),
                *(self.event, self.events_in_bulk, self.change_events, self.forget_events),
                self.truncate,
            ],
            weights=[6, 5, 3, 3, 4, 7, 4, 2, 6, 3, 2, 6, 1, 3, 3, 0.2],
        )
        chosen()

    def _execute(self, statement: str, *parameters: Any) -> None:
        self.connection.execute(statement.encode(), parameters)

    # -- a number as its key -----------------------------------------------------------------------

    def _id(self) -> int:
        return self.random.randint(1, 80)

    def customer(self) -> None:
        self._execute(
            "insert into customers values (%s, %s, %s, %s, now(), current_date - %s, %s, %s)"
            " on conflict (id) do update set name = excluded.name, balance = excluded.balance",
            self._id(),
            self.random.choice([None, "", "Ærø", "O'Neill\n", "x" * self.random.randint(1, 50)]),
            self.random.randint(-(10**11), 10**11) / 100,
            self.random.uniform(-1e300, 1e300),
            self.random.randint(0, 40_000),
            self.random.randbytes(self.random.randint(0, 20)),
            self.random.choice([True, False, None]),
        )

    def change_customer(self) -> None:
        self._execute(
            "update customers set balance = balance + 1, seen = clock_timestamp()"
            " where id %% 7 = %s",
            self.random.randint(0, 6),
        )

    def move_customer(self) -> None:
        self._execute(
            "update customers set id = %s where id = %s"
            " and not exists (select from customers where id = %s)",
            *([to := self._id(), self._id(), to]),
        )

    def forget_customer(self) -> None:
        self._execute("delete from customers where id = %s", self._id())

    # -- a text as its key, and a value that is TOASTed --------------------------------------------

    def _code(self) -> str:
        return f"doc-{self.random.randint(1, 25)}"

    def _body(self) -> str:
        return self.random.randbytes(TOASTED // 2).hex()

    def document(self) -> None:
        self._execute(
            "insert into documents values (%s, %s, 0)"
            " on conflict (code) do update set body = excluded.body",
            self._code(),
            self._body(),
        )

    def touch_document(self) -> None:
        """The body is not sent: it did not change."""
        self._execute("update documents set version = version + 1 where code = %s", self._code())

    def move_document(self) -> None:
        """The body is not sent, and the row it stands in has another key at the destination."""
        self._execute(
            "update documents set code = %s where code = %s"
            " and not exists (select from documents where code = %s)",
            *([to := self._code(), self._code(), to]),
        )

    def forget_document(self) -> None:
        self._execute("delete from documents where code = %s", self._code())

    # -- two columns as its key --------------------------------------------------------------------

    def line(self) -> None:
        self._execute(
            "insert into lines values (%s, %s, %s, %s) on conflict do nothing",
            self.random.randint(1, 12),
            self.random.randint(1, 12),
            self.random.choice(["bolt", "nut", None]),
            self.random.randint(0, 10**9) / 1000,
        )

    def renumber_lines(self) -> None:
        """Every row of an order moves, some to where one has just moved away."""
        self._execute(
            "update lines set order_id = order_id + 12, item = item || '!' where order_id = %s"
            " and not exists (select from lines l where l.order_id = %s)",
            *([order := self.random.randint(1, 12), order + 12]),
        )

    def forget_lines(self) -> None:
        self._execute("delete from lines where order_id = %s", self.random.randint(1, 24))

    # -- no key: identical rows --------------------------------------------------------------------

    def event(self) -> None:
        large = self._body() if self.random.random() < 0.2 else None
        kind, note = self.random.choice("abc"), self.random.choice(["n", None])
        for _ in range(self.random.randint(1, 3)):
            self._execute("insert into events values (%s, %s, %s)", kind, note, large)

    def events_in_bulk(self) -> None:
        self._execute(
            "insert into events select 'bulk', (g %% 10)::text from generate_series(1, 300) g"
        )

    def change_events(self) -> None:
        """One of several identical rows, now and then."""
        self._execute(
            "update events set note = %s where ctid ="
            " (select min(ctid) from events where kind = %s)",
            self.random.choice(["m", None]),
            self.random.choice("abc"),
        )

    def forget_events(self) -> None:
        self._execute(
            "delete from events where ctid in (select ctid from events order by kind limit %s)",
            self.random.choice([1, 2, 200]),
        )

    def truncate(self) -> None:
        names = self.random.sample(TABLES, self.random.randint(1, 2))
        self._execute(f"truncate {', '.join(names)}")


class LargeTransactions(Workload):
    """Of some 200 kB each, of which a part is rolled back now and then.

    Each part is held open until something else is `staged` than before it, for a second at most.
    """

    def __init__(
        self, connection: psycopg.Connection[Any], seed: int, staged: Callable[[], Set[object]]
    ) -> None:
        super().__init__(connection, seed)
        self._staged = staged

    def transaction(self) -> None:
        for _ in range(10):
            self.document()
        self._rewrite_documents()
        self.connection.execute("savepoint s")
        self._rewrite_documents()
        keep = self.random.random() < 0.5
        self.connection.execute("release savepoint s" if keep else "rollback to savepoint s")
        super().transaction()

    def _rewrite_documents(self) -> None:
        before = self._staged()
        self._execute(
            "update documents set body = (select string_agg(md5(code || g || random()), '')"
            " from generate_series(1, 150) g)"
        )
        for _ in range(100):
            if self._staged() - before:
                break
            self._execute("select pg_sleep(0.01)")


class PreparedTransactions(Workload):
    """Some of 80 kB, which are prepared, and end while others wait in the order of a draw.

    They only add rows: whoever waits to be committed keeps the locks that it has.
    """

    waiting: Final = 3

    def __init__(self, database: Database, connection: psycopg.Connection[Any], seed: int) -> None:
        super().__init__(connection, seed)
        self._database = database
        self._gids: list[str] = []
        self._count = 0

    def transaction(self) -> None:
        self.event()
        self.connection.commit()
        for _ in range(self.random.choice([1, 8])):
            self._execute("insert into events values ('prepared', %s, %s)", "n", self._body())
        self._count += 1
        self._gids.append(f"{self._database.name} {self._count}")
        self._execute(f"prepare transaction '{self._gids[-1]}'")
        self.connection.commit()
        if len(self._gids) > self.waiting:
            self._end_one()

    def end_all(self) -> None:
        while self._gids:
            self._end_one()

    def _end_one(self) -> None:
        gid = self._gids.pop(self.random.randrange(len(self._gids)))
        how = self.random.choice(["commit", "commit", "rollback"])
        self._database.execute(f"{how} prepared '{gid}'")


class Load:
    """The workload in a thread of its own, until the block ends or the server goes away."""

    def __init__(self, database: Database, seed: int) -> None:
        self._workload = Workload(database.connect(autocommit=False), seed)
        self._stop = threading.Event()
        self._reached = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="workload")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._workload.transaction()
                with self._reached:
                    self._reached.notify_all()
        except psycopg.OperationalError:
            self._stop.set()  # the server was stopped: what it has is what counts

    def wait_for(self, transactions: int) -> None:
        """Wait until that many more have been committed."""
        with self._reached:
            target = self._workload.commits + transactions
            assert self._reached.wait_for(lambda: self._workload.commits >= target, 60)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._workload.connection.close()
