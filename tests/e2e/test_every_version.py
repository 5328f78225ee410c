"""The core suite: what must hold on every supported version of Postgres, in few runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import pytest

from altered_tables import ADDED, KEYLESS, MOVED
from altered_tables import names as altered
from every_type import COLUMNS, TYPES, column_names, rows
from headrace.errors import HeadraceError
from keyed_tables import KEYS
from replicated import SLOT, acknowledged_lsn
from toast_orders import ORDERS, STEPS, big
from toast_orders import names as orders

pytestmark = pytest.mark.versions

FAMILIES = """
create table parents (id int primary key, v text);
create table children (id int primary key, parent int references parents);
insert into parents select g, 'p' || g from generate_series(1, 5) g;
insert into children select g, g from generate_series(1, 5) g;
create table parted (id int, region text, v int, primary key (id, region))
    partition by list (region);
create table parted_eu partition of parted for values in ('eu');
create table parted_rest partition of parted default;
insert into parted select g, case g % 2 when 0 then 'eu' else 'us' end, g
    from generate_series(1, 20) g;
"""
FAMILY_CHANGES = """
truncate parents cascade;
insert into parents values (7, 'again');
update parted set region = 'eu' where id = 1;
delete from parted where id = 3;
create table parted_asia partition of parted for values in ('asia');
insert into parted values (99, 'asia', 1);
"""


def ordered() -> dict[str, str]:
    """Each order's table; its name alone is that of an altered table, too."""
    return {order: f"unsent_{name}" for order, name in orders().items()}


def make_keyed(shop) -> Iterator[str]:
    for create, _ in KEYS.values():
        shop.sql(create)
    yield from KEYS


def make_toasted(shop) -> Iterator[str]:
    for table in ordered().values():
        shop.sql(f"create table {table} (id int primary key, n int, a text, b text, c text)")
        for id_ in (1, 2, 3):
            shop.sql(f"insert into {table} values (%s, 0, %s, %s)", (id_, big(id_), big(-id_)))
        yield table


def make_altered(shop) -> Iterator[str]:
    for case, table in altered(ADDED | MOVED).items():
        key = "" if case == KEYLESS else "primary key"
        shop.sql(f"create table {table} (id int {key}, v text)")
        shop.sql(f"insert into {table} select g, 'v' || g % 9 from generate_series(1, 20) g")
        shop.sql(f"alter table {table} replica identity {'default' if key else 'full'}")
        yield table


def make_typed(shop) -> Iterator[str]:
    kinds = ", ".join(f"{n} {kind}" for n, kind in zip(column_names(), COLUMNS, strict=True))
    shop.sql(TYPES)
    shop.sql(f"create table everything (id int primary key, {kinds})")
    shop.sql(rows_of(shop, 1))
    yield "everything"


def rows_of(shop, first_id: int) -> str:
    """Postgres 13 has no infinite numeric; other types have theirs below, too."""
    with shop.database.connect() as session:
        has_infinity = session.info.server_version >= 140000
    return rows(first_id) if has_infinity else rows(first_id).replace("'Infinity'", "'NaN'")


def change_keyed(shop) -> None:
    for transactions in zip_longest(*(changes for _, changes in KEYS.values()), fillvalue=()):
        for statements in transactions:
            with shop.database.connect(autocommit=False) as connection:
                for statement in statements:
                    connection.execute(statement)


def change_toasted(shop) -> None:
    for step in range(STEPS):
        for order, table in ordered().items():
            with shop.database.connect(autocommit=False) as connection:
                for statement in ORDERS[order][step : step + 1]:
                    for query, *parameters in statement:
                        connection.execute(query.format(t=table), *parameters)


def change_altered(shop) -> None:
    for case, table in altered(ADDED | MOVED).items():
        with shop.database.connect(autocommit=False) as connection:
            connection.execute(f"update {table} set v = 'before' where id = 10")
            for statement in (ADDED | MOVED)[case]:
                connection.execute(statement.format(t=table))
            connection.execute(f"insert into {table} (id) values (1000)")
            connection.execute(f"delete from {table} where id = 4")


def test_4_6_7_and_8_whatever_happens_to_tables_arrives(shop):
    """Invariants 4, 6, 7 and 8: keys, TOAST, columns, types, partitions, TRUNCATE."""
    makers = (make_keyed, make_toasted, make_altered, make_typed)
    tables = [table for make in makers for table in make(shop)]
    tables += ["parents", "children", "parted"]
    shop.sql(FAMILIES)
    shop.carry("public.*")
    shop.catch_up()
    for change in (change_keyed, change_toasted, change_altered):
        change(shop)
    shop.sql(rows_of(shop, 1001))
    shop.sql("update everything set id = id + 2000 where id < 1000")  # rows of the snapshot
    shop.sql(FAMILY_CHANGES)
    shop.catch_up()
    for table in altered(ADDED | MOVED).values():  # the stream tells a schema only with a row
        shop.sql(f"update {table} set id = -id where id = 1000")
    shop.catch_up()
    for table in tables:
        shop.assert_equal(f"public.{table}", readers=["deltalake"])
    assert all(verified.equal for verified in shop.project.verify())


