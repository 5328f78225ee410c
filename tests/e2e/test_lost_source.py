"""A lost slot or a restored source costs what differs, and is told; nothing is copied whole."""

from __future__ import annotations

import psycopg
import pytest
from harness import Shop
from psycopg import sql

from headrace.errors import SlotLostError
from headrace.log.anew import intend_anew
from headrace.log.layout import Layout
from headrace.log.storage import open_storage
from headrace.testing.database import Database


@pytest.fixture
def items(shop: Shop) -> Shop:
    shop.sql("create table items (id int primary key, old text, name text)")
    shop.sql("insert into items select g, 'o', 'item ' || g from generate_series(1, 1000) g")
    shop.sql("create table bag (a int); alter table bag replica identity full")
    shop.sql("insert into bag select 1 from generate_series(1, 10)")
    shop.carry("public.*", auto_refresh={"on": ["log_lost"], "min_interval": "1ms"})
    shop.catch_up()
    return shop


def drop_slot(shop: Shop) -> None:
    while shop.sql("select pg_sleep(0.01) from pg_replication_slots where active"):
        pass  # the server takes its time to notice that a run has ended
    shop.sql("select pg_drop_replication_slot('headrace_shop')")


def missed_changes(shop: Shop) -> None:
    shop.sql("update items set name = 'missed' where id <= 5; delete from items where id = 900")
    shop.sql("insert into bag values (1), (2)")


def assert_differences_only(shop: Shop, brought: int = 5, gone: int = 1) -> None:
    for table in ("public.items", "public.bag"):
        shop.assert_equal(table)
    notice = shop.status("public.items").notice or ""
    assert f"of 999 rows, {brought} were written and {gone} taken away" in notice
    shop.sql("update items set name = 'after' where id = 6; delete from bag where a = 2")
    shop.catch_up()
    for table in ("public.items", "public.bag"):
        shop.assert_equal(table)


def test_a_dropped_slot_costs_what_differs(items: Shop) -> None:
    drop_slot(items)
    missed_changes(items)
    items.catch_up()
    assert_differences_only(items)
    assert "was lost or begun anew" in (items.status("public.items").notice or "")


def test_a_dropped_slot_stops_a_run_whose_user_did_not_allow_more(items: Shop) -> None:
    items.carry("public.*")
    drop_slot(items)
    with pytest.raises(SlotLostError, match="no longer exists") as lost:
        items.run()
    assert "auto_refresh" in lost.value.hint
    missed_changes(items)
    items.project.destroy()
    items.catch_up()
    assert_differences_only(items)


def test_a_slot_that_somebody_recreated_is_not_taken_for_the_old_one(items: Shop) -> None:
    drop_slot(items)
    missed_changes(items)
    items.sql("select pg_create_logical_replication_slot('headrace_shop', 'pgoutput')")
    items.catch_up()
    assert_differences_only(items)


def test_a_database_restored_from_a_dump_is_told_from_the_one_before(items: Shop) -> None:
    """The restored one numbers its columns anew, and has not seen what the lake has."""
    items.sql("alter table items drop column old")
    items.project.resync(["public.items"])
    dump = items.sql("select id, name from items")
    items.sql("update items set name = 'lost with the old database' where id > 990")
    items.sql("delete from items where id = 900")
    items.catch_up()
    _recreate(items.database)
    items.sql("create table items (id int primary key, name text)")
    items.sql("create table bag (a int); alter table bag replica identity full")
    with items.database.connect() as session:
        session.cursor().executemany("insert into items values (%s, %s)", dump)
    items.sql("select pg_create_logical_replication_slot('headrace_shop', 'pgoutput')")
    items.catch_up()
    assert "of 1000 rows, 11 were written and 0 taken away" in (
        items.status("public.items").notice or ""
    )
    for table in ("public.items", "public.bag"):
        items.assert_equal(table)


def _recreate(database: Database) -> None:
    """An empty database of the same name."""
    name = sql.Identifier(database.name)
    with psycopg.connect(database.dsn, dbname="postgres", autocommit=True) as admin:
        slots = "from pg_replication_slots where database = %s"
        while admin.execute(f"select pg_sleep(0.01) {slots} and active", [database.name]).rowcount:
            pass  # the server takes its time to notice that a run has ended
        admin.execute(f"select pg_drop_replication_slot(slot_name) {slots}", [database.name])
        admin.execute(sql.SQL("drop database {} with (force)").format(name))
        admin.execute(sql.SQL("create database {}").format(name))


def test_a_source_that_went_back_is_noticed(items: Shop) -> None:
    """As after a restore of its storage: the log is ahead of what the source can ever tell."""
    (newest,) = sorted((items.state / "log" / "shop" / "commits").glob("*.json"))[-1:]
    text = newest.read_text()
    lsn = text.split('"to_lsn":"')[1].split('"')[0]
    newest.write_text(text.replace(f'"to_lsn":"{lsn}"', '"to_lsn":"FFFF/0"'))
    missed_changes(items)
    items.catch_up()
    assert_differences_only(items)


def test_a_log_that_was_to_be_begun_anew_is_so_after_a_crash(items: Shop) -> None:
    storage, layout = open_storage(str(items.state)), Layout("shop")
    intend_anew(storage, layout, "a test")
    for entry in storage.list(layout.commits)[1:]:
        storage.delete([entry.path])
    missed_changes(items)
    items.catch_up()
    assert_differences_only(items)
