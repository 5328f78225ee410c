"""Fixtures of the Delta tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from delta_samples import Lake

from headrace import failpoints

# The change log's tests own the S3 server; theirs is a conftest, which no test can import by name.
_spec = importlib.util.spec_from_file_location(
    "log_fixtures", Path(__file__).parents[1] / "log" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_log_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_log_fixtures)
s3_endpoint = _log_fixtures.s3_endpoint


@pytest.fixture
def s3_options(s3_endpoint: str) -> dict[str, str]:
    options: dict[str, str] = _log_fixtures.s3_options(s3_endpoint)
    return options


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")
