"""Servers that the tests share: one Postgres for the session, one database for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.testing.builds import build_bin_dir
from headrace.testing.certificates import Certificates, make_certificates
from headrace.testing.database import Database, temporary_database
from headrace.testing.postgres import EmbeddedPostgres
from s3_server import s3_options as options_of
from s3_server import s3_server

CACHE = Path(__file__).parents[1] / ".cache"  # ignored by git


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """The session's server; who stops, kills or reconfigures one starts an EmbeddedPostgres."""
    with EmbeddedPostgres(fast=True) as server:
        yield server


@pytest.fixture(scope="session")
def server_dsn(request: pytest.FixtureRequest) -> str:
    """A superuser's DSN: HEADRACE_TEST_DSN where set, else the session's own server."""
    given = os.environ.get("HEADRACE_TEST_DSN")
    return given or request.getfixturevalue("postgres_server").dsn()


@pytest.fixture
def database(server_dsn: str) -> Iterator[Database]:
    """A fresh database; dropped afterwards with its slots, whoever still uses them."""
    with temporary_database(server_dsn) as database:
        yield database


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, and a server certificate for localhost."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def tls_server(certificates: Certificates) -> Iterator[EmbeddedPostgres]:
    """A server that takes TCP connections with TLS only; skipped offline, but never in CI."""
    try:
        bin_dir = build_bin_dir(18, CACHE / "postgres")
    except HeadraceError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with EmbeddedPostgres(
        {"ssl": "on"},
        fast=True,
        bin_dir=bin_dir,
        files=certificates.files,
        hba=["local all all scram-sha-256", "hostssl all all all scram-sha-256"],
    ) as server:
        yield server


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server with a bucket called `bucket`; one for the session."""
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def s3_options(s3_endpoint: str) -> dict[str, str]:
    """What clients of that server must be told."""
    return options_of(s3_endpoint)
