"""What a publication sends, told without opening its tables; the server's own view knows."""

from __future__ import annotations

import pytest

from headrace.connectors.postgres.published import VIEW, without_waiting

TABLES = """
create schema other;
create table plain (id int primary key, v text, dropped int, g int generated always as (id) stored);
alter table plain drop dropped;
create table "Odd name" (id int primary key);
create table heap (v text);
create table parent (id int primary key);
create table child () inherits (parent);
create unlogged table fleeting (id int);
create table other.elsewhere (id int primary key, a int, b int);
create table root (id int, region text, primary key (id, region)) partition by list (region);
create table root_eu partition of root for values in ('eu');
create table root_rest partition of root default partition by list (id);
create table other.root_rest_1 partition of root_rest default;
"""
PUBLICATIONS = (
    "for all tables",
    "for all tables with (publish_via_partition_root)",
    "for table plain, heap, only parent, root",
    "for table root, root_rest, plain with (publish_via_partition_root)",
    "for table root_rest",
    "for table root_rest with (publish_via_partition_root)",
)
SINCE_15 = (
    "for tables in schema other",
    "for tables in schema public",
    "for tables in schema public, table other.elsewhere with (publish_via_partition_root)",
    "for tables in schema other, table root with (publish_via_partition_root)",
    "for table plain (id, v) where (id > 3 and v <> 'x'), other.elsewhere (id, b), parent",
    "for table root where (region <> 'eu') with (publish_via_partition_root)",
)


@pytest.mark.versions
@pytest.mark.since(15)
def test_catalogs_tell_of_publications_what_the_servers_view_does(database) -> None:
    database.execute(TABLES)
    for number, what in enumerate(PUBLICATIONS + SINCE_15):
        database.execute(f"create publication p{number} {what}")
    columns = "pubname::text, schemaname::text, tablename::text, attnames::text[], rowfilter"
    with database.connect() as session:
        version = session.info.server_version
        query = f"select {columns} from {VIEW} t order by 1, 2, 3"
        view = session.execute(query).fetchall()
        told = session.execute(without_waiting(query, version)).fetchall()
    if version < 160000:  # where the view lists generated columns, which are not sent
        view = [(*row[:3], [name for name in row[3] if name != "g"], row[4]) for row in view]
    assert {name for name, *_ in view} == {f"p{n}" for n in range(len(PUBLICATIONS + SINCE_15))}
    assert told == view


def test_nobody_who_alters_a_table_is_waited_for(database) -> None:
    database.execute(TABLES)
    database.execute("create publication p for all tables")
    with database.connect(autocommit=False) as altering, database.connect() as session:
        altering.execute("alter table plain add column more int")
        session.execute("set lock_timeout = '1ms'")
        query = f"select tablename from {VIEW} t"
        found = session.execute(without_waiting(query, session.info.server_version)).fetchall()
    assert ("plain",) in found
