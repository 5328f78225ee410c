"""A source, a destination and a project for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mirror import Mirror

from headrace import failpoints
from headrace.testing.database import Database, temporary_database


@pytest.fixture
def target(server_dsn: str) -> Iterator[Database]:
    """Another database of the same server."""
    with temporary_database(server_dsn) as database:
        yield database


@pytest.fixture
def mirror(database: Database, target: Database, tmp_path: Path) -> Mirror:
    return Mirror(database, target, tmp_path)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    """No failpoint outlives its test."""
    yield
    failpoints.arm("")
