"""`resync` cures what a Delta table cannot follow, and the old rows stay readable until it has."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Shop

from headrace.errors import ConfigError, TableStoppedError, UnsupportedSchemaChangeError
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


def test_a_dropped_column_stops_one_table_until_it_is_resynced(
    database: Database, project: Project
) -> None:
    database.execute("ALTER TABLE items DROP COLUMN price")
    database.execute("UPDATE items SET name = 'new' WHERE id <= 10")
    database.execute("INSERT INTO others VALUES (1)")
    (failure,) = project.run(once=True)
    assert isinstance(failure.error, UnsupportedSchemaChangeError)
    assert "headrace resync public.items" in failure.error.hint
    old = project.query("SELECT * FROM public.items")
    assert (old.num_rows, old.column_names) == (100, ["id", "name", "price"])
    assert project.query("SELECT * FROM public.others").num_rows == 1

    assert project.resync(["public.items"]) == []
    assert project.query("SELECT * FROM public.items").column_names == ["id", "name"]
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
