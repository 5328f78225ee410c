"""Several pipelines on one capture, tables that come later, lost logs, S3, and TLS."""

from __future__ import annotations

import shutil

import pytest
from harness import PIPELINE, Shop

from headrace.connectors.postgres.source import PostgresSource
from headrace.testing.database import temporary_database
from toast_orders import big

CRM = [{"source": "public.customers", "name": "crm.customers"}, "public.orders"]


@pytest.fixture
def store(shop):
    shop.sql("""
        create table customers (id int primary key, name text);
        create table orders (id int primary key, v text);
        create table audit_log (id int primary key, v text);
        insert into customers select g, 'c' || g from generate_series(1, 50) g;
        insert into orders select g, 'o' || g from generate_series(1, 50) g;
        insert into audit_log select g, 'a' || g from generate_series(1, 50) g;
    """)
    return shop


def change(shop) -> None:
    for table, column in (("customers", "name"), ("orders", "v"), ("audit_log", "v")):
        shop.sql(f"update {table} set {column} = {column} || '.' where id % 3 = 0")
        shop.sql(f"delete from {table} where id = (select min(id) from {table})")
        shop.sql(f"insert into {table} select max(id) + 1, 'new' from {table}")


def copied(monkeypatch) -> list[str]:
    """Which tables are copied from the source, from now on."""
    snapshot, copied = PostgresSource.snapshot, []

    def noted(self, tables, *more):
        copied.extend(map(str, tables))
        return snapshot(self, tables, *more)

    monkeypatch.setattr(PostgresSource, "snapshot", noted)
    return copied


def test_4_pipelines_of_one_capture_carry_each_its_own_tables_under_its_own_names(store):
    """Invariant 4: names, exclusions and two pipelines; one slot serves both."""
    excluded = {"source": "public.audit_log", "exclude": True}
    other = {"source": "public.customers", "name": "archive.Kunden"}
    orders = {"source": "public.orders", "name": "archive.orders"}
    store.declare({"crm": CRM, "archive": ["public.*", excluded, other, orders]})
    store.catch_up()
    for _ in range(2):
        change(store)
        store.catch_up()
        store.assert_equal("public.customers", "crm.customers")
        store.assert_equal("public.customers", "archive.Kunden")
        store.assert_equal("public.orders", "public.orders")
        store.assert_equal("public.orders", "archive.orders")
    slots = "select slot_name from pg_replication_slots where database = current_database()"
    assert store.sql(slots) == [("headrace_shop",)]
    assert not (store.root / "lake/public/audit_log").exists()


def test_12_two_pipelines_never_share_a_table_of_the_lake(store):
    """Invariant 12: the later one is told whose table it is; the first one goes on."""
    store.declare({"first": ["public.orders"], "second": ["public.customers"]})
    store.catch_up()
    taken = {"source": "public.customers", "name": "public.orders"}
    store.declare({"first": ["public.orders"], "second": [taken]})
    change(store)
    (failure,) = store.run()
    assert failure.pipeline == "second"
    assert "first" in failure.error.message
    store.assert_equal("public.orders")


def test_7_a_pipeline_added_later_gets_a_snapshot_of_its_own(store, monkeypatch):
    """Invariant 7: the first pipeline does not notice; the second is right with its first run."""
    store.declare({"crm": CRM})
    store.catch_up()
    change(store)
    store.catch_up()
    tables = copied(monkeypatch)
    store.declare({"crm": CRM, "audit": ["public.audit_log"]})
    change(store)
    store.catch_up()
    assert tables == ["public.audit_log"]
    change(store)
    store.catch_up()
    store.assert_equal("public.audit_log")
    store.assert_equal("public.customers", "crm.customers")


def test_7_a_pipeline_added_later_for_the_same_tables_is_right_too(store):
    """Invariant 7: the log holds an old snapshot and the changes after it."""
    store.declare({"crm": CRM})
    store.catch_up()
    change(store)
    store.catch_up()
    late = {"source": "public.orders", "name": "late.orders"}
    store.declare({"crm": CRM, "late": [late]})
    change(store)
    store.catch_up()
    store.assert_equal("public.orders", "late.orders")
    store.assert_equal("public.orders")


def test_9_a_pipeline_that_does_not_run_keeps_its_changes_in_the_log(store):
    """Invariant 9: one pipeline runs alone for a while; the other finds all it missed."""
    store.declare({"crm": CRM, "audit": ["public.audit_log"]})
    store.catch_up()
    for _ in range(3):
        change(store)
        store.catch_up("crm")
    store.assert_equal("public.orders")
    store.catch_up("audit")
    store.assert_equal("public.audit_log")
    assert all(verified.equal for verified in store.project.verify())


def test_7_a_table_added_to_the_selection_later_is_copied_alone(store, monkeypatch):
    """Invariant 7: by a new entry, and by being created under a glob."""
    store.carry("public.orders")
    store.catch_up()
    tables = copied(monkeypatch)
    store.carry("public.*")
    change(store)
    store.catch_up()
    assert sorted(tables) == ["public.audit_log", "public.customers"]
    store.sql("create table fresh (id int primary key); insert into fresh values (1)")
    change(store)
    store.catch_up()
    assert tables[2:] == ["public.fresh"]
    store.sql("insert into fresh values (2)")
    store.catch_up()
    for table in ("orders", "customers", "audit_log", "fresh"):
        store.assert_equal(f"public.{table}")


