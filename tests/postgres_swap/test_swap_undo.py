"""Undo brings the rows and the checkpoint before the last rebuild back, and holds the table."""

from __future__ import annotations

import pytest
from rebuilding import PIPELINE, TABLE, Rebuilding, temporary_role
from table_features import BASE

from headrace.connectors.postgres import building, former
from headrace.connectors.postgres.building import Build
from headrace.connectors.postgres.target_session import Connection
from headrace.errors import NoGenerationError, UnsuitableTableError
from headrace.testing.database import Database

ROWS = "select count(*), max(qty) from shop.orders"
PREVIOUS = "select count(*) from pg_class where relkind = 'r' and relnamespace = %s::regnamespace"


@pytest.fixture
def table(database: Database) -> Rebuilding:
    database.execute(BASE)
    rebuilding = Rebuilding(database)
    rebuilding.applied(7)
    return rebuilding


def one_row(connection: Connection, build: Build) -> None:
    connection.execute(
        f"insert into headrace_work.{build.table.name} (id, code, qty) values (1, 'x', 99)"
    )


def kept(database: Database, schema: str = "headrace_previous") -> int:
    return int(database.execute(PREVIOUS, [schema])[0][0])


def test_undo_brings_rows_and_checkpoint_back_and_holds_the_table(table: Rebuilding) -> None:
    table.rebuild(one_row, version=8)
    assert table.standing() == (8, None)
    assert table.database.execute(ROWS) == [(1, 99)]
    assert table.undo() == ()
    assert table.standing() == (7, "undone by a test")
    assert table.database.execute(ROWS) == [(40, 6)]
    assert kept(table.database) == 0


def test_without_a_former_generation_there_is_nothing_to_undo(table: Rebuilding) -> None:
    with pytest.raises(NoGenerationError, match=r"no former generation of shop\.orders"):
        table.undo()
    table.rebuild(one_row, version=8)
    table.undo()
    with pytest.raises(NoGenerationError):
        table.undo()
    assert table.standing() == (7, "undone by a test")


def test_only_one_former_generation_is_kept(table: Rebuilding) -> None:
    for version in (8, 9, 10):
        table.rebuild(one_row, version)
        assert kept(table.database) == 1
    table.undo()
    assert table.standing() == (9, "undone by a test")


def test_the_next_run_drops_the_former_generation(table: Rebuilding) -> None:
    table.rebuild(one_row, version=8)
    with table.database.connect() as connection:
        former.drop_previous(connection, TABLE)
        former.drop_previous(connection, TABLE)
    assert kept(table.database) == 0
    assert table.standing() == (8, None)
    with pytest.raises(NoGenerationError):
        table.undo()


def test_what_somebody_hung_on_the_former_generation_is_not_dropped(
    table: Rebuilding, caplog: pytest.LogCaptureFixture
) -> None:
    table.rebuild(one_row, version=8)
    name = table.database.execute(
        "select relname from pg_class where relnamespace = 'headrace_previous'::regnamespace "
        "and relkind = 'r'"
    )[0][0]
    table.database.execute(f"create view shop.was as select id from headrace_previous.{name}")
    table.rebuild(version=9)  # it stands in nobody's way
    assert table.database.execute("select count(*) from shop.was") == [(40,)]
    assert "view shop.was depends on" in caplog.text
    with table.database.connect() as connection:
        former.drop_previous(connection, TABLE)
    assert kept(table.database) == 1


def test_a_right_that_was_taken_since_does_not_come_back(table: Rebuilding) -> None:
    with temporary_role(table.database) as fired, temporary_role(table.database) as hired:
        table.database.execute(f"grant select, insert on shop.orders to {fired}")
        table.database.execute(f"grant update (code) on shop.orders to {fired}")
        table.rebuild(one_row, version=8)
        table.database.execute(
            f"revoke all on shop.orders from {fired}; grant select on shop.orders to {hired}; "
            "alter table shop.orders enable row level security; "
            f"create policy hers on shop.orders to {hired} using (id > 3)"
        )
        table.undo()
        may = "select has_any_column_privilege(%s, 'shop.orders', %s)"
        for right in ("select", "insert", "update"):
            assert table.database.execute(may, [fired, right]) == [(False,)]
        assert table.database.execute(
            f"set role {hired}; reset role; select has_table_privilege('{hired}', "
            "'shop.orders', 'select'), relrowsecurity from pg_class "
            "where oid = 'shop.orders'::regclass"
        ) == [(True, True)]


def test_what_the_former_generation_cannot_have_is_told(table: Rebuilding) -> None:
    table.rebuild(version=8)
    table.database.execute(
        "alter table shop.orders add column added int; "
        "comment on column shop.orders.added is 'new'; comment on table shop.orders is 'mine'; "
        "create index later on shop.orders (added); alter table shop.orders cluster on later"
    )
    lost = table.undo()
    assert [statement.split(" IS ")[0] for statement in lost] == [
        "ALTER TABLE shop.orders CLUSTER ON later",
        "COMMENT ON COLUMN shop.orders.added",
    ]
    assert table.database.execute("select obj_description('shop.orders'::regclass)") == [("mine",)]


def test_an_undone_generation_goes_with_the_sweep(table: Rebuilding) -> None:
    table.rebuild(one_row, version=8)
    table.undo()
    assert kept(table.database, "headrace_work") == 1
    with table.database.connect() as connection:
        assert building.sweep(connection, "another") == 0
        assert building.sweep(connection, PIPELINE) == 1
    assert kept(table.database, "headrace_work") == 0


def test_what_is_kept_ties_no_role_and_nobody_may_read_it(table: Rebuilding) -> None:
    database = table.database
    with database.connect() as session:
        session.execute("create role headrace_tied")
        session.execute(
            "grant select, update (code) on shop.orders to headrace_tied; "
            "create policy p on shop.orders to headrace_tied using (true)"
        )
        table.rebuild(one_row, version=8)
        session.execute(
            "drop policy p on shop.orders; revoke all on shop.orders from headrace_tied"
        )
        session.execute("drop role headrace_tied")


def test_rows_deleted_from_a_parent_do_not_fail_on_the_former_generation(
    table: Rebuilding,
) -> None:
    """Its foreign keys went to the new one: nothing that nobody sees stands in anybody's way."""
    table.database.execute(
        "alter table shop.orders add foreign key (region) references shop.regions"
    )
    table.rebuild(one_row, version=8)
    table.database.execute("delete from shop.regions where id = 2")


def test_a_violated_foreign_key_after_an_undo_stays_not_valid_and_is_told(
    table: Rebuilding,
) -> None:
    table.database.execute(
        "alter table shop.orders add constraint of foreign key (region) references shop.regions"
    )
    table.rebuild(one_row, version=8)
    table.database.execute("delete from shop.regions where id = 2")
    with pytest.raises(UnsuitableTableError, match="NOT VALID"):
        table.undo()
    assert table.standing() == (7, "undone by a test")
    assert table.database.execute(
        "select convalidated from pg_constraint where conname = 'of'"
    ) == [(False,)]
