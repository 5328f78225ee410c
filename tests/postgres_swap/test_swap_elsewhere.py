"""Swaps where things are not as on a developer's own new server: an old one, few rights, no log."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from rebuilding import Rebuilding, dump, temporary_role
from table_features import BASE, FEATURES

from headrace.connectors.postgres import building
from headrace.errors import UnswappableError
from headrace.testing.database import Database, temporary_database
from headrace.testing.postgres import EmbeddedPostgres

ONE_OF_A_KIND = ("replica identity nothing", "replica identity full", "publications")


def test_on_the_oldest_server_everything_survives(
    older_servers: Callable[[int], EmbeddedPostgres],
) -> None:
    chosen = [script for name, script in FEATURES.items() if name not in ONE_OF_A_KIND]
    with temporary_database(older_servers(13).dsn()) as database:
        database.execute("create role owner; create role reader; create role clerk")
        script = BASE + "grant all on schema shop to owner;" + "".join(chosen)
        for role in ("owner", "reader", "clerk"):
            script = script.replace(f":{role}", role)
        database.execute(script)
        table = Rebuilding(database)
        assert table.swappable() is None
        before = dump(database)
        table.rebuild()
        assert dump(database) == before
        assert table.undo() == ()
        assert dump(database) == before


def test_a_role_without_superpowers_swaps_its_own_table(database: Database) -> None:
    """It may make schemas; a table's owner is a role whose member it is."""
    with (
        temporary_role(database) as owner,
        temporary_role(database) as reader,
        temporary_role(database, f"login password 'x' in role {owner}") as role,
    ):
        database.execute(
            BASE + f"grant create on database {database.name} to {role};"
            f"grant all on schema shop to {owner}; grant usage on schema shop to {reader};"
            "create view shop.ids as select id from shop.orders;"
            f"alter table shop.orders owner to {owner}; alter view shop.ids owner to {owner};"
            f"grant select on shop.orders to {reader} with grant option;"
            "comment on table shop.orders is 'theirs';"
            "alter table shop.orders enable row level security;"
            f"create policy all_rows on shop.orders to {owner} using (true)"
        )
        before = dump(database)
        table = Rebuilding(Database(database.name, f"{database.dsn} user={role} password=x"))
        assert table.swappable() is None
        table.rebuild()
        assert dump(database) == before
        table.undo()
        assert dump(database) == before


def test_default_privileges_give_nobody_more_than_he_had(database: Database) -> None:
    with temporary_role(database) as reader:
        database.execute(
            BASE + f"alter default privileges grant select on tables to {reader};"
            f"alter default privileges in schema shop grant all on tables to {reader}"
        )
        before = dump(database)
        table = Rebuilding(database)
        table.rebuild()
        assert dump(database) == before
        table.undo()
        assert dump(database) == before


def test_tables_and_indexes_stay_in_their_tablespaces(database: Database) -> None:
    space = f"space_{os.urandom(4).hex()}"
    with database.connect() as session:
        session.execute("set allow_in_place_tablespaces = on")
        session.execute(f"create tablespace {space} location ''")
        try:
            session.execute(BASE.encode())
            session.execute(
                f"alter table shop.orders set tablespace {space}; create index elsewhere on "
                f"shop.orders (qty) tablespace {space}; create index here on shop.orders (region); "
                f"alter table shop.orders add constraint twice unique (id, code) using index "
                f"tablespace {space}"
            )
            before = dump(database)
            table = Rebuilding(database)
            table.rebuild()
            assert dump(database) == before
            table.undo()
            assert dump(database) == before
        finally:
            session.execute("drop schema shop cascade; drop schema headrace_work cascade")
            session.execute(f"drop tablespace {space}")


def test_what_is_live_survives_a_crash_of_the_server() -> None:
    """The new generation is logged; an unlogged live table stays what it was."""
    with EmbeddedPostgres() as server:
        database = Database("postgres", server.dsn())
        database.execute(BASE)
        Rebuilding(database).rebuild()
        server.kill()
        server.start()
        assert database.execute("select count(*) from shop.orders") == [(40,)]
        database.execute("alter table shop.orders set unlogged")
        Rebuilding(database).rebuild()
        persistence = "select relpersistence from pg_class where oid = 'shop.orders'::regclass"
        assert database.execute(persistence) == [("u",)]


def test_a_security_label_is_not_lost(database: Database) -> None:
    """Without its provider nobody can set it: the swap fails rather than lose it."""
    database.execute(BASE)
    database.execute(
        "set allow_system_table_mods = on; insert into pg_seclabel values "
        "('shop.orders'::regclass, 'pg_class'::regclass, 0, 'missing', 'secret')"
    )
    table = Rebuilding(database)
    built = table.build()
    with pytest.raises(UnswappableError, match="security label provider"):
        table.swap(built)
    label = "select label from pg_seclabel where objoid = 'shop.orders'::regclass"
    assert database.execute(label) == [("secret",)]
    with database.connect() as connection:
        building.discard(connection, built.build)
