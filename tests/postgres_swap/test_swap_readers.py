"""Whoever reads while a table is swapped sees the rows before or the rows after, and no error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from rebuilding import Rebuilding
from table_features import BASE

from headrace.connectors.postgres import generations
from headrace.connectors.postgres.building import Build
from headrace.connectors.postgres.target_session import Connection
from headrace.errors import DestinationConflictError, TableBusyError
from headrace.testing.database import Database

READ = "select count(*), min(qty), max(qty) from shop.orders"
LOOKS = {
    "the table": READ,
    "a view": "select * from shop.summary",
    "a view on a view": "select n, low, high from shop.outer_summary",
    "a prepared statement": "execute summary",
    "a function that keeps its plan": "select * from shop.kept()",
    "a function with a parsed body": "select * from shop.parsed()",
}
VIEWS = """
create view shop.summary as select count(*) n, min(qty) low, max(qty) high from shop.orders;
create view shop.outer_summary as select * from shop.summary;
create function shop.kept() returns table (n bigint, low int, high int) language plpgsql as
  'begin return query select count(*), min(qty), max(qty) from shop.orders; end';
create function shop.parsed() returns table (n bigint, low int, high int) language sql
"""
PARSED = "begin atomic select count(*), min(qty), max(qty) from shop.orders; end"  # since 14
UNPARSED = "as 'select count(*), min(qty), max(qty) from shop.orders'"


@pytest.fixture
def table(database: Database) -> Rebuilding:
    with database.connect() as session:
        body = PARSED if session.info.server_version >= 140000 else UNPARSED
    database.execute(f"{BASE}{VIEWS}{body}; update shop.orders set qty = 0")
    rebuilding = Rebuilding(database)
    rebuilding.applied(0)
    return rebuilding


def rows_of(number: int) -> Callable[[Connection, Build], None]:
    """A generation of 50 rows whose quantity is its number."""

    def fill(connection: Connection, build: Build) -> None:
        connection.execute(
            f"insert into headrace_work.{build.table.name} (id, code, qty) "
            f"select n, 'x', {number} from generate_series(1, 50) n"
        )

    return fill


def look_until(database: Database, query: str, stop: threading.Event) -> set[tuple[int, ...]]:
    """All that a reader saw, with a new statement each time."""
    seen = set()
    with database.connect() as connection:
        connection.execute(f"prepare summary as {READ}")
        while not stop.is_set():
            seen.update(connection.execute(query.encode()).fetchall())
    return seen


def test_readers_see_whole_generations_only(table: Rebuilding) -> None:
    """DESIGN §13, invariant 11, beside five swaps and the undoing of the last."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(LOOKS)) as pool:
        readers = {
            name: pool.submit(look_until, table.database, query, stop)
            for name, query in LOOKS.items()
        }
        try:
            for number in range(1, 6):
                table.rebuild(rows_of(number), number)
            table.undo()
        finally:
            stop.set()
    whole = {(40, 0, 0), *((50, number, number) for number in range(1, 6))}
    for name, reader in readers.items():
        assert reader.result() <= whole, name
        assert len(reader.result()) > 2, name  # it did look meanwhile


@pytest.mark.parametrize("name", LOOKS)
def test_after_a_swap_everything_reads_the_new_rows(table: Rebuilding, name: str) -> None:
    """Facts §3.1, bug 2: views stayed with the former table, prepared statements with its plan."""
    with table.database.connect() as connection:
        connection.execute(f"prepare summary as {READ}")
        for _ in range(8):  # a plan is kept after five
            assert connection.execute(LOOKS[name].encode()).fetchone() == (40, 0, 0)
        table.rebuild(rows_of(1))
        assert connection.execute(LOOKS[name].encode()).fetchone() == (50, 1, 1)
        table.undo()
        assert connection.execute(LOOKS[name].encode()).fetchone() == (40, 0, 0)


