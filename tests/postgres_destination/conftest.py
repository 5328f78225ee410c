"""A destination for each test, in one database for all: making one takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from target_place import Place, place_in

from headrace.testing.database import Database, temporary_database

SCHEMAS = """
select format('drop schema %I cascade', nspname) from pg_namespace
 where nspname !~ '^pg_' and nspname not in ('information_schema', 'public')
"""
EXTENSIONS = """
select format('drop extension %I cascade', extname) from pg_extension where extname <> 'plpgsql'
"""


@pytest.fixture(scope="session")
def shared_target(server_dsn: str) -> Iterator[Database]:
    with temporary_database(server_dsn) as database:
        yield database


@pytest.fixture
def place(shared_target: Database) -> Iterator[Place]:
    with place_in(shared_target) as place:
        yield place
    for statements in (EXTENSIONS, SCHEMAS):
        for (statement,) in shared_target.execute(statements):
            shared_target.execute(statement)
