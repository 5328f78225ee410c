"""From Postgres to Postgres: constraints of the destination's own tables, and rows that wait."""

from __future__ import annotations

import pytest

from headrace.errors import RowsWaitError

PARKED = 100  # rows that the quarantine holds
MANY = 150  # more than that: no order but the right one brings them through
FAMILY = """
create table grandparents (id int primary key);
create table parents (id int primary key, of int references grandparents);
create table children (id int primary key, of int references parents);
"""
ROWS = f"""
insert into grandparents select g from generate_series(1, {MANY}) g;
insert into parents select g, g from generate_series(1, {MANY}) g;
insert into children select g, g from generate_series(1, {MANY}) g;
"""


@pytest.fixture
def family(mirror):
    """At the destination the foreign keys lead the other way in the alphabet, too."""
    mirror.sql(FAMILY)
    mirror.at_target(FAMILY)
    mirror.carry("public.*", quarantine={"max_rows": PARKED})
    return mirror


def test_4_tables_that_refer_to_each_other_are_loaded_whatever_comes_first(family):
    """Invariant 4: more rows than may be parked wait for those that they refer to."""
    family.sql(ROWS)
    family.catch_up()
    family.assert_equal("grandparents", "parents", "children")
    assert family.project.quarantine() == []


def test_4_rows_that_come_and_go_together_wait_for_each_other(family):
    """Invariant 4: one transaction brings parents and children, one takes both away."""
    family.catch_up()
    with family.source.connect(autocommit=False) as connection:
        connection.execute(ROWS.encode())
    family.catch_up()
    family.assert_equal("grandparents", "parents", "children")
    with family.source.connect(autocommit=False) as connection:
        for table in ("children", "parents", "grandparents"):
            connection.execute(f"delete from {table} where id % 10 <> 0".encode())
    family.catch_up()
    family.assert_equal("grandparents", "parents", "children")
    assert family.project.quarantine() == []


def test_4_while_running_rows_wait_for_each_other_too(family):
    """Invariant 4."""
    with family.running() as running:
        running.catch_up()
        for number in range(20):
            family.sql(f"""
                insert into grandparents values ({number});
                insert into parents values ({number}, {number});
                insert into children values ({number}, {number})
            """)
            if number % 3 == 0:
                family.sql(f"""
                    delete from children where id = {number};
                    delete from parents where id = {number};
                    delete from grandparents where id = {number}
                """)
        running.catch_up()
        family.assert_equal("grandparents", "parents", "children")
    assert family.project.quarantine() == []


def test_12_rows_whose_parent_never_comes_are_in_quarantine_and_counted(family):
    """Invariant 12: the destination has a foreign key that the source does not enforce."""
    family.sql("alter table children drop constraint children_of_fkey")
    family.sql("insert into grandparents values (1); insert into parents values (1, 1)")
    family.sql("insert into children values (1, 1), (2, 77)")
    family.catch_up()
    assert family.at_target("select id from children") == [(1,)]
    assert family.status("public.children").quarantined == 1
    (parked,) = family.project.quarantine()
    assert (str(parked.table), parked.key) == ("public.children", ("2",))
    family.sql("insert into children values (3, 78); update children set of = 1 where id = 2")
    family.catch_up()
    assert [row.key for row in family.project.quarantine()] == [("3",)]
    family.sql("insert into parents values (78, 1)")
    family.catch_up()
    family.assert_equal("children")
    assert family.project.quarantine() == []


@pytest.mark.parametrize("way", ["load", "stream"])
def test_12_more_orphans_than_the_quarantine_holds_fail_the_run_and_not_the_other_tables(
    family, way
):
    """Invariant 12: `run --once` ends; a later run goes on when the cause is cured."""
    family.sql("alter table children drop constraint children_of_fkey")
    if way == "stream":
        family.catch_up()
    family.sql(f"insert into children select g, g from generate_series(1, {MANY}) g")
    family.sql("insert into grandparents values (1)")
    (failure,) = family.run()
    assert isinstance(failure.error, RowsWaitError)
    assert "children_of_fkey" in failure.error.message
    family.assert_equal("grandparents", "parents")
    assert family.at_target("select count(*) from children") == [(0,)]
    family.sql(f"insert into parents select g, 1 from generate_series(1, {MANY}) g")
    family.catch_up()
    family.assert_equal("parents", "children")


def test_4_values_that_are_unique_at_the_destination_may_be_handed_on(mirror):
    """Invariant 4: in whatever order the rows of one batch come."""
    for execute in (mirror.sql, mirror.at_target):
        execute("create table seats (id int primary key, place int unique)")
    mirror.sql("insert into seats select g, g from generate_series(1, 50) g")
    mirror.carry("public.seats")
    mirror.catch_up()
    with mirror.source.connect(autocommit=False) as connection:
        connection.execute("update seats set place = -place")
        connection.execute("update seats set place = 51 + place where id < 51")
        connection.execute("delete from seats where id = 7")
        connection.execute("insert into seats values (100, 44)")
    mirror.catch_up()
    mirror.assert_equal("seats")
    assert mirror.project.quarantine() == []


def test_12_rows_that_break_a_constraint_are_parked_and_can_be_tried_again(mirror):
    """Invariant 12: CHECK, NOT NULL, UNIQUE and a domain; the others are applied."""
    mirror.sql("create table people (id int primary key, age int, email text)")
    mirror.at_target("""
        create table people
            (id int primary key, age int check (age > 0), email text not null unique)
    """)
    mirror.carry("public.people")
    mirror.catch_up()
    mirror.sql("insert into people values (1, 1, 'a'), (2, -1, 'b'), (3, 3, null), (4, 4, 'a')")
    mirror.catch_up()
    assert mirror.at_target("select id from people") == [(1,)]
    codes = sorted(row.code for row in mirror.project.quarantine())
    assert codes == ["check_violation", "not_null_violation", "unique_violation"]
    mirror.sql("update people set age = 2 where id = 2; delete from people where id = 3")
    mirror.catch_up()
    assert [row.key for row in mirror.project.quarantine()] == [("4",)]
    mirror.at_target("alter table people drop constraint people_email_key")
    assert mirror.project.retry().applied == 1
    mirror.assert_equal("people")
