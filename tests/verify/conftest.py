"""A lake, a database and a project for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.testing.database import Database
from lakeside import Lakeside


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Lakeside:
    return Lakeside(database, tmp_path)
