"""Partitions that come and go with their rows, which the stream does not tell of."""

from __future__ import annotations

import threading

import pytest

from headrace.engine.capture import Capture
from headrace.engine.copying import Copier

# Per case what happens to its table {t}, whose partitions are {t}_low (rows 1 to 9), {t}_high (from
# 10) and {t}_sub (from 100) with {t}_sub_one; False where the table must stop.
CASES: dict[str, tuple[bool, str]] = {
    "a partition made in place": (
        True,
        "create table {t}_more partition of {t} for values from (200) to (300);"
        "insert into {t} values (201, 'new')",
    ),
    "one made in place, filled in the same transaction": (
        True,
        "begin; create table {t}_more partition of {t} for values from (200) to (300);"
        "insert into {t} values (201, 'new'); commit",
    ),
    "all of them emptied": (True, "truncate {t}; insert into {t} values (5, 'after')"),
    "all of them rewritten": (
        True,
        "alter table {t} alter n type bigint; update {t} set v = 'wide' where id = 88",
    ),
    "a row that moves between levels": (True, "update {t} set id = 120 where id = 1"),
    "a partition attached with rows": (
        False,
        "create table {t}_more (like {t} including all); insert into {t}_more values (201, 'old');"
        "alter table {t} attach partition {t}_more for values from (200) to (300)",
    ),
    "one attached in the transaction that filled it": (
        False,
        "begin; create table {t}_more (like {t} including all);"
        "insert into {t}_more values (201, 'old');"
        "alter table {t} attach partition {t}_more for values from (200) to (300); commit",
    ),
    "a tree of partitions attached": (
        False,
        "create table {t}_more (like {t} including all) partition by range (id);"
        "create table {t}_leaf partition of {t}_more for values from (200) to (250);"
        "insert into {t}_more values (201, 'old');"
        "alter table {t} attach partition {t}_more for values from (200) to (300)",
    ),
    "a partition dropped": (False, "drop table {t}_low"),
    "a partition detached": (False, "alter table {t} detach partition {t}_sub"),
    "one detached, changed and attached again": (
        False,
        "alter table {t} detach partition {t}_low; update {t}_low set v = 'unseen';"
        "alter table {t} attach partition {t}_low for values from (0) to (10)",
    ),
    "a partition emptied by itself": (False, "truncate {t}_low"),
    "a partition of the second level emptied": (False, "truncate {t}_sub"),
}
SEED = """
create table {t} (id int primary key default 1, v varchar(20) default 'x', n int default 0)
    partition by range (id);
create table {t}_low partition of {t} for values from (0) to (10);
create table {t}_high partition of {t} for values from (10) to (100);
create table {t}_sub partition of {t} for values from (100) to (200) partition by range (id);
create table {t}_sub_one partition of {t}_sub for values from (100) to (150);
insert into {t} select g, 'v' || g from generate_series(1, 110) g;
"""
TABLES = {case: f"t{number}" for number, case in enumerate(CASES)}
STOP = {f"public.{TABLES[case]}" for case, (goes_on, _) in CASES.items() if not goes_on}


@pytest.fixture
def parted(shop):
    for table in TABLES.values():
        shop.sql(SEED.format(t=table))
    shop.carry("public.*")
    shop.catch_up()
    return shop


def change(shop) -> None:
    for case, (_, statements) in CASES.items():
        shop.sql(statements.format(t=TABLES[case]))


def check_and_resync(shop, failures) -> None:
    assert {str(failure.table) for failure in failures} == STOP
    assert all("headrace resync" in failure.error.hint for failure in failures)
    assert not shop.project.resync(sorted(STOP))
    for table in TABLES.values():
        shop.sql(f"insert into {table} values (99, 'last') on conflict (id) do update set v = 'l'")
    shop.catch_up()
    for table in TABLES.values():
        shop.assert_equal(f"public.{table}", readers=["deltalake"])


def test_12_partitions_that_bring_or_take_rows_between_runs_stop_their_table(parted):
    """Invariants 4 and 12: the others, partitions made in place among them, are followed."""
    change(parted)
    check_and_resync(parted, parted.run())


def test_12_partitions_that_bring_or_take_rows_during_a_run_stop_their_table(parted, monkeypatch):
    """Invariant 12: and a resync in the same run is followed from then on."""
    monkeypatch.setattr("headrace.engine.runner.GUARD_INTERVAL", 0.2)

    def stopped(views) -> set[str]:
        return {
            str(table)
            for view in views
            for m in view.materializations
            for table, state in m.tables.items()
            if state.phase.value == "failed"
        }

    with parted.running() as running:
        running.catch_up()
        change(parted)
        running.wait(lambda views: stopped(views) >= STOP)
        running.catch_up()
    check_and_resync(parted, parted.run())


def test_12_a_copy_is_begun_anew_where_its_table_stops_meanwhile(shop, monkeypatch):
    """Invariants 7 and 12: a snapshot from before would lack the rows, and be followed no more."""
    monkeypatch.setattr("headrace.engine.runner.GUARD_INTERVAL", 0.2)
    shop.sql(SEED.format(t="t"))
    shop.carry("public.t")
    copy_all, commit_stop, stopped = Copier._copy_all, Capture.commit_stop, threading.Event()

    def attached_before(*arguments) -> None:
        if not stopped.is_set():
            shop.sql(CASES["a partition attached with rows"][1].format(t="t"))
            assert stopped.wait(60)
        copy_all(*arguments)

    def told(*arguments) -> None:
        commit_stop(*arguments)
        stopped.set()

    monkeypatch.setattr(Copier, "_copy_all", attached_before)
    monkeypatch.setattr(Capture, "commit_stop", told)
    shop.run()  # which may end before it has read of the second copy
    shop.sql("update t set v = 'followed' where id = 5")
    shop.catch_up()
    shop.assert_equal("public.t", readers=["deltalake"])


@pytest.mark.parametrize("publication", ["", "for table parted", "for table low, high"])
def test_4_partitions_that_are_named_are_tables_by_themselves(shop, publication):
    """Invariant 4: also where rows move from one to the other."""
    shop.sql("""
        create table parted (id int primary key, v text) partition by range (id);
        create table low partition of parted for values from (0) to (10);
        create table high partition of parted for values from (10) to (100);
        insert into parted select g, 'v' from generate_series(1, 20) g;
    """)
    if publication:
        shop.sql(f"create publication headrace_shop {publication}")
    shop.carry("public.low", "public.high")
    shop.catch_up()
    shop.sql("update parted set id = id + 30 where id < 5; delete from parted where id = 20")
    shop.sql("truncate low; insert into low values (1, 'after')")
    shop.catch_up()
    for table in ("public.low", "public.high"):
        shop.assert_equal(table, readers=["deltalake"])
