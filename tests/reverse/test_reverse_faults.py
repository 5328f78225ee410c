"""Servers, storage and people that get in the way of a pipeline from Delta to Postgres.

A run that goes on waits for what comes back by itself, and says for what; what a person did to a
table stops that table alone, and the hint cures it. In the end each change is there exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import write_deltalake
from psycopg.conninfo import conninfo_to_dict

from headrace.connectors.postgres import generations, target_session
from headrace.engine import sync
from headrace.engine.sync_state import SyncState
from headrace.engine.table_state import Phase
from headrace.errors import (
    DestinationError,
    DestinationLockedError,
    DestinationUnavailableError,
    DivergedError,
    SourceUnavailableError,
    TableBusyError,
)
from headrace.model import TableId
from headrace.testing.database import Database
from headrace.testing.postgres import EmbeddedPostgres
from lakeside import Lakeside, Running, by_deltalake, people
from lost_commit import Loss, way_to

PEOPLE, LOG = "crm.people", "crm.log"
TABLES = (PEOPLE, {"source": LOG, "key": ["id"], "mode": "append"})


def change(lakeside: Lakeside, number: int) -> None:
    """Three versions of both tables; twice, or not at all, would show in the second."""
    for name in (PEOPLE, LOG):
        source = lakeside.source(name)
        source.write(people(1000 + number))
        source.update(f"id % 5 = {number % 5}", name=f"concat(name, '.{number}')")
        source.delete(f"id = {number}")


def begin(lakeside: Lakeside) -> Lakeside:
    for name in (PEOPLE, LOG):
        lakeside.source(name).write(people(*range(1, 101)))
    lakeside.carry(*TABLES)
    return lakeside


def catch_up(lakeside: Lakeside, running: Running) -> None:
    for name in (PEOPLE, LOG):
        running.reach(name, lakeside.source(name).version)


def assert_exactly_once(lakeside: Lakeside) -> None:
    lakeside.assert_equal(PEOPLE, readers=(by_deltalake,))
    lakeside.assert_appended(LOG)


def failing(states: dict[TableId, SyncState], table: str, kind: type[Exception]) -> bool:
    state = states[TableId.parse(table)]
    return state.phase is Phase.RETRYING and isinstance(state.error, kind)


# -- the server ------------------------------------------------------------------------------------


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[EmbeddedPostgres, Lakeside]]:
    """A server that the test may stop and kill, and a lakeside there."""
    with EmbeddedPostgres(fast=True) as server:
        yield server, begin(Lakeside(Database("postgres", server.dsn()), tmp_path))


def test_3_postgres_restarted_and_killed_beneath_a_run_loses_and_doubles_nothing(
    own_server: tuple[EmbeddedPostgres, Lakeside],
) -> None:
    """Invariant 3. A commit that the crash took away (synchronous_commit is off) is made again."""
    server, lakeside = own_server
    with lakeside.running() as running:
        catch_up(lakeside, running)
        for number, end in enumerate((server.restart, server.kill, server.stop), start=1):
            end()
            change(lakeside, number)
            if server.pid is None:
                running.wait(lambda s: failing(s, PEOPLE, DestinationUnavailableError))
                server.start()
            catch_up(lakeside, running)
    assert_exactly_once(lakeside)


def test_13_a_run_that_begins_while_postgres_is_away_goes_on_when_it_comes(
    own_server: tuple[EmbeddedPostgres, Lakeside],
) -> None:
    server, lakeside = own_server
    server.stop()
    with lakeside.running() as running:
        running.wait(lambda s: failing(s, PEOPLE, DestinationUnavailableError))
        server.start()
        catch_up(lakeside, running)
    assert_exactly_once(lakeside)


def test_3_connections_that_an_administrator_ends_are_made_anew(lakeside: Lakeside) -> None:
    begin(lakeside)
    terminate = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    with lakeside.running() as running:
        catch_up(lakeside, running)
        for number in range(1, 4):
            lakeside.sql(terminate)
            change(lakeside, number)
            lakeside.sql(terminate)
            catch_up(lakeside, running)
    assert_exactly_once(lakeside)


@pytest.mark.parametrize("loss", Loss)
def test_3_a_connection_lost_in_a_commit_applies_each_version_exactly_once(
    lakeside: Lakeside, loss: Loss
) -> None:
    """Loads, merges and swaps; whether the server got the COMMIT is learnt from the checkpoint."""
    begin(lakeside)
    parts = conninfo_to_dict(lakeside.database.dsn)
    with way_to(parts["host"], int(parts["port"])) as way:
        lakeside.carry(*TABLES, shop={"port": way.port})
        for number in range(1, 5):
            lost = way.lost
            with lakeside.running() as running:
                catch_up(lakeside, running)
                change(lakeside, number)
                way.lose(loss)
                catch_up(lakeside, running)
            assert way.lost == lost + 1
            way.losing = None
    assert_exactly_once(lakeside)


@pytest.mark.parametrize("loss", Loss)
def test_3_a_connection_lost_in_the_commit_of_a_swap_swaps_once(
    lakeside: Lakeside, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(lakeside)
    lakeside.catch_up()
    change(lakeside, 1)
    parts = conninfo_to_dict(lakeside.database.dsn)
    with way_to(parts["host"], int(parts["port"])) as way:

        def lose_once(name: str) -> None:
            if not way.lost:
                way.lose(loss)

        monkeypatch.setattr(generations, "hit", lose_once)
        lakeside.carry(*TABLES, shop={"port": way.port})
        assert lakeside.project.resync([PEOPLE]) == []
        assert way.lost == 1
    assert_exactly_once(lakeside)


def test_a_full_disk_is_waited_for(lakeside: Lakeside) -> None:
    """As the server tells it: SQLSTATE 53100."""
    begin(lakeside)
    lakeside.catch_up()
    lakeside.sql("""
        create function full_disk() returns trigger language plpgsql as $$
        begin raise exception 'could not extend file: No space left on device'
              using errcode = '53100'; end $$;
        create trigger full_disk before insert on crm.people execute function full_disk();
    """)
    change(lakeside, 1)
    with lakeside.running() as running:
        running.wait(lambda s: failing(s, PEOPLE, DestinationUnavailableError))
        lakeside.sql("drop trigger full_disk on crm.people")
        catch_up(lakeside, running)
    assert_exactly_once(lakeside)


# -- the storage -----------------------------------------------------------------------------------


def test_storage_that_is_away_is_waited_for(
    lakeside: Lakeside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "RECHECK", 0.2)
    begin(lakeside)
    away = lakeside.root / "away"
    with lakeside.running() as running:
        catch_up(lakeside, running)
        lakeside.lake.rename(away)
        for name in ("people", "log"):
            write_deltalake(away / "crm" / name, people(5000), mode="append")
        running.wait(lambda s: failing(s, PEOPLE, SourceUnavailableError))
        away.rename(lakeside.lake)
        catch_up(lakeside, running)
    assert_exactly_once(lakeside)


# -- other runs and other sessions -----------------------------------------------------------------


def test_a_second_run_of_a_pipeline_is_refused_and_told_of_the_first(lakeside: Lakeside) -> None:
    begin(lakeside)
    with lakeside.running() as running:
        catch_up(lakeside, running)
        ((holder,),) = lakeside.sql(
            "select pid from pg_stat_activity where application_name like 'headrace lake_to_shop@%'"
        )
        with pytest.raises(DestinationLockedError) as refused:
            lakeside.run()
        assert f"process {holder}," in refused.value.message
        assert "headrace lake_to_shop@" in refused.value.message
        change(lakeside, 1)
        catch_up(lakeside, running)
    assert_exactly_once(lakeside)


CLAIMS = "select pid from pg_stat_activity where application_name like 'headrace lake_to_shop@%'"


def test_a_run_claims_its_pipeline_again_after_the_server_forgot_it(lakeside: Lakeside) -> None:
    """As a restart does: a second run is refused as before."""
    begin(lakeside)
    with lakeside.running() as running:
        catch_up(lakeside, running)
        forget = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
        lakeside.sql(f"{forget} and pid <> pg_backend_pid()", [lakeside.database.name])
        change(lakeside, 1)
        catch_up(lakeside, running)
        assert len(lakeside.sql(CLAIMS)) == 1
        with pytest.raises(DestinationLockedError):
            lakeside.run()
    assert_exactly_once(lakeside)


def test_a_run_that_lost_its_claim_to_another_one_stops(
    lakeside: Lakeside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut off for a while, in which somebody began a second run."""
    monkeypatch.setattr(sync, "RECHECK", 0.2)
    begin(lakeside)
    with lakeside.running() as running:
        catch_up(lakeside, running)
        others = "select pid from pg_stat_activity where datname = current_database()"
        lost = [pid for (pid,) in lakeside.sql(f"{others} and pid <> pg_backend_pid()")]
        ((claim,),) = lakeside.sql(CLAIMS)
        lakeside.sql("select pg_terminate_backend(%s)", [claim])
        while lakeside.sql("select 1 from pg_stat_activity where pid = %s", [claim]):
            continue  # it has not ended yet
        change(lakeside, 1)
        with lakeside.database.connect(application_name="headrace elsewhere") as other:
            key = "hashtextextended('headrace lake_to_shop', 0)"
            assert other.execute(f"select pg_try_advisory_lock({key})".encode()).fetchone()
            lakeside.sql("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", [lost])
            failures = running.failures()
    assert {type(f.error) for f in failures} == {DestinationLockedError}
    assert "'headrace elsewhere'" in failures[0].error.message
    lakeside.catch_up()
    assert_exactly_once(lakeside)


