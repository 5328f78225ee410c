"""Standbys: one that is read from, one that takes its primary's place, one that lacks changes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import yaml
from shop import Shop

import headrace
from headrace.connectors.postgres.slot_state import interruption, slot_state
from headrace.engine.runner import RunView
from headrace.errors import CheckFailedError, SlotLostError
from headrace.model.finding import Severity
from headrace.testing.database import Database
from headrace.testing.postgres import EmbeddedPostgres
from live_run import LiveRun
from replicated import PUBLICATION, assert_equal, write_project
from standby import Standby

pytestmark = pytest.mark.since(16)  # before, a standby has no logical slots

TABLE = "create table people (id int primary key, name text)"
PUBLISH = f"create publication {PUBLICATION} for table people"
# Waits until our slot has confirmed an LSN.
PASSED = """
do $$ begin
  while exists (select from pg_replication_slots
                 where slot_type = 'logical' and confirmed_flush_lsn < '{}') loop
    perform pg_sleep(0.01);
  end loop;
end $$
"""
SYNCHRONIZED = "select 1 from pg_replication_slots where synced and not temporary"


@pytest.fixture
def primary() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(fast=True) as server:
        Database("postgres", server.dsn()).execute(TABLE)
        yield server


@pytest.fixture
def standby(primary: EmbeddedPostgres) -> Iterator[Standby]:
    with Standby(primary) as server:
        yield server


def shop_of(server: EmbeddedPostgres, folder: Path) -> Shop:
    """The project of `folder`, which reads from `server` from now on."""
    write_project(folder, server.dsn())
    return Shop(Database("postgres", server.dsn()), folder)


def replayed(standby: Standby, primary: EmbeddedPostgres) -> None:
    """Wait until the standby has all that its primary has."""
    with psycopg.connect(primary.dsn(), autocommit=True) as session:
        row = session.execute("select pg_current_wal_insert_lsn()").fetchone()
    with psycopg.connect(standby.dsn(), autocommit=True) as session:
        while not session.execute("select pg_last_wal_replay_lsn() >= %s", row).fetchall()[0][0]:
            session.execute("select pg_sleep(0.01)")


def test_a_standby_is_read_from_and_its_promotion_loses_nothing(
    primary: EmbeddedPostgres, standby: Standby, tmp_path: Path
) -> None:
    shop, source = shop_of(standby, tmp_path), Database("postgres", primary.dsn())
    source.execute("insert into people select g, 'snapshot' from generate_series(1, 100) g")
    replayed(standby, primary)
    with pytest.raises(CheckFailedError, match="publication"):  # which cannot be made here
        headrace.load(shop.project).run(once=True)
    findings = {f.name: f for f in headrace.load(shop.project).check()}
    assert findings["publication-missing"].fix.startswith("on its primary: ")
    assert findings["primary"].severity is Severity.OK
    assert "pg_log_standby_snapshot" in findings["slot"].fix
    source.execute(PUBLISH)
    replayed(standby, primary)
    with LiveRun(shop.project) as run:
        with source.connect() as session:  # the slot, then the snapshot's: each waits for it
            while not shop.database.execute(
                "select 1 from pg_replication_slots where confirmed_flush_lsn is not null"
            ):
                session.execute("select pg_log_standby_snapshot(), pg_sleep(0.05)")
            source.execute(
                "insert into people select g, 'streamed' from generate_series(101, 200) g"
            )
            while not any(Path(shop.folder, "lake").rglob("*.parquet")):
                session.execute("select pg_log_standby_snapshot(), pg_sleep(0.05)")
        replayed(standby, primary)
        primary.kill()
        standby.promote()
        shop.database.execute("insert into people values (-1, 'promoted')")
        run.catch_up(shop.database)
        noted = next(shop.folder.rglob("source.json"))
        run.wait_for(lambda _: '"timeline": 2' in noted.read_text())
    headrace.load(shop.project).run(once=True)  # which knows that the server lacks nothing
    assert_equal(shop.database, shop.folder, ["people"])


def acknowledge_often(view: RunView) -> bool:
    """Have the position of a source where nobody writes confirmed at once."""
    view.capture.policy = replace(view.capture.policy, progress_interval=0.05)
    return True


@pytest.fixture
def failed_over(primary: EmbeddedPostgres, standby: Standby, tmp_path: Path) -> Shop:
    """A project whose slot the standby holds ready; its primary is still up."""
    shop = shop_of(primary, tmp_path)
    shop.database.execute("insert into people select g, 'snapshot' from generate_series(1, 100) g")
    ready, asked = Database("postgres", standby.dsn()), "select pg_log_standby_snapshot()::text"
    with LiveRun(shop.project) as run:
        run.catch_up(shop.database)
        run.wait_for(acknowledge_often)
        for _ in range(50):  # ours must pass what the standby has
            ((noted,),) = shop.database.execute(asked)
            shop.database.execute(PASSED.format(noted))
            replayed(standby, primary)
            ready.execute("select pg_sync_replication_slots()")
            if ready.execute(SYNCHRONIZED):
                break
        else:
            raise AssertionError("the standby did not get ready")
    return shop


@pytest.mark.since(17)  # failover slots
def test_invariant_3_a_slot_goes_on_at_the_standby_that_took_its_primarys_place(
    primary: EmbeddedPostgres, standby: Standby, failed_over: Shop
) -> None:
    findings = headrace.load(shop_of(standby, failed_over.folder).project).check()
    assert "synced = true" in [f.evidence for f in findings]  # not before it is promoted
    failed_over.database.execute("insert into people values (-1, 'not read before')")
    replayed(standby, primary)
    primary.kill()
    standby.promote()
    shop = shop_of(standby, failed_over.folder)
    shop.database.execute("insert into people values (-2, 'promoted')")
    headrace.load(shop.project).run(once=True)
    assert_equal(shop.database, shop.folder, ["people"])


@pytest.mark.since(17)
def test_invariant_12_a_promoted_standby_that_lacks_changes_is_not_read_past_them(
    primary: EmbeddedPostgres, standby: Standby, failed_over: Shop
) -> None:
    """The log has what the standby never had; its slot stands where ours could go on."""
    standby.stop()
    failed_over.database.execute("insert into people values (-1, 'nowhere else')")
    headrace.load(failed_over.project).run(once=True)
    primary.kill()
    standby.start()
    standby.promote()
    shop = shop_of(standby, failed_over.folder)
    shop.database.execute("insert into people values (-2, 'at the same LSN')")
    for _ in range(2):  # beyond all that the log has
        shop.database.execute("create table x (); drop table x")
        shop.database.execute("select pg_switch_wal()")
    with pytest.raises(SlotLostError, match="promoted or restored without the changes"):
        headrace.load(shop.project).run(once=True)
    settings = yaml.safe_load(shop.project.read_text())
    settings["pipelines"]["shop_to_lake"]["auto_refresh"] = {"on": ["log_lost"]}
    shop.project.write_text(yaml.safe_dump(settings))
    headrace.load(shop.project).run(once=True)
    assert_equal(shop.database, shop.folder, ["people"])


@pytest.fixture
def selfish_standby(primary: EmbeddedPostgres) -> Iterator[Standby]:
    """One that does not ask its primary to keep the rows that its slots need."""
    with Standby(primary, {"hot_standby_feedback": "off"}) as server:
        yield server


def test_invariant_12_a_standbys_slot_whose_catalog_rows_were_removed_is_told(
    primary: EmbeddedPostgres, selfish_standby: Standby
) -> None:
    source = Database("postgres", primary.dsn())
    there = Database("postgres", selfish_standby.dsn())
    create = "select pg_create_logical_replication_slot('shop', 'pgoutput')"
    with ThreadPoolExecutor(1) as pool:
        created = pool.submit(there.execute, create)
        while not created.done():
            source.execute("select pg_log_standby_snapshot(), pg_sleep(0.05)")
        created.result()
    with there.connect() as session:
        slot = slot_state(session, "shop")
        assert slot is not None
        assert interruption(slot, "shop", slot.confirmed_flush) is None
        source.execute("create table x ()")
        source.execute("drop table x")  # by another transaction: what came to nothing holds nobody
        source.execute("vacuum pg_class")
        replayed(selfish_standby, primary)
        why = interruption(slot_state(session, "shop"), "shop", slot.confirmed_flush)
    assert "is lost" in why
    assert "rows_removed" in why or "conflicting" in why  # as 16 says
