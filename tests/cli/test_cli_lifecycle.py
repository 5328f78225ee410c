"""From an empty folder to a verified lake and back, as a user types it."""

from __future__ import annotations

import re
import signal
from decimal import Decimal

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

ONE_ORDER = pa.table(
    {
        "id": pa.array([5000], pa.int32()),
        "customer_id": pa.array([1], pa.int32()),
        "total": pa.array([Decimal("1.00")], pa.decimal128(10, 2)),
    }
)
SLOTS = "select slot_name, active from pg_replication_slots where database = current_database()"


def test_a_shop_goes_to_the_lake_and_leaves_nothing_at_the_source(shop, database):
    address = re.findall(
        r"^    (?:host|port|database|user): \S+", shop.file.read_text(), re.MULTILINE
    )
    options = [f"--{line.strip().replace(': ', '=')}" for line in address]
    assert shop("init", *options, "--force").code == 0
    checked = shop("check", "--fix", "--yes")
    assert checked.code == 0, checked.err
    assert "CREATE PUBLICATION" in checked.out
    assert shop("run", "--once").code == 0
    database.execute(
        "update customers set name = 'Ada' where id = 7; delete from orders where id = 1"
    )
    ran = shop("run", "--once")
    assert (ran.code, ran.out) == (
        0,
        "caught up: every table holds what its source had at the start\n",
    )
    rows = shop("query", "select id, name from public.customers where id = 7", "--json").records
    assert rows == [{"id": 7, "name": "Ada"}]
    verified = shop("verify", "--json").records
    assert [(t["table"], t["rows"], t["missing"], t["extra"]) for t in verified] == [
        ("public.customers", 300, 0, 0),
        ("public.orders", 999, 0, 0),
    ]
    assert shop("destroy", "--yes").code == 0
    assert database.execute(SLOTS) == []
    assert database.execute("select pubname from pg_publication") == []
    assert DeltaTable(shop.folder / "lake" / "public" / "orders").version() > 0


def test_plan_names_what_is_to_do_and_then_nothing(shop):
    before = shop.inside("plan", "--json").records
    assert {(s["action"], s["name"]) for s in before if s["kind"] == "table"} == {
        ("copy", "public.customers"),
        ("copy", "public.orders"),
    }
    assert shop.inside("run", "--once").code == 0
    assert {step["action"] for step in shop.inside("plan", "--json").records} == {"keep"}


def test_a_first_run_tells_of_every_copy_as_json_lines(shop):
    before = shop.inside("status")
    assert "no table has been copied yet" in before.out
    ran = shop.inside("run", "--once", "--json")
    copied = {r["table"]: r["rows"] for r in ran.records if r["event"] == "copy_finished"}
    assert copied == {"public.customers": 300, "public.orders": 1000}
    assert ran.records[-1]["event"] == "progress"
    assert {record["level"] for record in ran.records} == {"info"}


def test_a_fix_is_shown_and_without_agreement_not_applied(shop, database):
    refused = shop.inside("check", "--fix")
    assert refused.code == 2
    assert "CREATE PUBLICATION" in refused.out
    assert database.execute("select pubname from pg_publication") == []


def test_status_and_preview_tell_of_the_last_change(shop, database):
    assert shop.inside("run", "--once").code == 0
    database.execute("update customers set name = E'two\\nlines' where id = 1")
    assert shop.inside("run", "--once").code == 0
    capture, *tables = shop.inside("status", "--json").records
    assert capture["slot"]["name"] == "headrace_source"
    assert {t["table"]: t["phase"] for t in tables} == {
        "public.customers": "streaming",
        "public.orders": "streaming",
    }
    assert all(t["error"] is None for t in tables)
    change = shop.inside("preview", "public.customers", "--json").records[-1]
    assert (change["_op"], change["id"], change["name"]) == ("u", 1, "two\nlines")
    shown = shop.inside("preview", "public.customers")
    assert "two\\nlines" in shown.out  # one row is one line
    assert "streaming" in shop.inside("status").out


def test_a_table_that_cannot_be_represented_fails_alone(shop, database):
    database.execute("create table eras (id int primary key, ends date)")
    database.execute("insert into eras values (1, 'infinity')")
    ran = shop.inside("run", "--once", "--json")
    assert ran.code == 1
    assert any("public.eras" in record.get("error", "") for record in ran.records)
    assert shop.inside("query", "select count(*) as n from public.orders", "--json").records == [
        {"n": 1000}
    ]


def test_a_difference_ends_verify_with_4(shop):
    assert shop.inside("run", "--once").code == 0
    orders = shop.folder / "lake" / "public" / "orders"
    write_deltalake(orders, ONE_ORDER, mode="append")
    verified = shop.inside("verify")
    assert verified.code == 4, verified.err
    assert "1 of 2 tables equal their source" in verified.out


def test_a_blocker_ends_check_and_run_with_3(shop, database):
    database.execute(f"create role reader_{database.name} login replication password 'secret-1'")
    try:
        text = shop.file.read_text()
        shop.file.write_text(text.replace("user: postgres", f"user: reader_{database.name}"))
        checked = shop.inside("check", "--json", SOURCE_PASSWORD="secret-1")
        assert checked.code == 3
        assert "blocker" in {finding["severity"] for finding in checked.records}
        assert shop.inside("run", "--once", SOURCE_PASSWORD="secret-1").code == 3
    finally:
        database.execute(f"drop role reader_{database.name}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_cleanly_with_130(shop, database, number):
    with shop.started("run") as process:
        _await_following(process.stderr)
        database.execute("insert into customers values (1000, 'late')")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert database.execute(SLOTS) == [("headrace_source", False)]
    assert shop("run", "--once").code == 0
    query = "select name from public.customers where id = 1000"
    assert shop("query", query, "--json").records == [{"name": "late"}]


def _await_following(lines) -> None:
    """Until both tables are streamed; a process that ended closes its stderr."""
    streaming = 0
    for line in lines:
        streaming += "phase=streaming" in line
        if streaming == 2:
            return
    raise AssertionError("the run ended before its tables were copied")


def test_destroy_asks_and_without_a_terminal_keeps_everything(shop, database):
    assert shop.inside("run", "--once").code == 0
    refused = shop.inside("destroy")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert database.execute(SLOTS) == [("headrace_source", False)]


def test_a_second_run_is_refused_and_names_the_first(shop):
    with shop.started("run") as first:
        _await_following(first.stderr)
        second = shop("run", "--once")
        assert second.code == 1
        assert str(first.pid) in second.err
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 130
