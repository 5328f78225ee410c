"""From Postgres to Postgres: a destination that is lost, away, forgetful, or somebody else's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from mirror import Mirror, endpoint
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headrace.engine.table_state import Phase
from headrace.errors import CheckFailedError, DestinationLockedError, ForeignTableError
from headrace.testing.database import Database
from headrace.testing.postgres import EmbeddedPostgres
from lost_commit import Loss, way_to

GOODS = """
create table goods (id int primary key, v text);
insert into goods select g, 'v' || g from generate_series(1, 100) g;
create table log (a int);
alter table log replica identity full;
insert into log select g % 7 from generate_series(1, 50) g
"""


def change(mirror: Mirror, number: int) -> None:
    """A transaction that applied twice, or not at all, would show."""
    mirror.sql(f"""
        update goods set v = v || '.{number}' where id % 5 = {number} % 5;
        delete from goods where id = {number};
        insert into goods values (1000 + {number}, 'new');
        insert into log values ({number}), ({number});
        delete from log where ctid = (select min(ctid) from log)
    """)


# -- connections -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", Loss)
def test_3_a_connection_lost_at_commit_applies_each_change_exactly_once(mirror, loss):
    """Invariant 3: of loads and of changes; the outcome is learnt from the checkpoint."""
    parts = conninfo_to_dict(mirror.target.dsn)
    with way_to(parts["host"], int(parts["port"])) as way:
        detour = make_conninfo(mirror.target.dsn, port=way.port)
        mirror.sql(GOODS)
        mirror.carry("public.*", connections={"mirror": endpoint(detour)})
        with mirror.running() as running:
            running.catch_up()
            for number in range(1, 6):
                lost = way.lost
                way.lose(loss)
                change(mirror, number)
                running.catch_up()
                assert way.lost == lost + 1
        mirror.assert_equal("goods", "log")


def test_12_two_runs_of_one_pipeline_never_write_at_once(mirror, tmp_path: Path):
    """Invariant 12: a second project, with a change log of its own, is told who runs."""
    mirror.sql(GOODS)
    mirror.carry("public.goods")
    other = Mirror(mirror.source, mirror.target, tmp_path / "other")
    other.root.mkdir()
    other.carry("public.goods", slot="another", publication="another")
    with mirror.running() as running:
        running.catch_up()
        (failure,) = other.run()
        assert isinstance(failure.error, DestinationLockedError)
        assert "pg_terminate_backend" in failure.error.hint
        change(mirror, 1)
        running.catch_up()
        mirror.assert_equal("goods")


def test_12_two_pipelines_never_write_one_table(mirror):
    """Invariant 12: the later one is told whose table it is; the first one goes on."""
    mirror.sql(f"{GOODS}; create table other (id int primary key)")
    mirror.declare({"first": ["public.goods"], "second": ["public.other"]})
    mirror.catch_up()
    taken = {"source": "public.other", "name": "public.goods"}
    mirror.declare({"first": ["public.goods"], "second": [taken]})
    change(mirror, 1)
    (failure,) = mirror.run()
    assert failure.pipeline == "second"
    assert "first" in failure.error.message
    mirror.assert_equal("goods")
    names = [f.name for f in mirror.project.check("second") if f.severity.value == "blocker"]
    assert names == ["target-owner"]


def test_12_a_table_with_rows_of_somebody_elses_is_left_alone_until_it_may_be_taken(mirror):
    """Invariant 12: the others go on meanwhile."""
    mirror.sql(GOODS)
    mirror.at_target("create table goods (id int primary key, v text)")
    mirror.at_target("insert into goods values (7, 'theirs')")
    mirror.carry("public.*")
    (failure,) = mirror.run()
    assert isinstance(failure.error, ForeignTableError)
    assert mirror.at_target("select * from goods") == [(7, "theirs")]
    mirror.assert_equal("log")
    mirror.carry("public.*", {"source": "public.goods", "take_over": True})
    mirror.catch_up()
    mirror.assert_equal("goods")


# -- servers ---------------------------------------------------------------------------------------


@pytest.fixture
def faraway() -> Iterator[EmbeddedPostgres]:
    """A server of its own, which forgets in a crash what it has just committed."""
    with EmbeddedPostgres({"wal_writer_delay": "10s"}, fast=True) as server:
        yield server


@pytest.fixture
def apart(database: Database, faraway: EmbeddedPostgres, tmp_path: Path) -> Mirror:
    """From the session's server to another one."""
    mirror = Mirror(database, Database("postgres", faraway.dsn()), tmp_path)
    mirror.sql(GOODS)
    mirror.carry("public.*")
    return mirror


