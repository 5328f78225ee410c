"""Tables that others have replicated wrong, with transactions that bring it to light.

Per table its creation with the rows of the snapshot, and transactions that follow, each a list of
statements; all of them run on one server side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from toast_orders import big

_WIDE = ", ".join(f"c{n} int" for n in range(1599))


@dataclass(frozen=True)
class Odd:
    """`tables` are compared in the end, by names as SQL spells them."""

    tables: tuple[str, ...]
    create: str
    transactions: tuple[tuple[str, ...], ...]


ODD: Mapping[str, Odd] = {
    "an identity that changes": Odd(
        ("identified",),
        "create table identified (id int primary key, code text not null unique, v text, t text);"
        f"insert into identified select g, 'c' || g, 'v', '{big(1)}' from generate_series(1, 9) g",
        (
            ("update identified set v = 'a' where id < 3", "delete from identified where id = 9"),
            (
                "alter table identified replica identity full",
                "update identified set id = -id, v = 'full' where id in (1, 4)",
                "delete from identified where id = 8",
                "alter table identified replica identity using index identified_pkey",
                "update identified set id = id + 10, v = 'index' where id = 5",
                "delete from identified where id = 7",
            ),
            (
                "alter table identified replica identity nothing",
                "insert into identified values (20, 'c20', 'nothing', null)",
                "alter table identified replica identity default",
                "update identified set id = 21, v = 'moved' where id = 20",
            ),
        ),
    ),
    "keys that change places, with values out of line": Odd(
        ("places",),
        "create table places (k int, code text not null unique, n int, t text, u text,"
        " primary key (k) deferrable initially immediate);"
        "alter table places replica identity using index places_code_key;"
        f"insert into places select g, 'c' || g, 0, '{big(2)}' || g, '{big(3)}' || g"
        " from generate_series(1, 4) g",
        (
            (
                "update places set code = 'aside' where code = 'c1'",
                "update places set code = 'c1', n = 1 where code = 'c2'",
                "update places set code = 'c2', u = null where code = 'aside'",
            ),
            ("update places set k = 5 - k", "update places set n = n + 1"),
        ),
    ),
    "partitions of two levels, with columns in another order": Odd(
        ("levels",),
        "create table levels (id int, region text, v text, t text, primary key (id, region))"
        " partition by list (region);"
        "create table levels_eu (t text, gone int, v text, region text not null, id int not null);"
        "alter table levels_eu drop gone;"
        "alter table levels attach partition levels_eu for values in ('eu');"
        "create table levels_us partition of levels for values in ('us') partition by range (id);"
        "create table levels_us_low partition of levels_us for values from (0) to (100);"
        "create table levels_us_high partition of levels_us default;"
        f"insert into levels select g, case g % 2 when 0 then 'eu' else 'us' end, 'v', '{big(4)}'"
        " || g from generate_series(1, 6) g",
        (
            (
                "update levels set v = 'same place'",
                "update levels set id = id + 200 where id in (1, 2)",
                "update levels set region = 'eu' where id = 3",
                "update levels set region = 'us', v = null where id = 4",
                "delete from levels where id = 5",
            ),
            ("update levels set v = 'again'", "insert into levels values (300, 'us', 'new')"),
            ("truncate levels", "insert into levels values (1, 'eu', 'after')"),
        ),
    ),
    "inheritance": Odd(
        ("only parent", "only child"),
        "create table parent (id int primary key, v text);"
        "create table child (more int, primary key (id)) inherits (parent);"
        "insert into parent values (1, 'p'), (2, 'p');"
        "insert into child values (1, 'c', 1), (3, 'c', 3)",
        (
            ("update parent set v = v || '!'", "delete from parent where id = 3"),
            ("insert into child values (5, 'c', 5)", "truncate only parent"),
            ("insert into parent values (9, 'p')", "update parent set v = 'last'"),
        ),
    ),
    "a truncate that reaches children and resets sequences": Odd(
        ("only ancestor", "only heirs", "pointing"),
        "create table ancestor (id serial primary key, v text);"
        "create table heirs () inherits (ancestor); alter table heirs replica identity full;"
        "create table pointing (id int primary key references ancestor);"
        "insert into ancestor (v) values ('a'), ('b'); insert into heirs values (10, 'h');"
        "insert into pointing values (1)",
        (
            ("truncate ancestor restart identity cascade", "insert into ancestor (v) values ('c')"),
            ("insert into heirs values (1, 'h'), (1, 'h')", "insert into pointing values (1)"),
        ),
    ),
    "equal names in two schemas": Odd(
        ("public.twin", "apart.twin"),
        "create schema apart; create table public.twin (id int primary key, v text);"
        "create table apart.twin (v int, id text primary key);"
        "insert into public.twin values (1, 'public'); insert into apart.twin values (1, 'apart')",
        (
            ("update public.twin set v = 'p2'", "update apart.twin set v = 2"),
            ("alter table public.twin add n int default 3", "insert into public.twin values (2)"),
            ("insert into apart.twin values (3, 'x')", "truncate public.twin"),
        ),
    ),
    "1,600 columns": Odd(
        ("widest",),
        f"create table widest (id int primary key, {_WIDE});"
        "insert into widest (id, c0, c1598) values (1, 1, 1), (2, null, 2)",
        (
            ("update widest set c700 = 7 where id = 1", "insert into widest (id) values (3)"),
            ("alter table widest rename c5 to c5b", "update widest set c5b = id"),
        ),
    ),
    "nine megabytes in a value": Odd(
        ("heavy",),
        "create table heavy (id int primary key, n int, t text, b bytea);"
        "alter table heavy alter t set storage external, alter b set storage external;"
        "insert into heavy values (1, 0, repeat('snapshot ', 1048576), null)",
        (
            ("insert into heavy values (2, 0, null, decode(repeat('00ff', 4718592), 'hex'))",),
            ("update heavy set n = 1, id = id + 10", "update heavy set t = t || '!' where id = 11"),
        ),
    ),
    "identical rows": Odd(
        ("identical",),
        "create table identical (a int, b text, t text);"
        "alter table identical replica identity full;"
        f"insert into identical select 1, null, '{big(5)}' from generate_series(1, 5)",
        (
            ("delete from identical where ctid = (select min(ctid) from identical)",),
            (
                "update identical set a = 2 where ctid = (select max(ctid) from identical)",
                "update identical set a = 1 where a = 2",
                "insert into identical select * from identical limit 1",
                "delete from identical where ctid in (select ctid from identical limit 2)",
            ),
            ("update identical set b = 'all'", "delete from identical where ctid = '(0,1)'"),
        ),
    ),
}


def steps() -> Iterator[list[tuple[str, ...]]]:
    """The first transactions of all tables, the second ones, and so on."""
    for step in zip_longest(*(odd.transactions for odd in ODD.values()), fillvalue=()):
        yield [transaction for transaction in step if transaction]
