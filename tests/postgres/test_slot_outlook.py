"""How long a slot lasts and who holds it up, told while something can be done about it."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace

import pytest
from check_source import PUBLICATION, checked_source

from headrace.connectors.postgres.slot_outlook import (
    Holder,
    SlotOutlook,
    SlotWatch,
    alarms,
    forecast,
    read_outlook,
)
from headrace.connectors.postgres.slot_state import SlotState, end_of_wal, slot_state
from headrace.connectors.postgres.source import PostgresSource
from headrace.testing.database import temporary_database
from headrace.testing.postgres import EmbeddedPostgres

MIB = 1 << 20
LIMITS = {"max_slot_wal_keep_size": "96MB", "max_prepared_transactions": "2"}


@pytest.fixture(scope="module")
def limited_server():
    with EmbeddedPostgres(LIMITS, fast=True) as server:
        yield server


@pytest.fixture
def source(limited_server):
    with temporary_database(limited_server.dsn()) as database, checked_source(database) as source:
        source.execute("create table t (id int primary key); create publication p for table t")
        source.create_slot()
        yield source


@pytest.fixture
def stream(source):
    ours = PostgresSource(source.settings(), source.slot, PUBLICATION, [], {})
    with closing(ours.stream(ours.prepare(None))) as stream:
        yield stream


def write_wal(source, segments=3):
    """Segments of WAL, then the record that tells what transactions are open."""
    for _ in range(segments):
        source.execute("create table x (); drop table x")
        source.execute("select pg_switch_wal()")
    source.execute("checkpoint")


def follow(source, stream):
    """Confirm all that the server sends, until it has nothing more."""
    while True:
        stream.ask_position()
        stream.receive(1.0)
        stream.acknowledge(stream.received_lsn)
        with source.database.connect() as session:
            slot = slot_state(session, source.slot)
        if slot.lag_bytes < MIB:
            return


def outlook(source):
    with source.database.connect() as session:
        return read_outlook(session, slot_state(session, source.slot))


def test_a_transaction_that_keeps_the_slot_from_moving_is_named(source, stream):
    with closing(source.database.connect(application_name="forgotten")) as session:
        session.execute("begin; insert into t values (1)")
        write_wal(source)
        follow(source, stream)
        holder = outlook(source).holder
        assert (holder.kind, holder.pid) == ("transaction", session.info.backend_pid)
        assert (holder.application, holder.database) == ("forgotten", source.database.name)
        assert holder.since is not None
        source.execute(holder.cure)
    while outlook(source).holder is not None:  # and that lets it move on
        source.execute("checkpoint")
        follow(source, stream)


def test_a_prepared_transaction_that_keeps_the_slot_from_moving_is_named(source, stream):
    source.execute("begin; insert into t values (1); prepare transaction 'it''s forgotten'")
    try:
        write_wal(source)
        follow(source, stream)
        holder = outlook(source).holder
    finally:
        source.execute("rollback prepared 'it''s forgotten'")
    assert (holder.kind, holder.gid) == ("prepared", "it's forgotten")
    assert "ROLLBACK PREPARED 'it''s forgotten'" in holder.cure


@pytest.mark.since(15)
def test_a_prepared_transaction_that_was_taken_in_is_named_and_not_its_reader(source):
    """Which confirms no more than where it begins."""
    settings = source.settings().model_copy(update={"two_phase": True})
    ours = PostgresSource(settings, source.slot, PUBLICATION, [], {})
    with closing(ours.stream(ours.prepare(None))) as stream:
        source.execute("begin; insert into t values (1); prepare transaction 'taken in'")
        try:
            write_wal(source)
            with source.database.connect() as session:
                end = end_of_wal(session)
            while stream.received_lsn < end:
                stream.ask_position()
                stream.receive(1.0)
                stream.acknowledge(stream.received_lsn)
            holder = outlook(source).holder
        finally:
            source.execute("rollback prepared 'taken in'")
    assert (holder.kind, holder.gid) == ("prepared", "taken in")


def test_a_consumer_that_confirms_nothing_is_named(source, stream):
    write_wal(source)
    assert outlook(source).holder.kind == "reader"


def test_a_slot_that_nobody_reads_from_is_told_in_the_log_of_a_run_once(source, caplog):
    write_wal(source, segments=5)
    watch = SlotWatch()
    with source.database.connect() as session, caplog.at_level(logging.WARNING, "headrace.run"):
        for _ in range(2):
            watch.look(session, slot_state(session, source.slot))
    (told,) = caplog.messages
    assert "slot_retains_wal" in told
    assert "nobody reads from it" in told
    assert f"limit_bytes={96 * MIB}" in told


# -- pure ------------------------------------------------------------------------------------------


SLOT = SlotState(
    name="s",
    slot_type="logical",
    plugin="pgoutput",
    database="d",
    current_database="d",
    temporary=False,
    active_pid=1,
    application_name="headrace",
    wal_status="reserved",
    invalidation_reason="",
    conflicting=False,
    two_phase=False,
    failover=False,
    synchronized=False,
    restart=None,
    confirmed_flush=None,
    catalog_age=0,
    inactive_since=None,
    safe_wal_size=100 * MIB,
    lag_bytes=0,
    retained_bytes=20 * MIB,
)
IDLE = replace(SLOT, active_pid=None)


@pytest.mark.parametrize(
    ("slot", "rate", "idle_left", "seconds"),
    [
        (SLOT, MIB, None, 100.0),
        (SLOT, 0.0, None, None),  # nobody writes
        (replace(SLOT, safe_wal_size=None), MIB, None, None),  # no limit
        (replace(SLOT, safe_wal_size=-1), 0.0, None, 0.0),  # at the next checkpoint
        (replace(SLOT, wal_status="lost", safe_wal_size=None), MIB, None, 0.0),
        (IDLE, MIB, 30.0, 30.0),  # idle_replication_slot_timeout comes first
        (IDLE, MIB, 300.0, 100.0),
        (SLOT, MIB, 30.0, 100.0),  # it is not idle
    ],
)
def test_a_slot_is_lost_when_its_reserve_is_written_or_its_patience_ends(
    slot, rate, idle_left, seconds
):
    assert forecast(slot, rate, idle_left) == seconds


@pytest.mark.parametrize(
    ("retained", "status", "limit", "lost_in", "alarming"),
    [
        (20 * MIB, "reserved", 100 * MIB, 60.0, False),  # as every slot does between checkpoints
        (20 * MIB, "extended", 100 * MIB, 60.0, True),
        (20 * MIB, "extended", 100 * MIB, 1e6, False),
        (60 * MIB, "reserved", 100 * MIB, None, True),
        (9 << 30, "extended", None, None, False),
        (11 << 30, "extended", None, None, True),
    ],
)
def test_a_person_is_called_in_good_time(retained, status, limit, lost_in, alarming):
    slot = replace(SLOT, retained_bytes=retained, wal_status=status)
    found = SlotOutlook(rate=MIB, limit=limit, lost_in=lost_in, holder=Holder("reader"))
    assert alarms(slot, found) is alarming
