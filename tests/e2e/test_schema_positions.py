"""Schema changes at awkward moments: while a table is copied, and behind a copy that knows them.

Each case is a table of its own, and all of them change in one run, so that what one comes to cannot
hide in a run that ended.
"""

from __future__ import annotations

import pytest

from altered_tables import ADDED, KEYLESS, MOVED, STOPPING, names
from headrace.engine.copying import Copier
from headrace.errors import HeadraceError

CHANGES = {
    **{case: ADDED[case] for case in ("with a constant", KEYLESS, "after a truncate")},
    **MOVED,
    **STOPPING,
    "a name taken over": [
        "alter table {t} drop column v",
        "alter table {t} add column w text",
        "alter table {t} rename w to v",
        "update {t} set v = 'w'",
    ],
    "required": ["update {t} set v = 'x' where v is null", "alter table {t} alter v set not null"],
    "another primary key": [
        "alter table {t} add n int not null default 1",
        "alter table {t} drop constraint {t}_pkey, add primary key (id, n)",
    ],
    "another identity": ["alter table {t} replica identity full", "delete from {t} where id = 8"],
    "rewritten": ["vacuum full {t}"],
    "created anew": [
        "drop table {t}",
        "create table {t} (v text, id int primary key)",
        "alter publication headrace_shop add table {t}",
        "insert into {t} values ('anew', 1)",
    ],
}
GONE = {
    "dropped": ["drop table {t}"],
    "renamed": ["alter table {t} rename to {t}_2"],
    "moved to another schema": ["alter table {t} set schema away"],
}


def with_tables(shop, cases) -> dict[str, str]:
    """One table for each case, and one that nothing happens to."""
    tables = names(cases)
    shop.sql("create schema away; create table calm (id int primary key, v text)")
    for case, table in tables.items():
        key = "" if case == KEYLESS else "primary key"
        shop.sql(f"create table {table} (id int {key}, v text)")
        shop.sql(f"alter table {table} replica identity {'default' if key else 'full'}")
    for table in (*tables.values(), "calm"):
        shop.sql(f"insert into {table} select g, 'v' || g % 9 from generate_series(1, 20) g")
    shop.carry("public.*")
    return tables


def change(shop, case: str, table: str, *, at_once: bool = False) -> None:
    """The case's statements between changes of rows; `at_once` in one transaction."""
    after = ["insert into {t} (id) values (99)", "delete from {t} where id = 4"]
    statements = ["update {t} set v = 'before' where id = 3", *(CHANGES | GONE)[case]]
    statements += [] if case in GONE else after[1 if case == "required" else 0 :]
    with shop.database.connect(autocommit=not at_once) as session:
        for statement in statements:
            session.execute(statement.format(t=table))


def assert_followed_or_resynced(shop, tables: dict[str, str]) -> None:
    """Every table goes on, or stops alone with the command that brings it back."""
    resync_what_stops(shop)
    for case, table in tables.items():
        last = "null, 100" if case == "created anew" else "100"
        if case != "required":
            shop.sql(f"insert into {table} values ({last})")
        shop.sql(f"delete from {table} where id = 5")
    shop.sql("update calm set v = 'calm'")
    resync_what_stops(shop)
    shop.catch_up()
    for table in ("calm", *tables.values()):
        shop.assert_equal(f"public.{table}", readers=["deltalake"])


def resync_what_stops(shop) -> None:
    """Until nothing stops any more; each table does once at most.

    One that was created anew is told of where the catalog is looked at next, which may be by the
    run that brings the others back.
    """
    failures, told = shop.run(), set()
    while failures:
        stopped = {str(failure.table): failure.error for failure in failures}
        assert not stopped.keys() & {"public.calm", *told}, stopped
        for table, error in stopped.items():
            assert isinstance(error, HeadraceError)
            assert f"headrace resync {table}" in error.hint, error
        told |= stopped.keys()
        failures = shop.project.resync(sorted(stopped))


