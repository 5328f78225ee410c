"""The catalog's view of tables: schemas, keys, values of added columns, and what can be copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from headrace.connectors.postgres.catalog import (
    TypeCatalog,
    discover,
    read_table_schema,
    table_schema,
)
from headrace.errors import TableNotFoundError
from headrace.model import ReplicaIdentity, TableId
from headrace.testing.database import Database

T = TableId("public", "t")


@pytest.fixture
def session(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with database.connect() as connection:
        yield connection


def test_a_schema_tells_columns_in_order_without_dropped_and_generated(
    session: psycopg.Connection[Any],
) -> None:
    session.execute(
        'create table t (id int primary key, gone text, price numeric(10,2), "Odd ""name" text[],'
        " doubled int generated always as (id * 2) stored, ident int generated always as identity)"
    )
    session.execute("alter table t drop column gone")
    schema = table_schema(session, T, 7)
    assert (schema.table, schema.version, schema.key) == (T, 7, ("id",))
    assert [(c.name, c.type, c.source_type, c.attnum) for c in schema.columns] == [
        ("id", pa.int32(), "integer", 1),
        ("price", pa.decimal128(10, 2), "numeric(10,2)", 3),
        ('Odd "name', pa.list_(pa.string()), "text[]", 4),
        ("ident", pa.int32(), "integer", 6),
    ]
    assert schema.missing == {}


@pytest.mark.parametrize(
    ("definition", "after", "identity", "key"),
    [
        ("a int, b int, c int, primary key (c, a)", "", "d", ("c", "a")),
        ("a int primary key, b int", "alter table t replica identity full", "f", ("a",)),
        ("a int, b int", "alter table t replica identity full", "f", ()),
        ("a int, b int", "", "d", ()),
        ("a int primary key deferrable, b int", "", "d", ()),
        ("a int, b int, primary key (a) include (b)", "", "d", ("a",)),
        ("a int primary key", "alter table t replica identity nothing", "n", ("a",)),
        (
            "a int primary key, b int not null, c int not null",
            "create unique index u on t (c, b); alter table t replica identity using index u",
            "i",
            ("c", "b"),
        ),
        ("a int not null unique, b int", "", "d", ()),
    ],
)
def test_the_key_is_what_the_stream_identifies_rows_by(
    session: psycopg.Connection[Any],
    definition: str,
    after: str,
    identity: str,
    key: tuple[str, ...],
) -> None:
    session.execute(f"create table t ({definition}); {after}".encode())
    schema = table_schema(session, T, 1)
    assert schema.identity is ReplicaIdentity(identity)
    assert schema.key == key


def test_values_of_rows_older_than_a_column_are_its_constant_default(
    session: psycopg.Connection[Any],
) -> None:
    """Read back from the old row itself: `missing` must be what the server shows for it."""
    session.execute("create table t (id int primary key); insert into t values (1)")
    added = {
        "price": "numeric(8,2) default 1.5",
        "note": "text default 'it''s, \"{NULL}\" \\ ☃'",
        "word": "text default 'NULL'",
        "tags": "text[] default array['a,b', null, '\"']",
        "area": "box default '(1,1),(0,0)'",
        "born": "timestamptz default '2024-01-01 00:00:00+00'",
        "raw": "bytea default '\\x00ff'",
        "off": "bool default false",
        "plain": "text",
    }
    for name, definition in added.items():
        session.execute(f"alter table t add {name} {definition}".encode())
    schema = table_schema(session, T, 1)
    row = session.execute("select * from t").fetchone()
    assert row is not None
    old = dict(zip(schema.names, row, strict=True))
    assert "plain" not in schema.missing
    assert {n: s.as_py() for n, s in schema.missing.items()} == {
        name: old[name] for name in added if name != "plain"
    }
    assert all(s.type == schema.arrow().field(n).type for n, s in schema.missing.items())


@pytest.mark.since(15)
def test_a_publication_decides_which_columns_there_are(session: psycopg.Connection[Any]) -> None:
    session.execute(
        "create table t (id int primary key, a int, b int, g int generated always as (a) stored);"
        "create publication part for table t (id, b); create publication every for table t"
    )
    types = TypeCatalog.read(session)

    def names(publication: str | None) -> tuple[str, ...]:
        return read_table_schema(session, types, T, publication=publication).schema.names

    assert names("part") == ("id", "b")
    assert names("every") == names(None) == ("id", "a", "b")


@pytest.mark.since(18)
def test_a_generated_column_is_there_where_its_publication_has_it(
    session: psycopg.Connection[Any],
) -> None:
    session.execute(
        "create table t (id int primary key, g int generated always as (id + 1) stored);"
        "create publication whole for table t with (publish_generated_columns = stored)"
    )
    types = TypeCatalog.read(session)
    assert read_table_schema(session, types, T, publication="whole").schema.names == ("id", "g")
    assert read_table_schema(session, types, T).schema.names == ("id",)


def test_a_missing_table_is_an_error_or_none_as_asked(session: psycopg.Connection[Any]) -> None:
    session.execute("create view v as select 1 as x")
    types = TypeCatalog.read(session)
    for absent in (TableId("public", "nowhere"), TableId("nowhere", "t"), TableId("public", "v")):
        assert read_table_schema(session, types, absent, missing_ok=True) is None
        with pytest.raises(TableNotFoundError, match=absent.name):
            read_table_schema(session, types, absent)


def test_a_type_made_after_reading_is_found_and_a_dropped_one_is_text(
    session: psycopg.Connection[Any],
) -> None:
    types = TypeCatalog.read(session)
    session.execute("create domain late as int; create table t (x late)")
    described = read_table_schema(session, types, T)
    assert described.schema.arrow().field("x").type == pa.int32()
    oid = described.columns[0].type_oid
    assert (types.get(oid).name, types.format(oid, -1)) == ("late", "late")
    absent = types.get(4_000_000_000)
    assert absent.oid == 4_000_000_000
    assert types.get(4_000_000_000) is absent


def test_names_of_the_search_path_do_not_shadow_the_catalog(
    session: psycopg.Connection[Any],
) -> None:
    session.execute(
        "create table t (id int primary key);"
        "create schema trap; create table trap.pg_type (oid int);"
        "create table trap.pg_class (x int);"
        "create table trap.pg_attribute (x int); set search_path = trap, public, pg_catalog"
    )
    assert table_schema(session, T, 1).key == ("id",)


def test_discovery_lists_what_logical_replication_can_carry(
    session: psycopg.Connection[Any],
) -> None:
    session.execute(
        "create schema app; create table app.plain (id int primary key);"
        "create table parted (id int) partition by range (id);"
        "create table part1 partition of parted for values from (0) to (1000);"
        "create table part2 partition of parted for values from (1000) to (9999);"
        "create table full_identity (x int); alter table full_identity replica identity full;"
        "create temp table temporary (x int); create unlogged table unlogged (x int);"
        "create view seen as select 1 as x; create materialized view made as select 1 as x;"
        "insert into app.plain select generate_series(1, 5000);"
        "insert into parted select generate_series(1, 3000); analyze app.plain; analyze part1;"
        "analyze part2"
    )
    found = {str(d.table): d for d in discover(session)}
    assert list(found) == ["app.plain", "public.full_identity", "public.parted"]
    assert (found["app.plain"].rows, found["app.plain"].pages > 0) == (5000, True)
    parted = found["public.parted"]
    assert (parted.partitioned, parted.rows, parted.pages > 0) == (True, 3000, True)
    never = found["public.full_identity"]
    assert (never.rows, never.pages, never.identity) == (None, 0, ReplicaIdentity.FULL)


def test_discovery_follows_a_publication_and_its_roots(session: psycopg.Connection[Any]) -> None:
    session.execute(
        "create table plain (id int); create table other (id int);"
        "create table parted (id int) partition by range (id);"
        "create table part1 partition of parted for values from (0) to (1000);"
        "create publication by_root for table plain, parted with (publish_via_partition_root);"
        "create publication by_part for table plain, parted; create publication empty"
    )
    names = {p: [d.table.name for d in discover(session, p)] for p in ("by_root", "by_part")}
    assert names == {"by_root": ["parted", "plain"], "by_part": ["part1", "plain"]}
    assert discover(session, "empty") == []
