"""A table that keeps every change as a row is compared with all that its source told."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from headrace.verify import TableVerification
from lakeside import Lakeside, people

TABLE = "crm.people"
APPEND: dict[str, Any] = {"source": TABLE, "mode": "append"}


def verify(shop: Lakeside) -> TableVerification:
    (found,) = shop.project.verify()
    return found


def told(found: TableVerification) -> tuple[int, int, int]:
    assert found.problem is None, found.problem
    return found.rows, found.missing, found.extra


@pytest.fixture
def history(shop: Lakeside) -> Lakeside:
    """A table that changed before its first load, and after it."""
    source = shop.source(TABLE)
    source.write(people(1, 2, 3))
    source.update("id = 1", name="'before'")
    shop.carry(APPEND)
    shop.catch_up()
    source.update("id = 2", name="'after'")
    source.delete("id = 3")
    source.write(people(4, 5))
    return shop


def test_4_every_change_is_there_once(history: Lakeside) -> None:
    """Invariant 4, of changes instead of rows."""
    found = verify(history)
    assert told(found) == (3 + 2 + 1 + 2, 0, 0)
    assert found.equal
    assert found.version == 4
    history.assert_appended(TABLE)


FORGERIES = {
    "a change twice": ("insert into crm.people select * from crm.people where id = 5", 0, 1),
    "a change lost": ("delete from crm.people where id = 5", 1, 0),
    "a row of the load lost": ("delete from crm.people where name = 'before'", 1, 0),
    "the whole load lost": ("delete from crm.people where _commit_version = 1", 3, 0),
    "another kind": ("update crm.people set _change_type = 'delete' where id = 5", 1, 1),
    "another time": (
        "update crm.people set _commit_timestamp = _commit_timestamp + '1 ms' where id = 5",
        1,
        1,
    ),
    "another version": ("update crm.people set _commit_version = 0 where id = 5", 1, 1),
    "nothing left": ("truncate crm.people", 8, 0),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_4_every_forged_change_is_found(history: Lakeside, forgery: str) -> None:
    """Invariant 4, of changes instead of rows."""
    statement, missing, extra = FORGERIES[forgery]
    history.catch_up()
    history.sql(statement)
    found = verify(history)
    assert told(found)[1:] == (missing, extra)
    assert found.samples


def test_columns_that_came_later_are_null_in_older_changes(history: Lakeside) -> None:
    rows = people(6, 7).append_column("mail", pa.array(["m6", None]))
    history.source(TABLE).write(rows, schema_mode="merge")
    assert verify(history).equal
    history.sql("update crm.people set mail = 'x' where id = 1")
    assert told(verify(history)) == (10, 1, 1)


def test_rules_hold_for_the_load_and_for_each_change(shop: Lakeside) -> None:
    source = shop.source(TABLE)
    source.write(people(1, 2, 3))
    rule = {"sql": "name <> 'bad'", "on_breach": "quarantine"}
    shop.carry({**APPEND, "where": "id <> 3", "mask": {"name": "sha256"}, "expect": {"good": rule}})
    shop.catch_up()
    source.write(pa.table({"id": [3, 4, 5], "name": ["c", "bad", "e"]}))
    found = verify(shop)
    assert told(found) == (3, 0, 0)
    assert found.quarantined == 1
    assert not found.equal
    shop.project.drop_quarantined(table=TABLE)
    assert told(verify(shop)) == (3, 1, 0)


def test_equal_rows_are_counted_though_one_of_them_is_parked(shop: Lakeside) -> None:
    source = shop.source(TABLE)
    source.write(pa.table({"id": [1, 1, 2], "name": ["far too long", "far too long", "b"]}))
    shop.carry({**APPEND, "columns": {"types": {"name": "varchar(4)"}}})
    found = verify(shop)
    assert told(found) == (1, 0, 0)
    assert found.quarantined == 2
    (first, _) = shop.project.quarantine(TABLE)
    shop.project.drop_quarantined([first.id])
    assert told(verify(shop)) == (1, 1, 0)


def test_an_empty_table_and_one_that_was_loaded_empty(shop: Lakeside) -> None:
    source = shop.source(TABLE)
    source.write(people(1).slice(0, 0))
    shop.carry(APPEND)
    assert verify(shop).equal
    source.write(people(1, 2))
    source.update("id = 1", name="'x'")
    assert told(verify(shop)) == (4, 0, 0)


def test_what_the_source_no_longer_tells_cannot_be_compared_and_the_others_are(
    shop: Lakeside,
) -> None:
    for table in (TABLE, "crm.other"):
        shop.source(table).write(people(1, 2, 3))
    shop.carry(APPEND, "crm.other")
    shop.catch_up()
    shop.source(TABLE).update("id = 2", name="'x'")
    shop.catch_up()
    for file in (shop.source(TABLE).path / "_change_data").glob("*"):
        file.unlink()
    appended, other = sorted(shop.project.verify(), key=lambda v: str(v.table), reverse=True)
    assert other.equal
    assert not appended.equal
    assert appended.problem is not None
    assert "can be compared only while the source tells all of it" in appended.problem.message
    assert "resync" in appended.problem.hint
