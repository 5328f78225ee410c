"""The storages that every test of the change log runs on: a local disk and a real S3 server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import failpoints
from headrace.log import Storage, open_storage

_prefixes = itertools.count()


@pytest.fixture
def s3_storage(s3_options: dict[str, str]) -> Storage:
    """A prefix of its own in the one bucket: each bucket costs SeaweedFS volumes."""
    return open_storage(f"s3://bucket/test{next(_prefixes)}", s3_options)


@pytest.fixture
def local_storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "state")


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest) -> Storage:
    found: Storage = request.getfixturevalue(f"{request.param}_storage")
    return found


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    """No failpoint outlives its test."""
    yield
    failpoints.arm("")