def test_9_a_destination_that_is_down_costs_the_source_no_wal(apart, faraway):
    """Invariant 9: the log takes what comes, and the destination catches up when it is back."""
    with apart.running() as running:
        running.catch_up()
        faraway.stop()
        for number in range(1, 10):
            change(apart, number)
        running.wait_for_table("public.goods", lambda state: state.phase is Phase.RETRYING)
        acknowledged(apart)
        faraway.start()
        running.catch_up()
        apart.assert_equal("goods", "log")


def acknowledged(mirror: Mirror) -> None:
    """Wait until the slot holds no WAL from before now."""
    ((now,),) = mirror.sql("select pg_current_wal_lsn()::text")
    passed = "select bool_and(confirmed_flush_lsn >= %s) from pg_replication_slots s"
    ours = f"{passed} where s.database = current_database()"
    for _ in range(600):
        mirror.sql("select pg_logical_emit_message(true, '', '')")
        if mirror.sql(ours, [now]) == [(True,)]:
            return
        mirror.sql("select pg_sleep(0.1)")
    raise AssertionError("the slot holds WAL though the log could take it")


@pytest.mark.parametrize("loaded", [True, False])
def test_9_a_run_begins_while_its_destination_is_down(apart, faraway, loaded):
    """Invariant 9: what was never loaded is copied when it is back."""
    if loaded:
        apart.catch_up()
    faraway.stop()
    change(apart, 1)
    with pytest.raises(CheckFailedError, match="cannot connect"):
        apart.run()
    with apart.running() as running:
        running.wait_for_table("public.goods", lambda state: state.phase is Phase.RETRYING)
        change(apart, 2)
        acknowledged(apart)
        assert "cannot connect" in apart.status("public.goods").error
        faraway.start()
        running.catch_up()
        apart.assert_equal("goods", "log")
        change(apart, 3)
        running.catch_up()
    apart.assert_equal("goods", "log")


def test_3_a_server_that_forgets_commits_in_a_crash_gets_them_again(apart, faraway):
    """Invariant 3: checkpoints go with the rows; a run that goes on goes back to them."""
    with apart.running() as running:
        running.catch_up()
        forgotten = 0
        for number in range(1, 6):
            change(apart, number)
            running.catch_up()
            before = position(apart)
            faraway.kill()
            faraway.start()
            forgotten += position(apart) < before
            running.catch_up()
            change(apart, number + 20)
            running.catch_up()
            apart.assert_equal("goods", "log")
    assert forgotten


@pytest.mark.since(
    17
)  # before, full pages of WAL are written at once, and a session's end fills one
def test_3_a_server_that_forgets_commits_between_runs_gets_them_again(apart, faraway):
    """Invariant 3."""
    apart.catch_up()
    change(apart, 1)
    apart.catch_up()
    before = position(apart)
    faraway.kill()
    faraway.start()
    assert position(apart) < before
    change(apart, 2)
    apart.catch_up()
    apart.assert_equal("goods", "log")


def position(mirror: Mirror) -> int:
    ((commit,),) = mirror.at_target("select min(commit) from headrace.checkpoints")
    return int(commit)


def test_11_a_load_that_was_seen_survives_a_crash_of_the_server(apart, faraway):
    """Invariant 11: a swap is durable when it is told."""
    with apart.running() as running:
        running.catch_up()
        faraway.kill()
        faraway.start()
        running.catch_up()
        change(apart, 1)
        running.catch_up()
        apart.assert_equal("goods", "log")


# -- readers ---------------------------------------------------------------------------------------


def test_11_readers_see_whole_commits_and_old_rows_until_a_resync_is_complete(mirror):
    """Invariant 11: a reader looks without pause while tables are changed and built anew."""
    mirror.sql("create table goods (id int primary key, n int)")
    mirror.sql("insert into goods select g, 0 from generate_series(1, 5000) g")
    mirror.carry("public.goods")
    mirror.catch_up()
    seen: set[tuple[int, int, int]] = set()
    stop = threading.Event()

    def look() -> None:
        with psycopg.connect(mirror.target.dsn, autocommit=True) as session:
            while not stop.is_set():
                found = session.execute("select count(*), min(n), max(n) from goods").fetchone()
                assert found is not None
                seen.add(found)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        with mirror.running() as running:
            for number in range(1, 6):
                mirror.sql(f"update goods set n = {number}")
                running.catch_up()
        mirror.sql("update goods set n = 100")
        assert not mirror.project.resync(["public.goods"])
    finally:
        stop.set()
        reader.join()
    assert {count for count, _, _ in seen} == {5000}
    assert all(low == high for _, low, high in seen)
    mirror.assert_equal("goods")