def test_two_pipelines_into_one_database_run_side_by_side(lakeside: Lakeside) -> None:
    begin(lakeside)
    lakeside.declare({"one": [PEOPLE], "other": [TABLES[1]]})
    with lakeside.running("one") as one, lakeside.running("other") as other:
        one.reach(PEOPLE, 0)
        other.reach(LOG, 0)
    assert_exactly_once(lakeside)


def test_two_pipelines_never_write_one_table(lakeside: Lakeside) -> None:
    begin(lakeside)
    lakeside.declare({"one": [PEOPLE], "other": [{"source": LOG, "name": PEOPLE, "key": ["id"]}]})
    lakeside.catch_up("one")
    (failure,) = lakeside.run("other")
    assert "'one'" in failure.error.message
    lakeside.assert_equal(PEOPLE)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are waited for a moment only."""
    shorter = target_session._SETTINGS.replace("'30s'", "'200ms'")
    assert shorter != target_session._SETTINGS
    monkeypatch.setattr(target_session, "_SETTINGS", shorter)


@pytest.mark.usefixtures("impatient")
def test_a_table_that_somebody_holds_is_waited_for_and_the_holder_told(lakeside: Lakeside) -> None:
    begin(lakeside)
    lakeside.catch_up()
    change(lakeside, 1)
    with lakeside.database.connect(autocommit=False, application_name="monthly report") as other:
        other.execute("lock table crm.people in share mode")
        with lakeside.running() as running:
            running.wait(lambda s: failing(s, PEOPLE, TableBusyError))
            error = running.states[TableId.parse(PEOPLE)].error
            assert error is not None
            assert f"process {other.info.backend_pid} (monthly report" in error.message
            running.reach(LOG, lakeside.source(LOG).version)  # the other table went on
            other.rollback()
            catch_up(lakeside, running)
    assert_exactly_once(lakeside)


@pytest.mark.usefixtures("impatient")
def test_a_row_that_somebody_holds_is_waited_for_and_the_holder_told(lakeside: Lakeside) -> None:
    begin(lakeside)
    lakeside.catch_up()
    change(lakeside, 1)
    with lakeside.database.connect(autocommit=False, application_name="support") as other:
        other.execute("select from crm.people where id = 1 for update")
        with lakeside.running() as running:
            running.wait(lambda s: failing(s, PEOPLE, TableBusyError))
            error = running.states[TableId.parse(PEOPLE)].error
            assert "(support" in getattr(error, "message", "")
            other.rollback()
            catch_up(lakeside, running)
    assert_exactly_once(lakeside)


# -- what people do to a table ---------------------------------------------------------------------


def test_a_table_that_somebody_dropped_stops_alone_and_comes_back_by_its_hint(
    lakeside: Lakeside,
) -> None:
    begin(lakeside)
    lakeside.catch_up()
    lakeside.sql("drop table crm.people")
    change(lakeside, 1)
    (failure,) = lakeside.run()
    assert isinstance(failure.error, DivergedError)
    assert "headrace resync crm.people" in failure.error.hint
    lakeside.assert_appended(LOG)
    assert lakeside.project.resync([PEOPLE]) == []
    assert_exactly_once(lakeside)


def test_a_column_that_somebody_dropped_stops_the_table_until_it_is_back(
    lakeside: Lakeside,
) -> None:
    begin(lakeside)
    lakeside.catch_up()
    lakeside.sql("alter table crm.people drop column name")
    change(lakeside, 1)
    (failure,) = lakeside.run()
    assert isinstance(failure.error, DestinationError)
    assert "name" in failure.error.message
    lakeside.assert_appended(LOG)
    assert (
        lakeside.project.resync([PEOPLE]) == []
        or lakeside.sql("alter table crm.people add name text") == []
    )
    assert lakeside.project.resync([PEOPLE]) == []
    assert_exactly_once(lakeside)


def test_a_column_that_somebody_added_is_left_alone(lakeside: Lakeside) -> None:
    begin(lakeside)
    lakeside.catch_up()
    lakeside.sql("alter table crm.people add note text default 'ours'")
    change(lakeside, 1)
    lakeside.catch_up()
    assert lakeside.sql("select distinct note from crm.people") == [("ours",)]
    expected = by_deltalake(lakeside.source(PEOPLE).path, 3, ["id", "name"])
    assert lakeside.rows(PEOPLE, ["id", "name"]) == expected


def test_rows_that_somebody_changed_are_found_by_verify_and_mended_by_a_resync(
    lakeside: Lakeside,
) -> None:
    begin(lakeside)
    lakeside.catch_up()
    assert all(v.equal for v in lakeside.project.verify())
    lakeside.sql(
        "update crm.people set name = 'somebody else' where id = 7;"
        "delete from crm.people where id = 8; insert into crm.people values (-1, 'nobody')"
    )
    found = {str(v.table): (v.missing, v.extra) for v in lakeside.project.verify()}
    assert found == {PEOPLE: (2, 2), LOG: (0, 0)}
    assert lakeside.project.resync([PEOPLE]) == []
    assert all(v.equal for v in lakeside.project.verify())
    assert_exactly_once(lakeside)


def test_a_bad_table_beside_good_ones_stops_alone(lakeside: Lakeside) -> None:
    """One without a log, one whose key is not there, one that somebody else made."""
    begin(lakeside)
    for name in ("crm.broken", "crm.keyless", "crm.theirs"):
        lakeside.source(name).write(people(1, 2))
    lakeside.source("crm.broken").log(0).write_text("{")
    lakeside.sql(
        "create schema crm; create table crm.theirs (id bigint primary key, name text);"
        "insert into crm.theirs values (9, 'theirs')"
    )
    lakeside.carry(
        *TABLES, "crm.broken", {"source": "crm.keyless", "key": ["number"]}, "crm.theirs"
    )
    failures = {str(f.table): f.error for f in lakeside.run()}
    assert failures.keys() == {"crm.broken", "crm.keyless", "crm.theirs"}
    assert all(error.hint for error in failures.values())
    assert lakeside.sql("select * from crm.theirs") == [(9, "theirs")]
    assert_exactly_once(lakeside)