def test_2_a_prepared_transaction_arrives_when_it_is_committed_and_not_before(shop):
    """Invariant 2: whole, in order with what others did meanwhile; a rollback leaves nothing."""
    shop.sql("create table orders (id int primary key, v text); insert into orders values (1, '')")
    shop.carry("public.orders")
    shop.catch_up()
    for end, id_ in (("commit", 10), ("rollback", 20)):
        name = f"{shop.database.name} {end}"
        with shop.database.connect(autocommit=False) as session:
            session.execute("insert into orders values (%s, 'prepared')", [id_])
            session.execute("update orders set v = %s where id = 1", [end])
            session.execute(f"prepare transaction '{name}'")
        shop.sql("insert into orders values (%s, 'meanwhile')", [id_ + 1])
        shop.catch_up()
        shop.assert_equal("public.orders", readers=["deltalake"])
        shop.sql(f"{end} prepared '{name}'")
        shop.sql("insert into orders values (%s, 'afterwards')", [id_ + 2])
        shop.catch_up()
        shop.assert_equal("public.orders", readers=["deltalake"])


def test_1_transactions_without_a_change_of_ours_are_acknowledged_too(shop):
    """Invariant 1. Before Postgres 15 the server sends each, as a begin and a commit."""
    shop.sql("create table orders (id int primary key)")
    shop.carry("public.orders")
    shop.catch_up()
    before = acknowledged_lsn(shop.database)
    for number in range(20):
        shop.sql(f"create table elsewhere_{number} (id int)")
        shop.sql(f"insert into elsewhere_{number} values (1)")
    shop.catch_up()
    assert acknowledged_lsn(shop.database) > before
    shop.sql("insert into orders values (1)")
    shop.catch_up()
    shop.assert_equal("public.orders", readers=["deltalake"])


@pytest.mark.since(15)
def test_4_a_publication_s_rows_and_columns_are_what_arrives(shop):
    """Invariant 4: a row that leaves the filter is deleted, one that enters it is inserted."""
    shop.sql("""
        create table filtered (id int primary key, v int);
        alter table filtered replica identity full;
        create table listed (id int primary key, a int, secret text);
        insert into filtered select g, g - 3 from generate_series(1, 6) g;
        insert into listed select g, g, 'hidden' from generate_series(1, 6) g;
    """)
    shop.sql(f"create publication {SLOT} for table filtered where (v > 0), listed (id, a)")
    shop.carry("public.*")
    shop.catch_up()
    shop.sql("update filtered set v = -v; delete from filtered where id = 6")
    shop.sql("insert into filtered values (7, 0), (8, 8)")
    shop.sql("update listed set secret = 'changed'; update listed set a = -a where id = 2")
    shop.catch_up()
    for table, column, where in (("filtered", "v", "v > 0"), ("listed", "a", "true")):
        visible = f"(select * from {table} where {where}) t"
        shop.assert_equal(visible, f"public.{table}", columns=["id", column], readers=["deltalake"])


@contextmanager
def little_wal_kept(shop) -> Iterator[None]:
    """The server keeps next to no WAL for slots; each worker has servers of its own."""
    shop.sql("alter system set max_slot_wal_keep_size = '1MB'")
    shop.sql("select pg_reload_conf()")
    try:
        yield
    finally:
        shop.sql("alter system reset max_slot_wal_keep_size")
        shop.sql("select pg_reload_conf()")


def test_12_a_slot_whose_wal_the_server_removed_is_told(shop):
    """Invariant 12."""
    shop.sql("create table orders (id int primary key)")
    shop.carry("public.orders")
    shop.catch_up()
    lost = "select wal_status = 'lost' from pg_replication_slots where slot_name = %s"
    with little_wal_kept(shop):
        while shop.sql(lost, [SLOT]) != [(True,)]:
            shop.sql("insert into orders select coalesce(max(id), 0) + 1 from orders")
            shop.sql("select pg_switch_wal()")
            shop.sql("checkpoint")
        with pytest.raises(HeadraceError, match=f"slot '{SLOT}' is lost") as failure:
            shop.run()
    assert failure.value.hint