def test_whoever_holds_an_older_snapshot_never_finds_the_table_empty(table: Rebuilding) -> None:
    """Its rows are younger than the snapshot: the swap waits until nobody holds one."""
    waits: list[float] = []
    with table.database.connect(autocommit=False) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("select 1")  # the snapshot is taken, the table not touched
        built = table.build(rows_of(1))

        def look(seconds: float) -> bool:
            waits.append(seconds)
            assert reader.execute(READ.encode()).fetchone() == (40, 0, 0)
            if len(waits) == 3:
                reader.commit()
            return False

        with table.database.connect() as connection:
            generations.swap(connection, built, table.commit(1), wait=look)
        assert len(waits) >= 3
        assert reader.execute(READ.encode()).fetchone() == (50, 1, 1)


def test_a_transaction_that_will_not_end_is_named_and_nothing_changes(table: Rebuilding) -> None:
    with table.database.connect(autocommit=False, application_name="report") as reader:
        reader.execute(READ.encode())
        pid = reader.info.backend_pid
        built = table.build(rows_of(1))
        with table.database.connect() as connection:
            with pytest.raises(TableBusyError, match=rf"process {pid} \(report, idle in trans"):
                generations.swap(connection, built, table.commit(1), patience=1)
            assert table.standing() == (0, None)
            assert connection.execute(READ.encode()).fetchone() == (40, 0, 0)
            reader.rollback()
            generations.swap(connection, built, table.commit(1), patience=1)
            assert connection.execute(READ.encode()).fetchone() == (50, 1, 1)


def test_readers_behind_a_waiting_swap_are_let_through(table: Rebuilding) -> None:
    """A lock that is waited for stops whoever comes later: each attempt gives up soon."""
    with table.database.connect(autocommit=False) as holder:
        holder.execute(READ.encode())
        built = table.build(rows_of(1))
        attempts = threading.Event()
        over = threading.Event()

        def pause(seconds: float) -> bool:
            attempts.set()
            return over.wait(0.01)

        with ThreadPoolExecutor(1) as pool, table.database.connect() as connection:
            swap = pool.submit(
                generations.swap, connection, built, table.commit(1), patience=60, wait=pause
            )
            assert attempts.wait(60)
            try:
                with table.database.connect(options="-c statement_timeout=5s") as reader:
                    for _ in range(3):
                        assert reader.execute(READ.encode()).fetchone() == (40, 0, 0)
            finally:
                over.set()
            assert isinstance(swap.exception(60), TableBusyError)


def test_a_reader_from_the_other_side_is_no_deadlocks_victim(table: Rebuilding) -> None:
    """It holds the table and asks for the view, which the swap locked before the table."""
    built = table.build(rows_of(1))
    with table.database.connect(autocommit=False) as reader:
        reader.execute(READ.encode())
        asked = threading.Event()

        def pause(seconds: float) -> bool:
            asked.set()
            return False

        with ThreadPoolExecutor(1) as pool, table.database.connect() as connection:
            swap = pool.submit(
                generations.swap, connection, built, table.commit(1), patience=60, wait=pause
            )
            assert asked.wait(60)
            for _ in range(3):
                assert reader.execute(b"select * from shop.summary").fetchone() == (40, 0, 0)
            reader.rollback()
            swap.result(60)
    assert table.standing() == (1, None)


def test_a_definition_that_changed_meanwhile_is_not_lost(table: Rebuilding) -> None:
    built = table.build(rows_of(1))
    table.database.execute("create index meanwhile on shop.orders (region)")
    with (
        table.database.connect() as connection,
        pytest.raises(DestinationConflictError, match=r"shop\.orders was changed"),
    ):
        generations.swap(connection, built, table.commit(1))
    assert table.standing() == (0, None)
    assert table.database.execute(READ) == [(40, 0, 0)]


def test_a_view_that_came_meanwhile_reads_the_new_rows(table: Rebuilding) -> None:
    built = table.build(rows_of(1))
    table.database.execute("create view shop.late as select max(qty) as high from shop.orders")
    table.swap(built)
    assert table.database.execute("select high from shop.late") == [(1,)]
