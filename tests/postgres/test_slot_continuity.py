"""Where a slot must stand for a change log to go on: looked at before a stream and when it runs."""

from __future__ import annotations

import pytest
from check_source import PUBLICATION, checked_source

from headrace.connectors.postgres.slot_outlook import read_outlook
from headrace.connectors.postgres.slot_state import end_of_wal, slot_state
from headrace.connectors.postgres.source import PostgresSource
from headrace.errors import SlotLostError, SourceError
from headrace.testing.database import temporary_database


@pytest.fixture
def source(database):
    with checked_source(database) as source:
        source.execute("create table t (id int primary key); create publication p for table t")
        yield source


def reading(source):
    return PostgresSource(source.settings(), source.slot, PUBLICATION, [], {})


def end(source):
    with source.database.connect() as session:
        return end_of_wal(session)


def outlook(source):
    with source.database.connect() as session:
        return read_outlook(session, slot_state(session, source.slot))


def recreate(source):
    source.execute(f"select pg_drop_replication_slot('{source.slot}')")
    source.execute("insert into t values (1)")
    source.create_slot()


def advance(source):
    source.execute("insert into t values (1)")
    source.execute(f"select pg_replication_slot_advance('{source.slot}', pg_current_wal_lsn())")


@pytest.mark.versions
@pytest.mark.parametrize("meddle", [recreate, advance])
def test_invariant_12_a_slot_that_is_moved_at_the_last_moment_streams_nothing(source, meddle):
    """After the look of a reconnection, before START_REPLICATION: the server would skip changes."""
    source.create_slot()
    position = end(source)
    ours = reading(source)
    assert ours.prepare(position) == position
    meddle(source)
    with pytest.raises(SlotLostError, match="somebody else"):
        ours.stream(position)
    ours.stream(end(source)).close()
    assert outlook(source).lost_in is None  # nothing limits what it may retain


def test_a_slot_that_somebody_made_is_adopted_where_it_stands(source):
    source.create_slot()
    source.execute("insert into t values (1)")
    ours = reading(source)
    start = ours.prepare(None)
    assert start < end(source)
    stream = ours.stream(start)
    try:
        while not stream.pending_rows:
            stream.receive(1.0)
    finally:
        stream.close()


def test_a_slot_that_somebody_else_needs_is_not_adopted(source, server_dsn):
    with temporary_database(server_dsn) as other:
        other.execute(f"select pg_create_logical_replication_slot('{other.name}', 'pgoutput')")
        ours = PostgresSource(source.settings(), other.name, PUBLICATION, [], {})
        with pytest.raises(SourceError, match="is of database") as refused:
            ours.prepare(None)
        with pytest.raises(SlotLostError, match="recreated"):
            ours.prepare(end(source))
    assert "slot:" in refused.value.hint


def test_a_temporary_slot_is_not_adopted(source):
    with source.database.connect() as session:
        session.execute(
            f"select pg_create_logical_replication_slot('{source.slot}', 'pgoutput', true)".encode()
        )
        finding = source.check().named("slot-foreign")
    assert finding.evidence == "temporary = true"
