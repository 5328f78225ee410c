"""Fixtures of the Delta tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from delta_samples import Lake

from headrace import failpoints


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")
