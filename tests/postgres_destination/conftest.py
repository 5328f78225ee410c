"""A destination for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from target_place import Place, place_in

from headrace.testing.database import Database


@pytest.fixture
def place(database: Database) -> Iterator[Place]:
    with place_in(database) as place:
        yield place
