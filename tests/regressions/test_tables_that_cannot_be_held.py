"""A table that cannot be carried says so in its own words, while the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import headrace
from headrace.errors import DestinationError, LogFullError
from headrace.log.local import local_errors
from headrace.testing.database import Database
from replicated import assert_equal, write_project


def test_columns_that_differ_by_case_alone_are_named(database: Database, tmp_path: Path) -> None:
    database.execute('create table items (id int primary key, "Name" text, name text)')
    database.execute("create table others (id int primary key); insert into others values (1)")
    project = headrace.load(write_project(tmp_path, database.dsn))
    (failure,) = project.run(once=True)
    assert isinstance(failure.error, DestinationError)
    assert "'Name' and 'name' differ by case alone" in failure.error.message
    database.execute("insert into others values (2)")
    assert [str(f.table) for f in project.run(once=True)] == ["public.items"]
    assert_equal(database, tmp_path, ["others"])


def test_a_table_without_columns_is_refused(database: Database, tmp_path: Path) -> None:
    database.execute("create table items (); alter table items replica identity full")
    project = headrace.load(write_project(tmp_path, database.dsn))
    (failure,) = project.run(once=True)
    assert isinstance(failure.error, DestinationError)
    assert "public.items has no columns" in failure.error.message


@pytest.fixture
def bytes_database(database: Database) -> Iterator[Database]:
    """A database that takes any bytes for text."""
    name = f"{database.name}_bytes"
    database.execute(f"create database {name} encoding 'SQL_ASCII' locale 'C' template template0")
    yield Database(name, make_conninfo(database.dsn, dbname=name))
    with psycopg.connect(database.dsn, autocommit=True) as admin:
        admin.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where database = %s",
            [name],
        )
        admin.execute(f"drop database {name} with (force)".encode())


def test_text_that_is_not_utf8_stops_its_table_and_is_not_tried_for_ever(
    bytes_database: Database, tmp_path: Path
) -> None:
    bytes_database.execute("create table items (id int primary key, name text)")
    bytes_database.execute("insert into items values (1, E'\\xe9')")
    bytes_database.execute(
        "create table others (id int primary key); insert into others values (1)"
    )
    project = headrace.load(write_project(tmp_path, bytes_database.dsn))
    (failure,) = project.run(once=True)
    assert "public.items" in failure.error.message
    assert "invalid byte sequence" in failure.error.message
    assert_equal(bytes_database, tmp_path, ["others"])


def test_a_hint_about_a_file_that_could_not_be_written_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(LogFullError) as failure, local_errors("write", tmp_path / "new" / "file"):
        raise OSError(28, "No space left on device")
    assert failure.value.hint.endswith(f"df -h {tmp_path / 'new'}")
