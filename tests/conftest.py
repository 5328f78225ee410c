"""Servers that the tests share: one Postgres for the session, one database for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from headrace.testing.database import Database, temporary_database
from headrace.testing.postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """The session's server; who stops, kills or reconfigures one starts an EmbeddedPostgres."""
    with EmbeddedPostgres(fast=True) as server:
        yield server


@pytest.fixture(scope="session")
def server_dsn(request: pytest.FixtureRequest) -> str:
    """A superuser's DSN: HEADRACE_TEST_DSN where set, else the session's own server."""
    given = os.environ.get("HEADRACE_TEST_DSN")
    return given or request.getfixturevalue("postgres_server").dsn()


@pytest.fixture
def database(server_dsn: str) -> Iterator[Database]:
    """A fresh database; dropped afterwards with its slots, whoever still uses them."""
    with temporary_database(server_dsn) as database:
        yield database
