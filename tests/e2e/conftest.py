"""Fixtures of the end-to-end tests: a database, and a project that carries its tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import busy
import pytest
from harness import Shop

from headrace import failpoints
from headrace.connectors.postgres import snapshot
from headrace.testing.database import Database


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    return Shop(database, tmp_path)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    """No failpoint outlives its test."""
    yield
    failpoints.arm("")


@pytest.fixture
def busy_shop(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Tables of many chunks, for `busy.writing` to change."""
    monkeypatch.setattr(snapshot, "MIN_CHUNK_PAGES", 20)
    monkeypatch.setattr(snapshot, "MAX_CHUNK_PAGES", 20)
    busy.fill(shop)
    return shop
