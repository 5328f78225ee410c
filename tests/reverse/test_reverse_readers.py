"""Who reads a table while it is merged, swapped or changed in place sees one version of its source.

Every version rewrites every row: its number stands in each, and the balances add up to zero.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from lakeside import Lakeside, Source

NAME = "bank.accounts"
LOOK = """
select count(*) as accounts, sum(balance)::int as total, min(version) as first,
       max(version) as last, count(distinct id) as ids from {}
"""
ACCOUNTS = 500


def accounts(version: int) -> pa.Table:
    balances = [version * (1 if n % 2 else -1) for n in range(ACCOUNTS)]
    return pa.table(
        {
            "id": pa.array(range(ACCOUNTS), pa.int64()),
            "balance": pa.array(balances, pa.int64()),
            "version": pa.array([version] * ACCOUNTS, pa.int64()),
        }
    )


@dataclass
class Reader:
    """Looks at a table again and again, by a plain query, a view and a prepared statement."""

    lakeside: Lakeside
    seen: list[tuple[Any, ...]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        try:
            with self.lakeside.database.connect(prepare_threshold=1) as connection:
                while not self.stop.is_set():
                    for name in (NAME, "bank.totals"):
                        query = LOOK.format(name) if name == NAME else f"select * from {name}"
                        self.seen += connection.execute(query.encode()).fetchall()
        except BaseException as error:  # shown by the test
            self.errors.append(error)

    @contextmanager
    def looking(self) -> Iterator[None]:
        thread = threading.Thread(target=self.look)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()

    def assert_whole_versions(self, *expected: int) -> None:
        assert not self.errors
        for look in self.seen:
            count, total, first, last, distinct = look
            assert (count, total, distinct) == (ACCOUNTS, 0, ACCOUNTS), look
            assert first == last, f"a mixture of versions {first} and {last}"
        assert {look[2] for look in self.seen} <= set(expected)
        assert self.seen[0][2] == expected[0]


@pytest.fixture
def bank(lakeside: Lakeside) -> Source:
    source = lakeside.source(NAME)
    source.write(accounts(0))
    lakeside.carry(NAME)
    lakeside.catch_up()
    lakeside.sql("create view bank.totals as " + LOOK.format(NAME))
    return source


def advance(source: Source, version: int) -> None:
    """By a merge, an overwrite, or an update: each way a version of its own."""
    if version % 3 == 0:
        source.merge(accounts(version))
    elif version % 3 == 1:
        source.write(accounts(version), mode="overwrite")
    else:
        source.update("true", version=str(version), balance="-balance")


def test_invariant_11_readers_see_whole_versions_while_changes_are_merged(
    lakeside: Lakeside, bank: Source
) -> None:
    reader = Reader(lakeside)
    with reader.looking(), lakeside.running() as running:
        for version in range(1, 7):
            advance(bank, version)
            running.reach(NAME, version)
    reader.assert_whole_versions(*range(7))
    lakeside.assert_equal(NAME)


def test_invariant_11_readers_see_whole_versions_while_tables_are_swapped(
    lakeside: Lakeside, bank: Source
) -> None:
    """And no error, nor an empty table, whatever they had prepared."""
    reader = Reader(lakeside)
    with reader.looking():
        for version in range(1, 5):
            advance(bank, version)
            before = lakeside.sql(f"select '{NAME}'::regclass::oid")
            assert lakeside.project.resync([NAME]) == []
            assert lakeside.sql(f"select '{NAME}'::regclass::oid") != before
        lakeside.project.undo(NAME)
        assert lakeside.project.resync([NAME]) == []
    reader.assert_whole_versions(*range(5))
    lakeside.assert_equal(NAME)


def test_invariant_11_readers_see_whole_versions_while_a_table_is_changed_in_place(
    lakeside: Lakeside, bank: Source
) -> None:
    """For it has a column of its owner's."""
    lakeside.sql(f"alter table {NAME} add note text default 'ours'")
    reader = Reader(lakeside)
    with reader.looking():
        for version in range(1, 4):
            advance(bank, version)
            before = lakeside.sql(f"select '{NAME}'::regclass::oid")
            assert lakeside.project.resync([NAME]) == []
            assert lakeside.sql(f"select '{NAME}'::regclass::oid") == before
    reader.assert_whole_versions(*range(4))
