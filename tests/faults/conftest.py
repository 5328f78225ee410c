"""A source with the workload's tables, and a project that replicates it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import SEED, Shop

from headrace import failpoints
from headrace.testing.database import Database
from replicated import write_project
from workload import create_tables


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    create_tables(database, SEED)
    write_project(tmp_path, database.dsn)
    return Shop(database, tmp_path)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")
