"""Rows in quarantine are a known difference: counted apart, and never taken for another."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from headrace.verify import TableVerification
from lakeside import Lakeside, people

TABLE = "crm.people"
NARROW: dict[str, Any] = {
    "source": TABLE,
    "key": ["id"],
    "columns": {"types": {"name": "varchar(4)"}},
}


def verify(shop: Lakeside) -> TableVerification:
    (found,) = shop.project.verify()
    assert found.problem is None
    return found


def told(found: TableVerification) -> tuple[int, int, int, int]:
    return found.rows, found.missing, found.extra, found.quarantined


def named(rows: dict[int | None, str]) -> pa.Table:
    return pa.table({"id": pa.array(rows, pa.int64()), "name": list(rows.values())})


@pytest.fixture
def narrow(shop: Lakeside) -> Lakeside:
    """Five rows, and two that were refused: a new one, and a change of one that stands."""
    shop.source(TABLE).write(people(1, 2, 3, 4, 5))
    shop.carry(NARROW)
    shop.catch_up()
    shop.source(TABLE).write(named({6: "far too long"}))
    shop.source(TABLE).update("id = 2", name="'far too long'")
    shop.catch_up()
    return shop


def test_12_a_table_with_parked_rows_is_not_equal_and_differs_in_nothing_else(
    narrow: Lakeside,
) -> None:
    """Invariant 12. The row that a parked one would replace is its former version."""
    found = verify(narrow)
    assert told(found) == (5, 0, 0, 2)
    assert not found.equal
    assert not found.differs
    assert narrow.sql("select name from crm.people where id = 2") == [("n2",)]


def test_12_what_differs_beside_parked_rows_is_found(narrow: Lakeside) -> None:
    """Invariant 12."""
    narrow.sql("update crm.people set name = 'x' where id = 1; delete from crm.people where id = 4")
    narrow.sql("insert into crm.people values (9, 'n9')")
    found = verify(narrow)
    assert told(found) == (5, 2, 2, 2)
    assert set(found.samples) == {"id=1", "id=4", "id=9"}


def test_12_a_row_that_was_dropped_from_the_quarantine_is_missing(narrow: Lakeside) -> None:
    """Invariant 12."""
    narrow.project.drop_quarantined(table=TABLE)
    found = verify(narrow)
    assert told(found) == (5, 2, 1, 0)
    assert set(found.samples) == {"id=2", "id=6"}


def test_rows_that_are_applied_after_all_are_equal(narrow: Lakeside) -> None:
    narrow.sql("alter table crm.people alter column name type varchar(40)")
    narrow.project.retry()
    assert told(verify(narrow)) == (6, 0, 0, 0)
    assert verify(narrow).equal


def test_rows_that_a_load_refused(shop: Lakeside) -> None:
    shop.source(TABLE).write(named({1: "a", 2: "far too long", 3: "c"}))
    shop.carry(NARROW)
    assert told(verify(shop)) == (2, 0, 0, 1)


def test_rows_without_a_key_and_rows_that_share_one(shop: Lakeside) -> None:
    rows = [named({1: "a", None: "b", 2: "c"}), named({1: "z"})]
    shop.source(TABLE).write(pa.concat_tables(rows))
    shop.carry(TABLE)
    found = verify(shop)
    assert told(found) == (1, 0, 0, 3)
    shop.project.drop_quarantined(table=TABLE)
    found = verify(shop)
    assert told(found) == (1, 3, 0, 0)
    assert set(found.samples) == {"id=1", "id=None"}


@pytest.mark.parametrize("newest_by", [{}, {"newest_by": "name"}])
def test_rows_that_an_expectation_keeps_out(shop: Lakeside, newest_by: dict[str, str]) -> None:
    shop.source(TABLE).write(people(1, 2, 3))
    rule = {"sql": "name <> 'bad'", "on_breach": "quarantine"}
    shop.carry({"source": TABLE, "key": ["id"], "expect": {"good": rule}, **newest_by})
    shop.catch_up()
    shop.source(TABLE).update("id = 2", name="'bad'")
    shop.source(TABLE).write(named({4: "bad", 5: "good"}))
    assert told(verify(shop)) == (4, 0, 0, 2)
    shop.sql("update crm.people set name = 'whatever' where id = 2")  # it is the former row
    assert told(verify(shop)) == (4, 0, 0, 2)
    shop.project.drop_quarantined(table=TABLE)
    found = verify(shop)
    assert told(found) == (4, 2, 1, 0)
    assert set(found.samples) == {"id=2", "id=4"}


def test_a_delete_that_was_refused_is_a_known_difference(shop: Lakeside) -> None:
    shop.source(TABLE).write(people(1, 2, 3))
    shop.carry(TABLE)
    shop.catch_up()
    shop.sql("create table visits (who bigint references crm.people)")
    shop.sql("insert into visits values (2)")
    shop.source(TABLE).delete("id = 2")
    assert told(verify(shop)) == (3, 0, 0, 1)
    shop.sql("insert into crm.people values (7, 'n7')")
    assert told(verify(shop)) == (4, 0, 1, 1)


def test_parked_rows_under_keys_in_another_spelling(shop: Lakeside) -> None:
    """The former row of a parked one is found by the key as the table has it."""
    ids = [f"{n:08x}-AAAA-4AAA-8AAA-AAAAAAAAAAAA" for n in range(4)]
    shop.source(TABLE).write(pa.table({"id": ids, "name": ["a", "b", "c", "d"]}))
    shop.carry(
        {
            "source": TABLE,
            "key": ["id"],
            "columns": {"types": {"id": "uuid", "name": "varchar(4)"}},
        }
    )
    shop.catch_up()
    shop.source(TABLE).update(f"id = '{ids[1]}'", name="'far too long'")
    shop.source(TABLE).write(pa.table({"id": ["no uuid at all"], "name": ["e"]}))
    assert told(verify(shop)) == (4, 0, 0, 2)
    shop.sql("update crm.people set name = 'x' where name = 'c'")
    assert told(verify(shop)) == (4, 1, 1, 2)
