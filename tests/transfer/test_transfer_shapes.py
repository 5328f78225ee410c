"""From Postgres to Postgres: TRUNCATE, names, shapes of tables, and what is done with deletes."""

from __future__ import annotations

import pytest

from headrace.errors import CheckFailedError

TRUNCATES = {
    "several tables": ["truncate parents, children, others"],
    "then insert": [
        "truncate parents, children, others",
        "insert into parents values (1, 'again')",
        "insert into others values (1, 1), (2, 2)",
    ],
    "after changes": [
        "insert into others values (3, 3)",
        "delete from children",
        "truncate parents cascade",
        "insert into parents values (7, 'x')",
        "truncate others",
    ],
    "twice": [
        "truncate others",
        "insert into others values (1, 1)",
        "truncate others",
        "insert into others values (4, 4), (4, 4)",
        "delete from others where ctid = (select min(ctid) from others)",
    ],
}


@pytest.mark.parametrize("truncates", TRUNCATES)
def test_4_a_truncate_empties_each_table_in_order_with_the_rows_around_it(mirror, truncates):
    """Invariant 4."""
    mirror.sql("""
        create table parents (id int primary key, v text);
        create table children (id int primary key, parent int references parents);
        create table others (a int, b int);
        alter table others replica identity full;
        insert into parents select g, 'p' || g from generate_series(1, 5) g;
        insert into children select g, g from generate_series(1, 5) g;
        insert into others select 1, 1 from generate_series(1, 5) g;
    """)
    mirror.carry("public.*")
    mirror.catch_up()
    with mirror.source.connect(autocommit=False) as connection:
        for statement in TRUNCATES[truncates]:
            connection.execute(statement.encode())
    mirror.catch_up()
    mirror.sql("insert into others values (5, 5); insert into parents values (50, 'late')")
    mirror.catch_up()
    mirror.assert_equal("parents", "children", "others")


# -- names -----------------------------------------------------------------------------------------

NAMES = (
    ("Mixed Case", "My Table"),
    ("public", "with.dot"),
    ("public", "with'quote"),
    ("public", 'double"quote'),
    ("public", "ümläut_ß_名前_\U0001f980"),
    ("public", "select"),
    ("public", "100% {x} %s"),
    ("public", "a/b"),
    ("public", "*"),
    ("public", " blanks "),
    ("public", "x" * 63),
    ("public", "Same"),
    ("public", "same"),
    ("other", "same"),
)
COLUMNS = ("id", "Mixed Case", "quo'te", 'dou"ble', "select", "%s {0}", "ü名\U0001f980", "a`b")


def quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def test_4_names_of_any_kind_arrive_unchanged(mirror):
    """Invariant 4: schemas, tables and columns."""
    columns = ", ".join(f"{quoted(column)} text" for column in COLUMNS)
    values = ", ".join(f"'{n}'" for n in range(len(COLUMNS)))
    mirror.sql('create schema "Mixed Case"; create schema other')
    for name in NAMES:
        mirror.sql(f"create table {quoted(*name)} ({columns}, primary key (id, {quoted('a`b')}))")
        mirror.sql(f"insert into {quoted(*name)} values ({values})")
    mirror.carry("Mixed Case.*", "public.*", "other.*")
    mirror.catch_up()
    mirror.assert_equal(*(quoted(*name) for name in NAMES))
    for name in NAMES:
        mirror.sql(f"update {quoted(*name)} set {quoted('%s {0}')} = 'moved', id = 'other'")
        mirror.sql(f"insert into {quoted(*name)} values ({values})")
    mirror.catch_up()
    mirror.assert_equal(*(quoted(*name) for name in NAMES))


def test_4_a_table_may_have_another_name_at_the_destination(mirror):
    """Invariant 4: schema and name; `status` and errors go by the source's."""
    mirror.sql("create table goods (id int primary key); insert into goods values (1)")
    mirror.carry({"source": "public.goods", "name": "Lager.Waren"})
    mirror.catch_up()
    mirror.sql("insert into goods values (2); delete from goods where id = 1")
    mirror.catch_up()
    mirror.assert_equal("goods", target='"Lager"."Waren"')
    assert mirror.status("public.goods").error is None


# -- shapes ----------------------------------------------------------------------------------------