@pytest.fixture
def changing_while_copied(shop, monkeypatch):
    """Tables change, once, after their snapshot was taken and before anything of it is read."""

    def arrange(tables: dict[str, str]) -> None:
        copy_all, left = Copier._copy_all, dict(tables)

        def changed_before(*arguments) -> None:
            while left:
                change(shop, *left.popitem())
            copy_all(*arguments)

        monkeypatch.setattr(Copier, "_copy_all", changed_before)

    return arrange


def test_8_tables_that_change_while_they_are_copied_are_right_afterwards(
    shop, changing_while_copied
):
    """Invariant 8."""
    tables = with_tables(shop, CHANGES)
    changing_while_copied(tables)
    assert_followed_or_resynced(shop, tables)


def test_8_tables_that_go_while_they_are_copied_harm_no_other(shop, changing_while_copied):
    """Invariant 8: and where they went, the name that they had is told."""
    tables = with_tables(shop, GONE)
    changing_while_copied(tables)
    stopped = {str(failure.table): failure.error for failure in shop.run()}
    assert set(stopped) == {f"public.{table}" for table in tables.values()}
    assert all("does not exist" in error.message for error in stopped.values())
    shop.sql("update calm set v = 'calm'")
    shop.catch_up()
    shop.assert_equal("public.calm", readers=["deltalake"])


def test_12_a_policy_that_hides_rows_since_the_preflight_stops_its_table(shop, monkeypatch):
    """Invariant 12: the server refuses a copy that would lack rows."""
    with_tables(shop, {"hidden": []})
    reader = f"{shop.database.name}_reader"
    shop.sql(f"create role {reader} login replication password 'reads'")
    shop.sql(f"grant select on all tables in schema public to {reader}")
    shop.sql("create publication headrace_shop for table hidden, calm")
    shop.carry("public.*", source={"user": reader, "password": "reads"})
    copy_all = Copier._copy_all

    def hidden_before(*arguments) -> None:
        shop.sql("alter table hidden enable row level security")
        copy_all(*arguments)

    monkeypatch.setattr(Copier, "_copy_all", hidden_before)
    try:
        (failure,) = shop.run()
    finally:
        shop.sql(f"drop owned by {reader}; drop role {reader}")
    assert str(failure.table) == "public.hidden"
    assert "row-level security" in failure.error.message
    assert "resync public.hidden" in failure.error.hint
    shop.assert_equal("public.calm", readers=["deltalake"])


def test_8_changes_from_before_a_copy_that_knows_the_later_columns_are_harmless(shop):
    """Invariant 8: the stream's Relations are older than the catalog, the log and the lake."""
    tables = with_tables(shop, CHANGES)
    shop.catch_up()
    for case, table in tables.items():
        change(shop, case, table)
    shop.project.resync([f"public.{table}" for table in tables.values()])
    assert_followed_or_resynced(shop, tables)


def test_8_tables_that_change_inside_a_transaction_with_rows_before_and_after(shop):
    """Invariant 8."""
    tables = with_tables(shop, {c: s for c, s in CHANGES.items() if c != "rewritten"})
    shop.catch_up()
    for case, table in tables.items():
        change(shop, case, table, at_once=True)
    assert_followed_or_resynced(shop, tables)


def test_8_tables_that_go_inside_a_transaction_that_changed_them_are_told(shop):
    """Invariant 8: by the run that goes on meanwhile, and by the next one."""
    tables = with_tables(shop, GONE)
    shop.catch_up()
    with shop.running() as run:
        run.catch_up()
        for case, table in tables.items():
            change(shop, case, table, at_once=True)
        shop.sql("update calm set v = 'calm'")
        run.wait(lambda _: all(shop.status(f"public.{t}").error for t in tables.values()))
    shop.assert_equal("public.calm", readers=["deltalake"])
    stopped = {str(failure.table) for failure in shop.run()}
    assert stopped <= {f"public.{table}" for table in tables.values()}
