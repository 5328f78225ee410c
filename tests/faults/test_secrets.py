"""Invariant 14: whatever goes wrong, a password is in no error, log line, status or file."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from shop import SEED, Shop

import headrace
from headrace.errors import HeadraceError, SlotLostError, SourceUnavailableError
from live_run import LiveRun
from proxy import Proxy
from replicated import SLOT, assert_equal, write_project
from workload import Load

PASSWORD = "pä ss'w\"o\\rd%40-s3cr3t"
SPELLINGS = (PASSWORD, "s3cr3t")  # quoted or encoded, this much of it stays


@pytest.fixture
def secret_shop(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The shop, reached as a role whose password is to be looked for."""
    with shop.database.connect() as session:
        literal = PASSWORD.replace("'", "''")
        session.execute("drop role if exists keeper")
        session.execute(f"create role keeper superuser login password '{literal}'".encode())
        monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
        write_project(shop.folder, shop.database.dsn, user="keeper", password="${SHOP_PASSWORD}")
        yield shop
        session.execute("drop owned by keeper; drop role keeper")


def whole(error: BaseException) -> str:
    """All that anyone can print of an error, and what caused it."""
    text = "".join(traceback.format_exception(error)) + repr(error)
    return text + repr(getattr(error, "context", "")) + repr(getattr(error, "hint", ""))


def assert_secret(text: str) -> None:
    for spelling in SPELLINGS:
        assert spelling not in text


def assert_nothing_told(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Neither logged, nor in a file of state or lake, nor in the answers of a project."""
    assert_secret(caplog.text)
    for path in (shop.folder / "state", shop.folder / "lake"):
        for file in path.rglob("*"):
            if file.is_file():
                assert b"s3cr3t" not in file.read_bytes(), file
    project = headrace.load(shop.project)
    assert_secret(repr(project.settings) + str(project.settings) + repr(project.status()))
    assert_secret(project.settings.model_dump_json())


def test_invariant_14_a_run_and_its_end_tell_no_password(
    secret_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with LiveRun(secret_shop.project) as run:
        with Load(secret_shop.database, SEED) as load:
            load.wait_for(5)
        run.catch_up(secret_shop.database)
        secret_shop.database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'keeper'"
        )
        met = run.wait_for_error(SourceUnavailableError)
        run.catch_up(secret_shop.database)
    assert_secret(whole(met))
    assert_equal(secret_shop.database, secret_shop.folder)
    project = headrace.load(secret_shop.project)
    assert_secret(repr(project.check()) + repr(project.plan()))
    assert_nothing_told(secret_shop, caplog)
    secret_shop.database.execute("select pg_drop_replication_slot(%s)", [SLOT])
    with pytest.raises(SlotLostError) as lost:
        project.run(once=True)
    assert_secret(whole(lost.value))
    assert_nothing_told(secret_shop, caplog)


def wrong_password(shop: Shop) -> dict[str, Any]:
    shop.database.execute("alter role keeper password 'another'")
    return {}


def no_such_database(shop: Shop) -> dict[str, Any]:
    return {"database": "nowhere"}


def no_such_host(shop: Shop) -> dict[str, Any]:
    return {"host": "no-such-host.invalid"}


def no_tls(shop: Shop) -> dict[str, Any]:
    return {"sslmode": "require"}


def nobody_listens(shop: Shop) -> dict[str, Any]:
    with Proxy(("127.0.0.1", 1)) as proxy:
        return {"port": proxy.port}


def not_a_replication_role(shop: Shop) -> dict[str, Any]:
    shop.database.execute("alter role keeper nosuperuser")
    return {}


@pytest.mark.parametrize(
    "spoil",
    [
        wrong_password,
        no_such_database,
        no_such_host,
        no_tls,
        nobody_listens,
        not_a_replication_role,
    ],
)
@pytest.mark.parametrize("ran_before", [False, True], ids=["first", "later"])
def test_invariant_14_a_connection_that_is_refused_tells_no_password(
    secret_shop: Shop,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Shop], dict[str, Any]],
    ran_before: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    if ran_before:
        assert headrace.load(secret_shop.project).run(once=True) == []
    write_project(
        secret_shop.folder,
        secret_shop.database.dsn,
        **{"user": "keeper", "password": "${SHOP_PASSWORD}", **spoil(secret_shop)},
    )
    with pytest.raises(HeadraceError) as refused:
        headrace.load(secret_shop.project).run(once=True)
    assert refused.value.hint
    assert_secret(whole(refused.value))
    assert_nothing_told(secret_shop, caplog)


def test_invariant_14_a_url_tells_no_password_even_where_it_is_wrong(
    secret_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    given = conninfo_to_dict(secret_shop.database.dsn)
    url = f"postgresql://keeper:s3cr3t@127.0.0.1:{given['port']}/{given['dbname']}"
    text = secret_shop.project.read_text()
    for wrong in (url, url.replace("postgresql://", "postgres//"), url + "?nonsense=1", url + ":x"):
        rewrite(secret_shop.project, text, wrong)
        with pytest.raises(HeadraceError) as refused:
            headrace.load(secret_shop.project).run(once=True)
        assert_secret(whole(refused.value).replace(str(secret_shop.project), ""))
    assert_secret(caplog.text)


def rewrite(project: Path, text: str, url: str) -> None:
    """Put a url in place of the connection's parts."""
    head, _, rest = text.partition("  shop:\n")
    _, _, tail = rest.partition("pipelines:")
    project.write_text(f"{head}  shop: {{type: postgres, url: '{url}'}}\npipelines:{tail}")