def test_4_tables_of_every_shape_equal_their_source(mirror):
    """Invariant 4: partitioned, generated, identity and serial, wide, empty, with dropped columns.

    What the source computes and what numbers itself arrives as plain values; the former from 18 on.
    """
    wide = ", ".join(f"c{n} {('int', 'text', 'numeric(9,2)')[n % 3]}" for n in range(300))
    mirror.sql(f"""
        create table parted (id int, region text, v int, primary key (id, region))
            partition by list (region);
        create table parted_eu partition of parted for values in ('eu');
        create table parted_rest partition of parted default;
        insert into parted select g, case g % 2 when 0 then 'eu' else 'us' end, g
            from generate_series(1, 20) g;
        create table generated (id int primary key, a int, double int generated always as (a * 2)
            stored, n int generated always as identity);
        insert into generated select g, g from generate_series(1, 5) g;
        create table numbered (id bigserial primary key, n int generated by default as identity,
            v text not null default 'x');
        insert into numbered (v) select 'v' || g from generate_series(1, 5) g;
        create table wide (id int primary key, {wide});
        insert into wide (id, c0, c1, c299) values (1, 1, 'x', 2.5);
        create table empty (id int primary key, v text);
        create table dropped (gone int, id int primary key, also_gone text, v text);
        insert into dropped values (1, 1, 'x', 'y');
        alter table dropped drop column gone, drop column also_gone;
    """)
    mirror.carry("public.*")
    mirror.catch_up()
    compare_shapes(mirror)
    mirror.sql("""
        update parted set region = 'eu' where id = 1;
        update parted set region = 'asia', v = -v where id = 2;
        delete from parted where id = 3;
        insert into parted values (99, 'africa', 1);
        create table parted_mars partition of parted for values in ('mars');
        insert into parted values (100, 'mars', 1);
        update generated set a = a + 1;
        insert into generated values (77, 77);
        insert into numbered (v) values ('more');
        update numbered set id = id + 1000 where id < 3;
        update wide set c298 = 'y', c0 = null;
        insert into wide (id) values (2);
        insert into dropped values (2, 'z');
        update dropped set v = 'w' where id = 1;
    """)
    mirror.catch_up()
    compare_shapes(mirror)
    mirror.sql("insert into empty values (1, 'first')")
    mirror.catch_up()
    mirror.assert_equal("empty")


def compare_shapes(mirror) -> None:
    mirror.assert_equal("parted", "generated", "numbered", "wide", "empty", "dropped")
    assert mirror.at_target("select to_regclass('parted_eu')") == [(None,)]


def test_4_a_partitioned_target_of_the_users_own_takes_the_rows_where_they_belong(mirror):
    """Invariant 4: it is changed in place, and resync too."""
    mirror.sql("create table sales (id int, region text, v int, primary key (id, region))")
    mirror.sql("insert into sales select g, 'r' || g % 3, g from generate_series(1, 30) g")
    mirror.at_target("""
        create table sales (id int, region text, v int, primary key (id, region))
            partition by list (region);
        create table sales_0 partition of sales for values in ('r0');
        create table sales_rest partition of sales default
    """)
    mirror.carry("public.sales")
    mirror.catch_up()
    mirror.assert_equal("sales")
    mirror.sql("update sales set region = 'r0' where id < 9; delete from sales where id = 12")
    mirror.catch_up()
    mirror.assert_equal("sales")
    mirror.at_target("delete from sales where id = 20; update sales set v = -1 where id = 21")
    assert not mirror.project.resync(["public.sales"])
    mirror.assert_equal("sales")
    parts = mirror.at_target("select tableoid::regclass::text, count(*) from sales group by 1")
    assert dict(parts).keys() == {"sales_0", "sales_rest"}


def test_a_table_whose_updates_would_fail_at_the_source_is_refused_with_the_remedy(mirror):
    mirror.sql("create table keyless (a int)")
    mirror.carry("public.keyless")
    with pytest.raises(CheckFailedError, match=r"public\.keyless") as caught:
        mirror.run()
    assert "primary key" in caught.value.hint


# -- deletes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mark", "ignore"])
def test_4_deleted_rows_stay_where_the_user_wants_that(mirror, policy):
    """Invariant 4, by `on_delete`: with the time of the deleting transaction, or as they were."""
    mirror.sql("create table goods (id int primary key, v text)")
    mirror.sql("insert into goods select g, 'v' || g from generate_series(1, 9) g")
    mirror.carry({"source": "public.goods", "on_delete": policy})
    mirror.catch_up()
    (before,) = mirror.sql("select clock_timestamp()")
    mirror.sql("delete from goods where id < 4")
    (after,) = mirror.sql("select clock_timestamp()")
    mirror.catch_up()
    gone = "select id from goods where id < 4 order by id"
    assert mirror.at_target(gone) == [(1,), (2,), (3,)]
    if policy == "mark":
        (marked,) = mirror.at_target("select max(_deleted_at) from goods")
        assert before < marked < after
        mirror.sql("insert into goods values (1, 'again')")
        mirror.catch_up()
        assert mirror.at_target("select v, _deleted_at from goods where id = 1") == [
            ("again", None)
        ]
