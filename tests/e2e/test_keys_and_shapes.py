"""Keys, replica identities, TRUNCATE, and names and shapes of tables, from source to lake."""

from __future__ import annotations

import re
from itertools import zip_longest

import pytest

from headrace.errors import CheckFailedError, HeadraceError
from keyed_tables import KEYS
from tables import READERS


def in_one_transaction(shop, *statements: str) -> None:
    with shop.database.connect(autocommit=False) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def keyed_shop(shop):
    for create, _ in KEYS.values():
        shop.sql(create)
    shop.carry("public.*")
    shop.catch_up()
    return shop


@pytest.mark.parametrize("stops", ["after every transaction", "never"])
def test_4_tables_of_every_kind_of_key_equal_their_source(keyed_shop, stops):
    """Invariant 4: keys that move, swap and come again; rows without any key as a multiset."""
    for transactions in zip_longest(*(changes for _, changes in KEYS.values()), fillvalue=()):
        for statements in transactions:
            in_one_transaction(keyed_shop, *statements)
        if stops == "after every transaction":
            keyed_shop.catch_up()
    keyed_shop.catch_up()
    for table in KEYS:
        keyed_shop.assert_equal(f"public.{table}")
    assert all(verified.equal for verified in keyed_shop.project.verify())


# -- TRUNCATE --------------------------------------------------------------------------------------


@pytest.fixture
def families(shop):
    shop.sql("""
        create table parents (id int primary key, v text);
        create table children (id int primary key, parent int references parents);
        create table others (a int, b int);
        alter table others replica identity full;
        insert into parents select g, 'p' || g from generate_series(1, 5) g;
        insert into children select g, g from generate_series(1, 5) g;
        insert into others select 1, 1 from generate_series(1, 5) g;
    """)
    shop.carry("public.*")
    shop.catch_up()
    return shop


