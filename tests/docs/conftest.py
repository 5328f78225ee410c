"""A place where a page can be tried: an empty folder, a database, and a reader's environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from place import Place

from headrace.testing.database import temporary_database
from headrace.testing.postgres import EmbeddedPostgres
from unity_server import unity_server


@pytest.fixture(scope="session")
def docs_server() -> Iterator[EmbeddedPostgres]:
    """A server of the pages' own: they create roles."""
    with EmbeddedPostgres({"max_prepared_transactions": "2"}, fast=True) as server:
        yield server


@pytest.fixture
def place(docs_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Place]:
    with temporary_database(docs_server.dsn()) as database, unity_server() as catalog:
        catalog.schemas.add("main.crm")
        url = docs_server.dsn(database.name)
        lent = {"CATALOG_URL": catalog.url, "CATALOG_TOKEN": catalog.token}
        yield Place(tmp_path, database, {**_environment(docs_server, url), **lent})


def _environment(server: EmbeddedPostgres, url: str) -> dict[str, str]:
    """A reader's: without what steers libpq, Headrace or Python, with psql and headrace."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "HEADRACE_", "PYTHON", "PYTEST"))
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), str(server.bin_dir), kept["PATH"]])
    return {**kept, "PATH": path, "DATABASE_URL": url, "LC_ALL": "C.UTF-8"}
