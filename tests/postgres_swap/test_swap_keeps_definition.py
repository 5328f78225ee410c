"""A table that was rebuilt and swapped in is the table that it was: pg_dump cannot tell them apart.

The dump holds the whole database with its rows, so that what hangs on the table, rights and
sequences' positions are compared too, and nothing else may have changed.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator

import psycopg
import pytest
from rebuilding import Rebuilding, dump
from table_features import BASE, FEATURES, FEATURES_BY_VERSION, features

from headrace.model import TableId
from headrace.testing.database import Database

ALL = {**FEATURES, **{k: v for more in FEATURES_BY_VERSION.values() for k, v in more.items()}}
SEEDS = range(4)
AWKWARD = TableId('Shop "of" things', "Orders' Täble " + "x" * 48)  # 63 bytes, the most there are


@pytest.fixture(scope="module")
def roles(server_dsn: str) -> Iterator[dict[str, str]]:
    """Roles of the server; what they own and may do goes with each test's database."""
    names = {role: f"{role}_{os.urandom(4).hex()}" for role in ("owner", "reader", "clerk")}
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute("".join(f"create role {name};" for name in names.values()).encode())
        yield names
        admin.execute("".join(f"drop role {name};" for name in names.values()).encode())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def set_up(database: Database, script: str, roles: dict[str, str]) -> None:
    for role, name in roles.items():
        script = script.replace(f":{role}", name)
    database.execute(script)
    for (schema,) in database.execute("select nspname from pg_namespace where nspname ~* 'shop'"):
        database.execute(f"grant all on schema {_quoted(schema)} to {roles['owner']}")


QUOTED = {
    *("defaults", "serial", "checks", "unique constraints", "indexes", "extended statistics"),
    *("row security", "comments", "triggers", "rules", "foreign keys out of it"),
    *("foreign keys into it", "views", "policies of others", "publications"),
    *("identity by default", "functions with parsed bodies", "grants"),
}
KEY = "id bigint constraint the_pkey primary key"


def version(database: Database) -> int:
    return int(database.execute("show server_version_num")[0][0])


@pytest.mark.parametrize("feature", ALL)
def test_what_a_table_has_survives_a_swap_and_its_undoing(
    database: Database, roles: dict[str, str], feature: str
) -> None:
    if feature not in features(version(database)):
        pytest.skip("this server has no such feature")
    set_up(database, BASE + ALL[feature], roles)
    before = dump(database)
    table = Rebuilding(database)
    reason = table.swappable()
    assert reason is None or "publication" in feature
    oid = database.execute("select 'shop.orders'::regclass::oid")
    table.rebuild()
    assert database.execute("select 'shop.orders'::regclass::oid") != oid
    assert dump(database) == before
    assert table.undo() == ()
    assert database.execute("select 'shop.orders'::regclass::oid") == oid
    assert dump(database) == before


@pytest.mark.parametrize("seed", SEEDS)
def test_any_set_of_features_survives_swaps_and_their_undoing(
    database: Database, roles: dict[str, str], seed: int
) -> None:
    """Two swaps in a row, whose former generation is the latter's, then the undoing of the last."""
    chance = random.Random(seed)
    known = features(version(database))
    chosen = [name for name in known if chance.random() < 0.6]
    identities = [name for name in chosen if name.startswith("replica identity")]
    chosen = [name for name in chosen if name not in identities[1:]]
    chance.shuffle(chosen)
    set_up(database, BASE + "".join(known[name] for name in chosen), roles)
    before = dump(database)
    table = Rebuilding(database)
    table.rebuild(version=1)
    assert dump(database) == before, chosen
    table.rebuild(version=2)
    assert dump(database) == before, chosen
    assert table.undo() == (), chosen
    assert dump(database) == before, chosen


def test_names_that_need_quotes_and_names_of_63_bytes_survive(
    database: Database, roles: dict[str, str]
) -> None:
    """Facts §3.1, bug 1: RENAME takes a bare name, and every name may need quotes."""
    script = BASE + "".join(
        sql for name, sql in features(version(database)).items() if name in QUOTED
    )
    assert len(AWKWARD.name.encode()) == 63
    schema, name = _quoted(AWKWARD.schema), _quoted(AWKWARD.name)
    literal = f"{schema}.{name}".replace("'", "''")
    script = script.replace("'shop.orders'", f"'{literal}'")
    script = re.sub(r"\bshop\.orders\b(?!_)", lambda _: f"{schema}.{name}", script)
    script = re.sub(r"\bshop\b", lambda _: schema, script).replace("orders_pkey", "the_pkey")
    set_up(database, script.replace("id bigint primary key", KEY), roles)
    before = dump(database)
    table = Rebuilding(database, AWKWARD)
    table.rebuild()
    assert dump(database) == before
    assert table.undo() == ()
    assert dump(database) == before