TRUNCATES = {
    "several tables": ["truncate parents, children, others"],
    "cascade": ["truncate parents cascade"],
    "then insert": [
        "truncate parents, children, others",
        "insert into parents values (1, 'again')",
        "insert into others values (1, 1), (2, 2)",
    ],
    "after changes": [
        "insert into others values (3, 3)",
        "update parents set id = 100 where id = 5 and false",
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
def test_4_a_truncate_empties_each_table_in_order_with_the_rows_around_it(families, truncates):
    """Invariant 4."""
    in_one_transaction(families, *TRUNCATES[truncates])
    families.catch_up()
    families.sql("insert into others values (5, 5)")
    families.sql("insert into parents values (50, 'late')")
    families.catch_up()
    for table in ("parents", "children", "others"):
        families.assert_equal(f"public.{table}")


# -- names -----------------------------------------------------------------------------------------

UNICODE = "ümläut_ß_名前_\U0001f980"
NAMES = (
    ("Mixed Case", "My Table"),
    ("public", "with.dot"),
    ("public", "with'quote"),
    ("public", 'double"quote'),
    ("public", UNICODE),
    ("public", "select"),
    ("public", "a#b?c&d=e+f"),
    ("public", "*"),
    ("public", " blanks "),
    ("public", "x" * 63),
    ("public", "Same"),
    ("public", "same"),
    ("other", "same"),
)
# Folders in which these readers find no Delta table on a disk, whoever wrote it.
BLIND = {
    *(("polars", n) for n in ("Mixed Case", 'double"quote', UNICODE, "a#b?c&d=e+f", " blanks ")),
    ("duckdb", UNICODE),
}
COLUMNS = ("id", "Mixed Case", "with.dot", "quo'te", 'dou"ble', "select", "ü名\U0001f980", "a`b")


def quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def test_4_names_of_any_kind_reach_the_lake_unchanged(shop):
    """Invariant 4: schemas, tables and columns, as folders and as Delta columns."""
    columns = ", ".join(f"{quoted(column)} text" for column in COLUMNS)
    values = ", ".join(f"'{n}'" for n in range(len(COLUMNS)))
    shop.sql('create schema "Mixed Case"; create schema other')
    for name in NAMES:
        shop.sql(f"create table {quoted(*name)} ({columns}, primary key (id, {quoted('a`b')}))")
        shop.sql(f"insert into {quoted(*name)} values ({values})")
    shop.carry("Mixed Case.*", "public.*", "other.*")
    shop.catch_up()
    for name in NAMES:
        moved = quoted("with.dot")
        shop.sql(f"update {quoted(*name)} set {moved} = 'moved', id = 'other'")
        shop.sql(f"insert into {quoted(*name)} values ({values})")
    shop.catch_up()
    for schema, name in NAMES:
        readers = [r for r in READERS if (r, name) not in BLIND and (r, schema) not in BLIND]
        shop.assert_equal(quoted(schema, name), f"{schema}.{name}", readers=readers)
    assert all(verified.equal for verified in shop.project.verify())


@pytest.mark.parametrize("name", ["a/b", "../../escaped", "..", "per%20cent"])
def test_12_a_table_that_no_reader_could_find_is_refused_and_never_leads_out_of_the_lake(
    shop, name
):
    """Invariant 12: its name is told, and another one makes it work."""
    shop.sql(f"create table {quoted(name)} (id int primary key)")
    shop.sql(f"insert into {quoted(name)} values (1)")
    shop.carry("public.*")
    before = set(shop.root.iterdir())
    with pytest.raises(HeadraceError, match=re.escape(name)) as caught:
        shop.run()
    assert "name:" in caught.value.hint
    shop.carry({"source": f"public.{name}", "name": "public.safe"})
    shop.catch_up()
    shop.assert_equal(quoted(name), "public.safe")
    assert {path.name for path in set(shop.root.iterdir()) - before} <= {"lake", "state"}
    assert [path.name for path in (shop.root / "lake").iterdir()] == ["public"]


def test_a_table_whose_updates_would_fail_at_the_source_is_refused_with_the_remedy(shop):
    shop.sql("create table keyless (a int)")
    shop.carry("public.keyless")
    with pytest.raises(CheckFailedError, match=r"public\.keyless") as caught:
        shop.run()
    assert "primary key" in caught.value.hint
    shop.sql("insert into keyless values (1); update keyless set a = 2")  # it was not published


# -- shapes ----------------------------------------------------------------------------------------


@pytest.mark.versions
def test_4_tables_of_every_shape_equal_their_source(shop):
    """Invariant 4: partitioned, generated, wide, empty, all NULL, with a dropped column."""
    wide = ", ".join(f"c{n} {('int', 'text', 'numeric(9,2)')[n % 3]}" for n in range(300))
    shop.sql(f"""
        create table parted (id int, region text, v int, primary key (id, region))
            partition by list (region);
        create table parted_eu partition of parted for values in ('eu');
        create table parted_rest partition of parted default;
        insert into parted select g, case g % 2 when 0 then 'eu' else 'us' end, g
            from generate_series(1, 20) g;
        create table generated (id int primary key, a int, double int generated always as (a * 2)
            stored, n int generated always as identity);
        insert into generated select g, g from generate_series(1, 5) g;
        create table wide (id int primary key, {wide});
        insert into wide (id, c0, c1, c299) values (1, 1, 'x', 2.5);
        create table empty (id int primary key, v text);
        create table empties (id int primary key, a text, b int[], c bytea, d float8);
        insert into empties select g from generate_series(1, 5) g;
        create table dropped (gone int, id int primary key, also_gone text, v text);
        insert into dropped values (1, 1, 'x', 'y');
        alter table dropped drop column gone, drop column also_gone;
    """)
    shop.carry("public.*")
    shop.catch_up()
    compare_shapes(shop)
    shop.sql("""
        update parted set region = 'eu' where id = 1;
        update parted set region = 'asia', v = -v where id = 2;
        delete from parted where id = 3;
        insert into parted values (99, 'africa', 1);
        create table parted_asia partition of parted for values in ('mars');
        insert into parted values (100, 'mars', 1);
        update generated set a = a + 1;
        insert into generated values (77, 77);
        update wide set c298 = 'y', c0 = null;
        insert into wide (id) values (2);
        insert into empties values (9);
        update empties set id = -id;
        insert into dropped values (2, 'z');
        update dropped set v = 'w' where id = 1;
    """)
    shop.catch_up()
    compare_shapes(shop)
    shop.sql("insert into empty values (1, 'first')")
    shop.catch_up()
    shop.assert_equal("public.empty")


def compare_shapes(shop) -> None:
    for table in ("parted", "wide", "empty", "empties", "dropped"):
        shop.assert_equal(f"public.{table}")
    ((version,),) = shop.sql("select current_setting('server_version_num')::int / 10000")
    sent = ["double"] if version >= 18 else []  # what is generated is not, before
    shop.assert_equal("public.generated", columns=["id", "a", "n", *sent])
    assert not (shop.root / "lake/public/parted_eu").exists()


def test_a_table_without_columns_is_refused_or_carried_and_harms_no_other(shop):
    shop.sql("create table nothing (); alter table nothing replica identity full")
    shop.sql("create table plain (id int primary key)")
    shop.sql("insert into nothing default values; insert into plain values (1)")
    shop.carry("public.*")
    failures = shop.run()
    shop.sql("insert into nothing default values; insert into plain values (2)")
    failures = shop.run()
    assert {str(failure.table) for failure in failures} <= {"public.nothing"}
    shop.assert_equal("public.plain")
