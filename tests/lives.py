"""What a random life of a database is made of: tables, statements and schema changes.

Keys are few, so that they are reused, moved onto each other and violated; values are TOASTed and
left alone by most updates.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from hypothesis import strategies as st

from headrace.testing.database import Database
from toast_orders import big

# Each table has columns id, code, n and body; what more makes it the kind it is.
TABLES = {
    "plain": "",
    "whole": "alter table whole replica identity full",
    "indexed": "alter table indexed alter code set not null, add unique (code);"
    " alter table indexed replica identity using index indexed_code_key",
    "bag": "alter table bag drop constraint bag_pkey; alter table bag replica identity full",
}
STATEMENTS = (
    "insert into {t} (id, code, n) values ({a}, 'c{a}', {b})",
    "insert into {t} (id, code, n, body) values ({a}, 'c{a}', {b}, '{long}')",
    "insert into {t} (id, code, n) select g, 'c' || g, {b} from generate_series({a}, {a} + 5) g",
    "update {t} set n = n + {b} where id = {a}",
    "update {t} set n = null where id >= {a}",
    "update {t} set body = '{long}' where id = {a}",
    "update {t} set id = {b} where id = {a}",
    "update {t} set id = -id, n = {b} where id > {a}",
    "update {t} set code = code || 'x', n = {b} where id = {a}",
    "update {t} set body = null where id = {b}",
    "delete from {t} where id = {a}",
    "delete from {t} where n = {b}",
    "delete from bag where ctid = (select min(ctid) from bag where n = {b})",
    "truncate {t}",
)
COLUMNS = ("int", "int default {a}", "text default 'd{b}'", "numeric(5,2) default {a}.25")

small = st.integers(1, 12)
names = st.sampled_from(sorted(TABLES))
statements = st.tuples(st.sampled_from(STATEMENTS), names, small, small)
transactions = st.tuples(st.lists(statements, min_size=1, max_size=6), st.booleans())

Transaction = tuple[Sequence[tuple[str, str, int, int]], bool]


def create_tables(database: Database) -> None:
    """The tables, with six rows in each."""
    for name, more in TABLES.items():
        database.execute(f"create table {name} (id int primary key, code text, n int, body text)")
        database.execute(
            f"insert into {name} select g, 'c' || g, g, null from generate_series(1, 6) g"
        )
        if more:
            database.execute(more)


def transact(database: Database, transaction: Transaction) -> None:
    """One transaction; a statement that violates a key is undone by itself."""
    statements, commits = transaction
    with psycopg.connect(database.dsn) as connection:
        connection.execute("select 1")  # begins, so that what follows are savepoints
        for text, name, a, b in statements:
            query = text.format(t=name, a=a, b=b, long=big(a + 100 * b))
            try:
                with connection.transaction():
                    connection.execute(query.encode())
            except psycopg.IntegrityError:
                continue
        connection.commit() if commits else connection.rollback()
