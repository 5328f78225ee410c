"""What becomes of a slot behind the back of a run: told when the run comes back, never skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict
from shop import Shop

import headrace
from headrace.engine.capture import Capture
from headrace.engine.runner import RunView
from headrace.errors import CheckFailedError, SlotLostError, SourceUnavailableError
from headrace.testing.database import Database, temporary_database
from headrace.testing.postgres import EmbeddedPostgres
from live_run import LiveRun
from proxy import Proxy
from replicated import SLOT, assert_equal, write_project

MIB = 1 << 20
SLOT_ROW = "from pg_replication_slots where slot_name = %s"


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    given = conninfo_to_dict(database.dsn)
    with Proxy((str(given["host"]), int(given["port"]))) as proxy:
        yield proxy


def far_shop(database: Database, proxy: Proxy, folder: Path) -> Shop:
    """A source whose run sees it through the proxy, and gives it up after two seconds."""
    database.execute("create table customers (id int primary key)")
    write_project(folder, database.dsn, host="127.0.0.1", port=proxy.port, connection_timeout="2s")
    return Shop(database, folder)


def advance(database: Database) -> None:
    move = "select pg_replication_slot_advance(%s, pg_current_wal_lsn())"
    database.execute(move, [SLOT])


def recreate(database: Database) -> None:
    database.execute("select pg_drop_replication_slot(%s)", [SLOT])
    database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [SLOT])


@pytest.mark.parametrize("meddle", [advance, recreate])
def test_invariant_12_a_slot_that_is_moved_while_a_run_is_cut_off_is_told(
    database: Database, proxy: Proxy, tmp_path: Path, meddle: Callable[[Database], None]
) -> None:
    shop = far_shop(database, proxy, tmp_path)
    with LiveRun(shop.project) as run:
        run.catch_up(database)
        proxy.swallow()
        run.wait_for_error(SourceUnavailableError)
        while database.execute(
            f"select pg_terminate_backend(active_pid) {SLOT_ROW} and active", [SLOT]
        ):
            pass  # the walsender takes its time to end
        database.execute("insert into customers values (-1)")
        meddle(database)
        proxy.heal()
        error = run.failure()
    assert isinstance(error, SlotLostError)
    assert "somebody else advanced or recreated it" in error.message
    assert "headrace destroy" in error.hint


@pytest.fixture
def forgetful_database() -> Iterator[Database]:
    """Of a server that keeps next to no WAL for slots."""
    with EmbeddedPostgres({"max_slot_wal_keep_size": "1MB"}, fast=True) as server:
        yield Database("postgres", server.dsn())


def test_invariant_12_a_slot_that_is_invalidated_in_use_is_told_and_repaired_from(
    forgetful_database: Database, tmp_path: Path
) -> None:
    """The server ends the walsender with the words that it has for an administrator's wish."""
    database = forgetful_database
    given = conninfo_to_dict(database.dsn)
    with Proxy((str(given["host"]), int(given["port"]))) as proxy:
        shop = far_shop(database, proxy, tmp_path)
        with LiveRun(shop.project) as run:
            run.catch_up(database)
            proxy.swallow()
            while not database.execute(f"select 1 {SLOT_ROW} and wal_status = 'lost'", [SLOT]):
                database.execute("create table x (); drop table x")
                database.execute("select pg_switch_wal()")
                database.execute("checkpoint")
            database.execute("insert into customers values (-1)")
            proxy.heal()
            error = run.failure()
        assert isinstance(error, SlotLostError)
        assert "is lost" in error.message
        allow_repair(shop)
        assert headrace.load(shop.project).run(once=True) == []
    assert_equal(database, shop.folder, ["customers"])


def allow_repair(shop: Shop) -> None:
    settings = yaml.safe_load(shop.project.read_text())
    settings["pipelines"]["shop_to_lake"]["auto_refresh"] = {"on": ["log_lost"]}
    shop.project.write_text(yaml.safe_dump(settings))


def test_a_run_whose_slot_is_dropped_goes_on_from_a_comparison_where_that_is_allowed(
    database: Database, tmp_path: Path
) -> None:
    database.execute("create table customers (id int primary key)")
    shop = Shop(database, tmp_path)
    write_project(tmp_path, database.dsn)
    allow_repair(shop)
    end_and_drop = f"select pg_terminate_backend(active_pid) {SLOT_ROW}"
    with LiveRun(shop.project) as run:
        run.catch_up(database)
        captures: list[Capture] = []
        run.wait_for(lambda view: captures.append(view.capture) or True)
        with database.connect() as session:
            while True:
                session.execute(end_and_drop, [SLOT])
                try:
                    session.execute("select pg_drop_replication_slot(%s)", [SLOT])
                    break
                except psycopg.errors.ObjectInUse:  # the run was quicker
                    continue
        database.execute("insert into customers values (-1)")
        run.wait_for(lambda view: view.capture not in captures)
        run.catch_up(database)
        database.execute("insert into customers values (-2)")
        run.catch_up(database)
    assert_equal(database, tmp_path, ["customers"])


@pytest.mark.since(18)
@pytest.mark.usefixtures("database")  # which tells the version
def test_invariant_12_a_slot_that_was_idle_for_too_long_is_told_and_repaired_from(
    tmp_path: Path,
) -> None:
    """`idle_replication_slot_timeout` came with 18, and leaves restart_lsn where it was."""
    with EmbeddedPostgres({"idle_replication_slot_timeout": "1s"}, fast=True) as server:
        database = Database("postgres", server.dsn())
        database.execute("create table customers (id int primary key)")
        shop = Shop(database, tmp_path)
        write_project(tmp_path, database.dsn)
        assert headrace.load(shop.project).run(once=True) == []
        while not database.execute(f"select 1 {SLOT_ROW} and wal_status = 'lost'", [SLOT]):
            database.execute("checkpoint")
            database.execute("select pg_sleep(0.1)")
        database.execute("insert into customers values (-1)")
        with pytest.raises(CheckFailedError, match="is lost: changes since") as told:
            headrace.load(shop.project).run(once=True)
        assert "idle_timeout" in str(told.value.context["findings"])
        allow_repair(shop)
        assert headrace.load(shop.project).run(once=True) == []
        assert_equal(database, tmp_path, ["customers"])


LAG = f"select pg_wal_lsn_diff(%s, confirmed_flush_lsn) {SLOT_ROW}"
NOISE = "create table noise as select repeat('x', 100) from generate_series(1, 20000)"


def test_an_idle_databases_slot_moves_on_with_what_others_write(
    database: Database, server_dsn: str, tmp_path: Path
) -> None:
    """By what was skipped alone: the interval after which any position is recorded never comes."""
    database.execute("create table quiet (id int primary key)")
    write_project(tmp_path, database.dsn)
    with temporary_database(server_dsn) as busy, LiveRun(tmp_path / "headrace.yaml") as run:
        run.catch_up(database)

        def patient(view: RunView) -> bool:
            view.capture.policy = replace(view.capture.policy, progress_interval=math.inf)
            return True

        run.wait_for(patient)
        for _ in range(3):
            ((end,),) = busy.execute(f"{NOISE}; drop table noise; select pg_current_wal_lsn()")
            run.wait_for(lambda _, end=end: database.execute(LAG, [end, SLOT])[0][0] < MIB)
