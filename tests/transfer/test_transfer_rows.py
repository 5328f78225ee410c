"""From Postgres to Postgres: whole tables equal their source, in values and in types."""

from __future__ import annotations

import sys
from itertools import zip_longest

import pytest

from every_type import COLUMNS, NESTED, TYPES, column_names, rows
from keyed_tables import KEYS
from toast_orders import ORDERS, STEPS, big, names

ALL = {**COLUMNS, **NESTED}


def in_one_transaction(mirror, *statements: str) -> None:
    with mirror.source.connect(autocommit=False) as connection:
        for statement in statements:
            connection.execute(statement.encode())


# -- types -----------------------------------------------------------------------------------------


@pytest.fixture
def everything(mirror):
    kinds = ", ".join(f"{n} {kind}" for n, kind in zip(column_names(ALL), ALL, strict=True))
    mirror.sql(TYPES)
    mirror.at_target(TYPES)
    mirror.sql(f"create table everything (id int primary key, {kinds})")
    mirror.carry("public.everything")
    return mirror


@pytest.mark.since(14)  # which has infinite numerics
def test_4_and_7_every_value_of_every_type_arrives_by_snapshot_and_by_stream(everything):
    """Invariants 4 and 7. The same rows come once by the snapshot and once by the stream."""
    everything.sql(rows(1, ALL))
    everything.catch_up()
    everything.assert_equal("everything")
    everything.sql(rows(1001, ALL))
    everything.sql("update everything set id = id + 2000 where id < 1000")  # rows of the snapshot
    everything.catch_up()
    everything.assert_equal("everything")
    assert everything.project.quarantine() == []


@pytest.mark.since(14)  # which has infinite numerics
def test_4_rows_of_every_type_without_a_key_are_told_apart_exactly(everything):
    """Invariant 4: -0 and 0, 1.0 and 1.00, char's padding: one of several equal rows goes."""
    everything.sql("alter table everything drop constraint everything_pkey, drop column id")
    everything.sql("alter table everything replica identity full")
    insert = rows(1, ALL).replace("values (1, ", "values (")
    for number in range(1, 20):
        insert = insert.replace(f", ({number}, ", ", (")
    everything.sql(f"{insert}; {insert}; {insert}")
    everything.catch_up()
    everything.assert_equal("everything")
    one_each = "select min(ctid) from everything group by (everything.*)::text"
    everything.sql(f"delete from everything where ctid in ({one_each})")
    everything.sql(f"update everything set c0 = not c0 where ctid in ({one_each})")
    everything.catch_up()
    everything.assert_equal("everything")


def test_4_and_7_all_of_unicode_and_five_megabytes_arrive_by_snapshot_and_by_stream(mirror):
    """Invariants 4 and 7."""
    every = "".join(chr(c) for c in range(1, sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    megabytes = bytes(range(256)) * (5 << 12)
    mirror.sql("create table big (id int primary key, txt text, raw bytea)")
    insert = "insert into big values (%s, %s, %s)"
    mirror.sql(insert, (1, every, megabytes))
    mirror.carry("public.big")
    mirror.catch_up()
    mirror.sql(insert, (2, every, megabytes))
    mirror.sql("update big set id = 3 where id = 1")  # both values stay in TOAST, unsent
    mirror.catch_up()
    mirror.assert_equal("big")


# -- keys ------------------------------------------------------------------------------------------


@pytest.fixture
def keyed(mirror):
    for create, _ in KEYS.values():
        mirror.sql(create)
    mirror.carry("public.*")
    mirror.catch_up()
    return mirror


@pytest.mark.parametrize("stops", ["after every transaction", "never"])
def test_4_tables_of_every_kind_of_key_equal_their_source(keyed, stops):
    """Invariant 4: keys that move, swap and come again; rows without any key as a multiset."""
    for transactions in zip_longest(*(changes for _, changes in KEYS.values()), fillvalue=()):
        for statements in transactions:
            in_one_transaction(keyed, *statements)
        if stops == "after every transaction":
            keyed.catch_up()
    keyed.catch_up()
    keyed.assert_equal(*KEYS)
    assert keyed.project.quarantine() == []


def test_4_a_key_of_the_users_choice_is_followed_under_replica_identity_full(mirror):
    """Invariant 4: the source's own key may change its rows' values, the chosen one moves."""
    mirror.sql("""
        create table goods (id int primary key, code text not null, v int);
        alter table goods replica identity full;
        insert into goods select g, 'c' || g, g from generate_series(1, 9) g
    """)
    mirror.carry({"source": "public.goods", "key": ["code"]})
    mirror.catch_up()
    mirror.sql("update goods set id = id + 100; update goods set code = 'x' || code where v < 4")
    mirror.catch_up()
    mirror.assert_equal("goods")
    (key,) = mirror.at_target(
        "select pg_get_constraintdef(oid) from pg_constraint"
        " where conrelid = 'goods'::regclass and contype = 'p'"
    )
    assert key == ("PRIMARY KEY (code)",)


# -- unchanged TOAST -------------------------------------------------------------------------------


@pytest.fixture(params=["default", "full"])
def toasted(request, mirror):
    """Per order one table with columns out of line, and three rows of it at the target."""
    for table in names().values():
        mirror.sql(f"create table {table} (id int primary key, n int, a text, b text, c text)")
        mirror.sql(f"alter table {table} replica identity {request.param}")
        for id_ in (1, 2, 3):
            mirror.sql(f"insert into {table} values (%s, 0, %s, %s)", (id_, big(id_), big(-id_)))
    mirror.carry("public.*")
    mirror.catch_up()
    return mirror


def change(mirror, step: int) -> None:
    """The transaction at this place of each order that has one."""
    for order, table in names().items():
        with mirror.source.connect(autocommit=False) as connection:
            for statement in ORDERS[order][step : step + 1]:
                for query, *parameters in statement:
                    connection.execute(query.format(t=table), *parameters)


@pytest.mark.parametrize("way", ["in one run", "each in a run of its own", "while running"])
def test_6_unsent_values_are_kept(toasted, way):
    """Invariant 6: read from the rows that hold them, whatever key those have by then."""
    if way == "while running":
        with toasted.running() as running:
            for step in range(STEPS):
                change(toasted, step)
                running.catch_up()
    else:
        for step in range(STEPS):
            change(toasted, step)
            if way != "in one run":
                toasted.catch_up()
        toasted.catch_up()
    toasted.assert_equal(*names().values())
