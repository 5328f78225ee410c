"""Fixtures of the tests of whole pipelines from Delta to Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import failpoints
from headrace.testing.database import Database
from lakeside import Lakeside, Source, people


@pytest.fixture
def lakeside(database: Database, tmp_path: Path) -> Lakeside:
    return Lakeside(database, tmp_path)


@pytest.fixture
def crm(lakeside: Lakeside) -> Source:
    """`crm.people`, eight of them, carried by a pipeline that has caught up once."""
    source = lakeside.source("crm.people")
    source.write(people(*range(1, 9)))
    lakeside.carry("crm.people")
    lakeside.catch_up()
    return source


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    """No failpoint outlives its test."""
    yield
    failpoints.arm("")
