"""The fixture `database`: fresh for each test, gone afterwards with its slots."""

from __future__ import annotations

import psycopg
from psycopg import sql

from headrace.testing.database import temporary_database


def test_a_database_goes_with_its_slots_and_its_clients(server_dsn):
    with temporary_database(server_dsn) as database:
        assert database.execute("create table t (id int); insert into t values (1); table t") == [
            (1,)
        ]
        client = database.connect()
        walsender = psycopg.connect(database.dsn, replication="database", autocommit=True)
        walsender.execute("CREATE_REPLICATION_SLOT left_over LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        walsender.execute("CREATE PUBLICATION p")
        start = b"START_REPLICATION SLOT left_over LOGICAL 0/0"
        walsender.pgconn.exec_(start + b" (proto_version '1', publication_names 'p')")
    with psycopg.connect(server_dsn) as admin:
        assert (
            admin.execute("select from pg_database where datname = %s", [database.name]).fetchall()
            == []
        )
        assert (
            admin.execute(
                "select from pg_replication_slots where database = %s", [database.name]
            ).fetchall()
            == []
        )
    client.close()
    walsender.close()


def test_a_database_goes_with_what_was_prepared_in_it(server_dsn):
    with temporary_database(server_dsn) as database:
        name = f"{database.name}'s"
        with database.connect(autocommit=False) as session:
            session.execute("create table t (id int)")
            session.execute(sql.SQL("prepare transaction {}").format(name))
    with psycopg.connect(server_dsn) as admin:
        left = "select gid from pg_prepared_xacts where gid = %s"
        assert admin.execute(left, [name]).fetchall() == []


def test_rows_without_columns_are_rows(database):
    assert database.execute("select from generate_series(1, 2)") == [(), ()]
    assert database.execute("select from generate_series(1, 0)") == []
    assert database.execute("create table t ()") == []
