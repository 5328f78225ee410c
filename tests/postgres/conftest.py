"""Fixtures of the Postgres connector's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typed_columns import Reader, typed_columns

from headrace.testing.database import temporary_database


@pytest.fixture(scope="session")
def columns(server_dsn: str) -> Iterator[Reader]:
    """One database for all columns that the type tests make."""
    with temporary_database(server_dsn) as database, typed_columns(database.dsn) as reader:
        yield reader
