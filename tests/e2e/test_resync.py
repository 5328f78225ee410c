"""`resync` cures what a Delta table cannot follow, and the old rows stay readable until it has."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Shop

from headrace import failpoints
from headrace.errors import (
    ConfigError,
    TableStoppedError,
    UnsupportedSchemaChangeError,
    UnusableKeyError,
)
from headrace.project import Project
from headrace.testing.database import Database


@pytest.fixture
def project(database: Database, shop: Shop) -> Project:
    database.execute("CREATE TABLE items (id int PRIMARY KEY, name text, price int)")
    database.execute("INSERT INTO items SELECT n, 'item ' || n, n FROM generate_series(1, 100) n")
    database.execute("CREATE TABLE others (id int PRIMARY KEY)")
    shop.carry("public.*")
    project = shop.project
    assert project.run(once=True) == []
    return project


def all_equal(project: Project) -> bool:
    return all(table.equal for table in project.verify())


def test_a_column_that_changes_its_type_stops_one_table_until_it_is_resynced(
    database: Database, project: Project
) -> None:
    database.execute("ALTER TABLE items ALTER COLUMN price TYPE text USING 'EUR ' || price")
    database.execute("UPDATE items SET name = 'new' WHERE id <= 10")
    database.execute("INSERT INTO others VALUES (1)")
    (failure,) = project.run(once=True)
    assert isinstance(failure.error, UnsupportedSchemaChangeError)
    assert "headrace resync public.items" in failure.error.hint
    old = project.query("SELECT * FROM public.items WHERE name <> 'new'")
    assert old.num_rows == 100
    assert project.query("SELECT * FROM public.others").num_rows == 1

    assert project.resync(["public.items"]) == []
    assert project.query("SELECT price FROM public.items")["price"][0].as_py().startswith("EUR ")
    assert all_equal(project)
    database.execute("DELETE FROM items WHERE id = 1")
    assert project.run(once=True) == []
    assert all_equal(project)


def test_a_table_that_the_capture_stopped_is_taken_up_again(
    database: Database, project: Project
) -> None:
    database.execute("ALTER TABLE items ADD COLUMN token uuid DEFAULT gen_random_uuid()")
    database.execute("INSERT INTO items VALUES (101, 'late', 1)")
    (failure,) = project.run(once=True)
    assert isinstance(failure.error, TableStoppedError)
    assert failure.error.message.count("public.items") == 1
    (again,) = project.run(once=True)
    assert again.error.message == failure.error.message

    assert project.resync(["public.items"]) == []
    database.execute("UPDATE items SET name = 'later' WHERE id = 101")
    assert project.run(once=True) == []
    assert all_equal(project)


def test_a_value_without_an_exact_form_names_its_column(
    database: Database, project: Project
) -> None:
    database.execute("ALTER TABLE others ADD COLUMN seen timestamptz")
    database.execute("INSERT INTO others VALUES (1, 'infinity')")
    (failure,) = project.run(once=True)
    assert "public.others: column 'seen'" in failure.error.message
    assert "infinity" in failure.error.message
    database.execute("UPDATE others SET seen = '2026-01-01'")
    assert project.resync(["public.others"]) == []
    assert all_equal(project)


def test_only_the_named_tables_are_copied_again(project: Project) -> None:
    def versions() -> dict[str, Any]:
        return {t.table: t.lsn for t in project.status().tables}

    before = versions()
    assert project.resync(["public.items"]) == []
    after = versions()
    assert after["public.items"] > before["public.items"]
    assert all_equal(project)


def test_an_unknown_table_is_refused(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"no pipeline carries public\.nothing"):
        project.resync(["public.nothing"])


def test_a_table_that_fails_while_the_log_is_full_is_told_once_there_is_room(
    database: Database, project: Project
) -> None:
    """Invariant 12: giving a table up and recording it survive a failed commit between them."""
    database.execute("ALTER TABLE others ADD COLUMN seen timestamptz")
    with database.connect() as session, session.transaction():
        session.execute("INSERT INTO others VALUES (1, 'infinity')")
        session.execute("UPDATE items SET price = 0")
    failpoints.arm("log.file_written=enospc@1-2")
    (failure,) = project.run(once=True)
    assert isinstance(failure.error, TableStoppedError)
    assert "public.others: column 'seen'" in failure.error.message
    assert project.query("SELECT sum(price) AS total FROM public.items")["total"][0].as_py() == 0


def test_a_key_of_ones_own_identifies_rows_under_full_identity(
    database: Database, shop: Shop
) -> None:
    database.execute("CREATE TABLE visits (id int PRIMARY KEY, code text NOT NULL, n int)")
    database.execute("ALTER TABLE visits REPLICA IDENTITY FULL")
    database.execute("INSERT INTO visits SELECT g, 'c' || g, 0 FROM generate_series(1, 50) g")
    shop.carry({"source": "public.visits", "key": ["code"]})
    project = shop.project
    assert project.run(once=True) == []
    database.execute("UPDATE visits SET n = 1 WHERE id < 10")
    database.execute("UPDATE visits SET code = 'x' || id WHERE id > 40")
    database.execute("DELETE FROM visits WHERE id = 20")
    assert project.run(once=True) == []
    assert all_equal(project)


def test_a_key_that_the_stream_does_not_tell_is_refused(database: Database, shop: Shop) -> None:
    database.execute("CREATE TABLE visits (id int PRIMARY KEY, code text NOT NULL)")
    shop.carry({"source": "public.visits", "key": ["code"]})
    (failure,) = shop.project.run(once=True)
    assert isinstance(failure.error, UnusableKeyError)
    assert "REPLICA IDENTITY FULL" in failure.error.hint


def test_status_counts_the_changes_of_all_runs(database: Database, project: Project) -> None:
    for price in (1, 2):
        database.execute(f"UPDATE items SET price = {price}")
        assert project.run(once=True) == []
    assert project.run(once=True) == []
    applied = {table.table: table.rows_applied for table in project.status().tables}
    assert applied == {"public.items": 200, "public.others": 0}
