"""Fixtures of the tests of what nobody thinks of until it happens, on whole pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.testing.database import Database
from lakeside import Lakeside, Source, people


@pytest.fixture
def lakeside(database: Database, tmp_path: Path) -> Lakeside:
    return Lakeside(database, tmp_path)


@pytest.fixture
def crm(lakeside: Lakeside) -> Source:
    """`crm.people`, three of them, carried by a pipeline that has caught up once."""
    source = lakeside.source("crm.people")
    source.write(people(1, 2, 3))
    lakeside.carry("crm.people")
    lakeside.catch_up()
    return source
