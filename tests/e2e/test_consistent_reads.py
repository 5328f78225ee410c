"""Tables of a pipeline, read together as they stood at one LSN of their source, under load."""

from __future__ import annotations

import random
import shutil
import threading
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from harness import PIPELINE, Shop, all_loaded

from headrace.connectors.delta.table import MergeOnReadTable
from headrace.errors import NoVersionError
from headrace.model import Lsn

TOTAL = 2 * 40 * 100
LOOK = (
    "select (select sum(amount) from giver) + (select sum(amount) from taker) total, "
    "(select max(n) from giver) given, (select max(n) from taker) taken, "
    "(select count(*) from taker) takers, (select count(*) from public.currency) currencies"
)


@pytest.fixture
def bank(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Every transaction moves money from one table to the other, and writes its number into both.

    The tables commit at paces of their own; one never changes.
    """
    shop.sql("""
        create table giver (id int primary key, amount int, n int);
        create table taker (id int primary key, amount int, n int);
        create table currency (code text primary key);
        insert into giver select g, 100, 0 from generate_series(1, 40) g;
        insert into taker select g, 100, 0 from generate_series(1, 40) g;
        insert into currency values ('EUR');
    """)
    shop.carry("public.*")
    pace = {"giver": 0.03, "taker": 0.11, "currency": 0.0}
    monkeypatch.setattr(MergeOnReadTable, "rest", lambda table: pace[table.name.name])
    return shop


@contextmanager
def transferring(shop: Shop) -> Iterator[list[Lsn]]:
    """Transactions without pause for the length of the block; gives the LSN after each."""
    stop, after, chance = threading.Event(), [], random.Random(5)

    def transfer() -> None:
        with psycopg.connect(shop.database.dsn, autocommit=True) as session:
            while not stop.is_set():
                number, key, amount = len(after) + 1, chance.randint(1, 40), chance.randint(1, 9)
                with session.transaction():
                    take = "update giver set amount = amount - %s, n = %s where id = %s"
                    session.execute(take, (amount, number, key))
                    give = "update taker set amount = amount + %s, n = %s where id = %s"
                    session.execute(give, (amount, number, key))
                row = session.execute("select pg_current_wal_insert_lsn()::text").fetchone()
                after.append(Lsn.parse(row[0]))

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(transfer)
        try:
            yield after
        finally:
            stop.set()
            writer.result()


def look(shop: Shop, lsn: Lsn) -> int:
    """The number of the transaction that the tables show together at an LSN."""
    (row,) = shop.project.query(LOOK, as_of=lsn).to_pylist()
    total, given, taken, takers, currencies = row.values()
    assert (total, given - taken, takers, currencies) == (TOTAL, 0, 40, 1), (lsn, row)
    return given


def test_tables_joined_at_one_lsn_are_the_source_at_that_lsn_under_load(bank):
    seen: dict[Lsn, int] = {}
    with bank.running() as running:
        running.wait(all_loaded)
        with transferring(bank) as after:
            while len(seen) < 4:
                (moment,) = bank.project.lsn()
                assert {t.table.name for t in moment.tables} == {"giver", "taker", "currency"}
                seen[moment.lsn] = look(bank, moment.lsn)
        running.catch_up()
    for lsn in [after[len(after) * part // 8] for part in range(1, 8)]:
        (moment,) = bank.project.lsn(at=lsn)
        assert moment.lsn <= lsn
        seen[moment.lsn] = look(bank, moment.lsn)
    (moment,) = bank.project.lsn()
    seen[moment.lsn] = look(bank, moment.lsn)
    assert moment.lsn >= after[-1]
    assert seen[moment.lsn] == len(after)
    assert len(set(seen.values())) > 4, seen
    for lsn, number in seen.items():
        done = bisect_right(after, lsn)
        assert done <= number <= done + 1, (lsn, number)  # between its commit and our note of it


def test_without_the_state_folder_only_commits_tell_how_far_a_table_is(bank):
    bank.catch_up()
    bank.sql("update giver set amount = amount - 1, n = 1 where id = 1")
    bank.sql("update taker set amount = amount + 1, n = 1 where id = 1")
    bank.catch_up()
    (known,) = bank.project.lsn()
    assert look(bank, known.lsn) == 1
    shutil.move(bank.state, bank.root / "elsewhere")
    with pytest.raises(NoVersionError, match="not yet to"):
        bank.project.query(LOOK, as_of=known.lsn)
    giver = "select max(n) n from giver"
    committed = next(t.lsn for t in known.tables if t.table.name == "giver")
    assert bank.project.query(giver, as_of=committed).to_pylist() == [{"n": 1}]
    with pytest.raises(NoVersionError, match=r"loaded as of .*, after 0/1"):
        bank.project.lsn(PIPELINE, at=Lsn(1))
