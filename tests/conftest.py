"""Servers that the tests share: one Postgres for the session, one database for each test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest

from headrace.errors import HeadraceError
from headrace.testing.builds import BUILDS, build_bin_dir
from headrace.testing.certificates import Certificates, make_certificates
from headrace.testing.database import Database, temporary_database
from headrace.testing.postgres import BINARIES, EmbeddedPostgres, major_version, server_bin_dir
from s3_server import s3_options as options_of
from s3_server import s3_server

CACHE = Path(__file__).parents[1] / ".cache" / "postgres"  # ignored by git
NEWEST = 18  # the version of the session's own server, unless another one is chosen
TWO_PHASE = {"max_prepared_transactions": "8"}

Servers = Callable[[int], EmbeddedPostgres]
Obtained = TypeVar("Obtained")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test marked `versions` runs on the session's server, and on each version before it.

    `newest=False` is for a test of which the session's server has a more thorough one.
    """
    versions = metafunc.definition.get_closest_marker("versions")
    if versions is None:
        return
    since = metafunc.definition.get_closest_marker("since")
    oldest = since.args[0] if since else min(BUILDS)
    one_version_only = {"HEADRACE_TEST_DSN", BINARIES} & set(os.environ)
    others = [] if one_version_only else [v for v in BUILDS if oldest <= v < NEWEST]
    newest = [None] if versions.kwargs.get("newest", True) else []
    metafunc.parametrize("postgres_version", newest + others, ids=lambda v: str(v or "newest"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each worker's share begins with what is slow, else all would wait for one of them; what has
    a time limit of its own is the slowest.

    All else stays in its order: a module's tests are together, and its fixtures are made once.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    slow.sort(key=lambda item: item.get_closest_marker("timeout") is None)
    rest = [item for item in items if not item.get_closest_marker("slow")]
    size = -(-len(rest) // workers)
    items[:] = [
        item
        for share in range(workers)
        for item in (*slow[share::workers], *rest[share * size : (share + 1) * size])
    ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `since` is skipped where its server is older, whoever starts that."""
    since = item.get_closest_marker("since")
    if since is None:
        return
    drawn = getattr(item, "callspec", None)  # where there are parameters
    version = drawn and drawn.params.get("postgres_version")
    if (version or session_version()) < since.args[0]:
        pytest.skip(f"Postgres {since.args[0]} and newer only")


@cache
def session_version() -> int:
    """The major version of the session's server."""
    given = os.environ.get("HEADRACE_TEST_DSN")
    if given is None:
        return major_version(server_bin_dir())
    with psycopg.connect(given) as session:
        return session.info.server_version // 10000


@pytest.fixture
def postgres_version() -> int | None:
    """The major version that the test's database is of; None is the session's own server."""
    return None


def obtained(obtain: Callable[[], Obtained]) -> Obtained:
    """What a machine may have no way to: its tests are skipped there, but never in CI."""
    try:
        return obtain()
    except HeadraceError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def downloaded(version: int) -> Path:
    """The binaries of a version; its tests are skipped offline."""
    return obtained(lambda: build_bin_dir(version, CACHE))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """The session's server; who stops, kills or reconfigures one starts an EmbeddedPostgres."""
    with EmbeddedPostgres(TWO_PHASE, fast=True) as server:
        yield server


@pytest.fixture(scope="session")
def older_servers() -> Iterator[Servers]:
    """Gives the session's server of a major version, started when first asked for."""
    with ExitStack() as running:

        @cache
        def server(version: int) -> EmbeddedPostgres:
            bin_dir = downloaded(version)
            return running.enter_context(EmbeddedPostgres(TWO_PHASE, fast=True, bin_dir=bin_dir))

        yield server


@pytest.fixture(scope="session")
def server_dsn(request: pytest.FixtureRequest) -> str:
    """A superuser's DSN: HEADRACE_TEST_DSN where set, else the session's own server."""
    given = os.environ.get("HEADRACE_TEST_DSN")
    return given or request.getfixturevalue("postgres_server").dsn()


@pytest.fixture
def database(
    server_dsn: str,
    postgres_version: int | None,
    older_servers: Servers,
) -> Iterator[Database]:
    """A fresh database; dropped afterwards with its slots, whoever still uses them."""
    dsn = older_servers(postgres_version).dsn() if postgres_version else server_dsn
    with temporary_database(dsn) as database:
        yield database


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, and a server certificate for localhost."""
    folder = tmp_path_factory.mktemp("certificates")
    return obtained(lambda: make_certificates(folder))


@pytest.fixture(scope="session")
def tls_server(certificates: Certificates) -> Iterator[EmbeddedPostgres]:
    """A server that takes TCP connections with TLS only; its tests are skipped offline."""
    with EmbeddedPostgres(
        {"ssl": "on"},
        fast=True,
        bin_dir=downloaded(18),
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