@pytest.mark.parametrize("slot", ["kept", "dropped"])
def test_3_a_log_that_was_deleted_by_hand_is_begun_anew_and_the_lake_is_right_again(store, slot):
    """Invariant 3: the log has a new id, so that no checkpoint of the old one counts."""
    store.carry("public.customers", "public.orders")
    store.catch_up()
    change(store)
    store.catch_up()
    shutil.rmtree(store.state)
    if slot == "dropped":
        store.sql("select pg_drop_replication_slot('headrace_shop')")
    store.sql("delete from orders where id > 40")  # nobody ever captures this one
    change(store)
    store.catch_up()
    change(store)
    store.catch_up()
    store.assert_equal("public.customers")
    store.assert_equal("public.orders")


def test_3_a_lake_that_was_deleted_by_hand_is_filled_again(store):
    """Invariant 3: the checkpoint went with the data."""
    store.carry("public.orders")
    store.catch_up()
    change(store)
    store.catch_up()
    shutil.rmtree(store.lake)
    change(store)
    store.catch_up()
    store.assert_equal("public.orders")
    change(store)
    store.catch_up()
    store.assert_equal("public.orders")


def test_4_log_and_lake_on_s3_hold_the_same_as_on_a_disk(
    database, tmp_path, s3_options, monkeypatch
):
    """Invariant 4: every file of the project is an object; two runs, one of them continuous."""
    for name, value in s3_options.items():
        monkeypatch.setenv(name.upper(), value)
    place = f"s3://bucket/{database.name}"
    shop = Shop(database, tmp_path, f"{place}/lake", s3_options)
    shop.sql("create table docs (id int primary key, n int, body text)")
    shop.sql("insert into docs select g, g, 'b' || g from generate_series(1, 1000) g")
    shop.sql("insert into docs values (0, 0, %s)", (big(1),))
    shop.carry("public.docs", state=f"{place}/state")
    shop.catch_up()
    shop.sql("update docs set n = -n where id % 2 = 0; delete from docs where id = 7")
    with shop.running() as running:
        running.catch_up()
        shop.sql("update docs set id = id + 10000 where id < 10")
        shop.sql("insert into docs values (5, 5, 'again')")
        running.catch_up()
    shop.assert_equal("public.docs", readers=["deltalake", "polars"])
    assert all(verified.equal for verified in shop.project.verify())
    assert [path.name for path in tmp_path.iterdir()] == ["headrace.yaml"]


def test_tls_verified_in_full_carries_a_table_by_every_connection_there_is(
    tls_server, certificates, tmp_path
):
    """Catalog, snapshot and stream each connect on their own; the server takes nothing but TLS."""
    with temporary_database(tls_server.dsn(host="localhost", sslmode="require")) as database:
        shop = Shop(database, tmp_path)
        shop.sql("create role carrier login replication password 'geheim' in role pg_read_all_data")
        shop.sql("create table orders (id int primary key, v text)")
        shop.sql("insert into orders select g, 'o' from generate_series(1, 100) g")
        shop.sql("create publication headrace_shop for table orders")
        login = {"host": "localhost", "user": "carrier", "password": "geheim"}
        verified = {"sslmode": "verify-full", "sslrootcert": str(certificates.ca)}
        shop.declare({PIPELINE: ["public.orders"]}, source=login | verified)
        shop.catch_up()
        shop.sql("update orders set v = 'p' where id < 50")
        shop.catch_up()
        shop.assert_equal("public.orders")


def test_adopted_slots_and_publications_are_used_and_stay(store):
    store.sql("create publication theirs for all tables")
    store.sql("select pg_create_logical_replication_slot('their_slot', 'pgoutput')")
    change(store)
    store.carry("public.*", slot="their_slot", publication="theirs")
    store.catch_up()
    change(store)
    store.catch_up()
    store.assert_equal("public.orders")
    lines = store.project.destroy()
    assert any("kept" in line and "their_slot" in line for line in lines)
    assert any("kept" in line and "theirs" in line for line in lines)
    assert store.sql(
        "select slot_name from pg_replication_slots where database = current_database()"
    ) == [("their_slot",)]
    assert store.sql("select pubname from pg_publication") == [("theirs",)]


def test_destroy_drops_what_we_made_and_keeps_the_lake(store):
    store.carry("public.*")
    store.catch_up()
    store.project.destroy()
    here = "select count(*) from pg_replication_slots where database = current_database()"
    assert store.sql(here) == [(0,)]
    assert store.sql("select pubname from pg_publication") == []
    assert not list((store.state / "log").rglob("*.parquet"))
    store.assert_equal("public.orders")
    change(store)
    store.catch_up()  # and all begins anew
    store.assert_equal("public.orders")
