"""Fixtures of the end-to-end tests: a database, and a project that carries its tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Shop

from headrace import failpoints
from headrace.testing.database import Database


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    return Shop(database, tmp_path)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    """No failpoint outlives its test."""
    yield
    failpoints.arm("")
