"""The source goes away under load: killed, stopped, cut off, silent. Nothing is lost, nor twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from shop import SEED, Shop

import headrace
from headrace import config
from headrace.connectors.postgres.config import PostgresConnection, session
from headrace.errors import SourceUnavailableError
from headrace.testing.database import Database
from headrace.testing.postgres import EmbeddedPostgres
from live_run import LiveRun
from proxy import Proxy
from replicated import (
    SLOT,
    acknowledged_lsn,
    assert_acknowledged_is_durable,
    assert_equal,
    write_project,
)
from workload import Load, create_tables


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server that the test may kill."""
    with EmbeddedPostgres(fast=True) as server:
        yield server


@pytest.fixture
def own_shop(server: EmbeddedPostgres, tmp_path: Path) -> Shop:
    database = Database("postgres", server.dsn())
    create_tables(database, SEED)
    write_project(tmp_path, database.dsn)
    return Shop(database, tmp_path)


def test_invariant_3_a_server_killed_under_load_is_followed_again_when_it_is_back(
    server: EmbeddedPostgres, own_shop: Shop
) -> None:
    with LiveRun(own_shop.project) as run:
        with Load(own_shop.database, SEED) as load:
            load.wait_for(30)
            run.catch_up(own_shop.database)
            server.kill()
        run.wait_for_error(SourceUnavailableError)
        server.start()
        with Load(own_shop.database, SEED + 1) as load:
            load.wait_for(30)
        run.catch_up(own_shop.database)
    assert_equal(own_shop.database, own_shop.folder)


def test_a_server_can_be_stopped_while_we_are_connected_and_has_sent_us_everything(
    server: EmbeddedPostgres, own_shop: Shop
) -> None:
    """A fast stop waits until the walsender's client has acknowledged all WAL; `stop` gives up
    after a while, which would fail this test."""
    with LiveRun(own_shop.project) as run:
        with Load(own_shop.database, SEED) as load:
            run.wait_for(lambda view: view.capture.progress.connected)
            load.wait_for(30)
            server.stop("fast")
        run.wait_for_error(SourceUnavailableError)
        server.start()
        with Load(own_shop.database, SEED + 1) as load:
            load.wait_for(10)
        run.catch_up(own_shop.database)
    assert_acknowledged_is_durable(own_shop.database, own_shop.folder)
    assert_equal(own_shop.database, own_shop.folder)


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    given = conninfo_to_dict(database.dsn)
    with Proxy((str(given["host"]), int(given["port"]))) as proxy:
        yield proxy


@pytest.fixture
def remote_shop(shop: Shop, proxy: Proxy) -> Shop:
    """The shop as seen through the proxy; the test's own connections do not pass it."""
    write_project(shop.folder, shop.database.dsn, host="127.0.0.1", port=proxy.port)
    return shop


def test_invariant_3_connections_cut_again_and_again_under_load_lose_nothing(
    remote_shop: Shop, proxy: Proxy
) -> None:
    with LiveRun(remote_shop.project) as run, Load(remote_shop.database, SEED) as load:
        for _ in range(4):
            run.wait_for(lambda view: view.capture.progress.connected)
            load.wait_for(10)
            proxy.cut()
            run.wait_for(lambda view: not view.capture.progress.connected)
        load.wait_for(10)
        run.catch_up(remote_shop.database)
    assert run.errors
    assert headrace.load(remote_shop.project).run(once=True) == []
    assert_equal(remote_shop.database, remote_shop.folder)


def test_invariant_7_a_snapshot_that_is_cut_is_taken_anew_beside_the_stream(
    remote_shop: Shop, proxy: Proxy
) -> None:
    bulk = "create table bulk as select g as id, repeat('x', 200) as filler"
    remote_shop.database.execute(f"{bulk} from generate_series(1, 40000) g")
    remote_shop.database.execute("alter table bulk add primary key (id)")
    proxy.cut_after(3_000_000)  # of eight million bytes
    with LiveRun(remote_shop.project) as run, Load(remote_shop.database, SEED) as load:
        load.wait_for(10)
        run.catch_up(remote_shop.database)
        run.wait_for(lambda view: all(p.done for p in view.copier.progress.values()))
        run.catch_up(remote_shop.database)
    assert proxy.cuts == 1
    assert headrace.load(remote_shop.project).run(once=True) == []
    assert_equal(remote_shop.database, remote_shop.folder)
    assert_equal(remote_shop.database, remote_shop.folder, ["bulk"])


@pytest.mark.slow
def test_invariant_13_a_connection_that_falls_silent_is_noticed_and_replaced(
    remote_shop: Shop, proxy: Proxy
) -> None:
    with LiveRun(remote_shop.project) as run:
        with Load(remote_shop.database, SEED) as load:
            load.wait_for(10)
            run.catch_up(remote_shop.database)
            proxy.swallow()
            load.wait_for(10)
        error = run.wait_for_error(SourceUnavailableError)
        assert "has not answered" in error.message
        proxy.heal()
        run.catch_up(remote_shop.database)
    assert_equal(remote_shop.database, remote_shop.folder)


def test_invariant_13_a_look_at_the_catalog_that_something_on_the_way_swallows_comes_to_an_end(
    remote_shop: Shop, proxy: Proxy
) -> None:
    """The proxy acknowledges what it swallows: TCP's own timeouts see nothing wrong."""
    settings = config.load(remote_shop.project).connections["shop"]
    assert isinstance(settings, PostgresConnection)
    quick = settings.model_copy(update={"connection_timeout": 2.0})
    with session(quick, prompt=True) as ours:
        assert ours.execute("select pg_sleep(0.1), 1").fetchone() is not None
        proxy.swallow()
        with pytest.raises(psycopg.OperationalError, match="no answer for 2 s"):
            ours.execute("select 1")
    proxy.heal()
    with session(quick, prompt=True) as ours:
        assert ours.execute("select 1").fetchone() == (1,)


def test_a_walsender_that_an_administrator_terminates_is_replaced(shop: Shop) -> None:
    terminate = "select pg_terminate_backend(active_pid) from pg_replication_slots"
    with LiveRun(shop.project) as run, Load(shop.database, SEED) as load:
        run.wait_for(lambda view: view.capture.progress.connected)
        load.wait_for(10)
        assert shop.database.execute(f"{terminate} where slot_name = %s", [SLOT]) == [(True,)]
        run.wait_for_error(SourceUnavailableError)
        load.wait_for(10)
        run.catch_up(shop.database)
    assert headrace.load(shop.project).run(once=True) == []
    assert_equal(shop.database, shop.folder)
    assert acknowledged_lsn(shop.database) is not None
