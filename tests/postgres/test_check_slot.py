"""The preflight of slots: each finding for a real one."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from check_source import PUBLICATION, checked_source

from headrace.connectors.postgres import two_phase
from headrace.connectors.postgres.check import check
from headrace.connectors.postgres.source import PostgresSource
from headrace.model.finding import Severity
from headrace.testing.database import Database, temporary_database
from headrace.testing.postgres import EmbeddedPostgres


@pytest.fixture
def source(database):
    with checked_source(database) as source:
        yield source


# -- slots that are somebody else's ----------------------------------------------------------------


def test_a_physical_slot_is_refused(source):
    source.execute(f"select pg_create_physical_replication_slot('{source.slot}')")
    try:
        finding = source.check().named("slot-foreign")
    finally:
        source.execute(f"select pg_drop_replication_slot('{source.slot}')")
    assert (finding.severity, finding.evidence) == (Severity.BLOCKER, "slot_type = physical")


def test_a_slot_of_another_plugin_is_refused(source):
    source.create_slot("pgoutput")
    assert "slot-foreign" not in source.check().blockers
    source.execute(f"select pg_drop_replication_slot('{source.slot}')")
    source.create_slot("test_decoding")
    finding = source.check().named("slot-foreign")
    assert (finding.severity, finding.evidence) == (Severity.BLOCKER, "plugin = test_decoding")


def test_a_slot_of_another_database_is_refused(source, server_dsn):
    with temporary_database(server_dsn) as other:
        other.execute(f"select pg_create_logical_replication_slot('{other.name}', 'pgoutput')")
        finding = source.check(slot=other.name).named("slot-foreign")
    assert (finding.severity, finding.evidence) == (Severity.BLOCKER, f"database = {other.name}")


SENDS_PREPARED = "select pg_create_logical_replication_slot('{}', 'pgoutput', false, true)"


@pytest.mark.since(18)
def test_a_slot_that_sends_prepared_transactions_can_be_altered(source):
    source.execute(SENDS_PREPARED.format(source.slot))
    assert "slot-two-phase" not in source.check().blockers


@pytest.mark.since(15)  # where it can be wanted
def test_a_slot_that_sends_prepared_transactions_has_to_be_what_is_wanted(source, monkeypatch):
    """Before 18 it cannot be altered: somebody has to decide."""
    monkeypatch.setattr(two_phase, "ALTERED_SINCE", 99)
    source.execute(SENDS_PREPARED.format(source.slot))
    finding = source.check().named("slot-two-phase")
    assert finding.severity is Severity.BLOCKER
    assert "two_phase: true" in finding.fix
    source.run(finding.sql)
    assert "will be created" in source.check().named("slot").message


@pytest.mark.parametrize("version", [13, 14])
def test_prepared_transactions_are_not_asked_for_where_nobody_sends_them(version):
    found = two_phase.disagreement(version, None, wanted=True)
    assert found is not None
    assert f"Postgres {version}" in found.why
    assert two_phase.disagreement(15, None, wanted=True) is None
    assert two_phase.disagreement(version, None, wanted=False) is None


def test_a_slot_in_use_is_told_with_its_consumer(source):
    source.execute("create publication p")
    source.create_slot()
    consumer = source.database.connect(replication="database", application_name="other tool")
    with closing(consumer):
        start = f"START_REPLICATION SLOT {source.slot} LOGICAL 0/0"
        options = " (proto_version '1', publication_names 'p')"
        consumer.pgconn.exec_((start + options).encode())
        finding = source.check().named("slot-active")
        assert finding.severity is Severity.WARNING
        assert finding.evidence == f"active_pid = {consumer.info.backend_pid}"
        assert "'other tool'" in finding.message


# -- lost slots ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forgetful_server():
    """A server that keeps next to no WAL for slots."""
    with EmbeddedPostgres({"max_slot_wal_keep_size": "1MB"}, fast=True) as server:
        yield server


def test_a_slot_is_told_to_be_lost_before_and_after_it_is(forgetful_server):
    with (
        temporary_database(forgetful_server.dsn()) as database,
        checked_source(database) as source,
    ):
        source.create_slot()
        source.execute("create table x ()")
        source.execute("select pg_switch_wal()")
        source.execute("create table y ()")
        nearly = source.check()
        assert nearly.named("slot-nearly-lost").severity is Severity.WARNING
        source.execute("checkpoint")
        finding = source.check().named("slot-lost")
        assert finding.severity is Severity.BLOCKER
        assert finding.evidence in (
            "invalidation_reason = wal_removed",
            "conflicting = true",  # so 16 calls each invalidation
            "wal_status = lost",
        )
        source.run(finding.sql)
        assert "will be created" in source.check().named("slot").message


# -- standbys --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def followed_server():
    """A server that waits for a standby before it sends failover slots' changes."""
    waits = {"synchronized_standby_slots": "standby_2"}
    with EmbeddedPostgres(waits, fast=True) as server:
        Database("postgres", server.dsn()).execute(
            "select pg_create_physical_replication_slot('standby_2')"
        )
        yield server


@pytest.mark.since(17)
def test_a_slot_that_a_standby_could_not_go_on_with_is_warned_of(followed_server):
    with (
        temporary_database(followed_server.dsn()) as database,
        checked_source(database) as source,
    ):
        away = source.check().named("slot-failover")  # the slot will be handed on
        assert (away.severity, away.objects) == (Severity.WARNING, ("standby_2",))
        source.create_slot()
        alone = source.check().named("slot-failover")
        assert "failover: true" in alone.fix
        settings = source.settings().model_copy(update={"failover": True})
        ours = PostgresSource(settings, source.slot, PUBLICATION, [], {})
        ours.prepare(None)  # adopts it, and has it handed on
        assert source.check().named("slot-failover").objects == ("standby_2",)


def test_a_slot_without_standbys_is_not_spoken_of(source):
    assert "slot-failover" not in {finding.name for finding in source.check()}


# -- the publication's age -------------------------------------------------------------------------


def order(source):
    found = source.check("public.t")
    assert not found.blockers
    return found.named("publication-order")


def test_a_publication_older_than_the_slot_is_known_to_be(source):
    source.execute("create table t (id int primary key); create publication p for table t")
    source.create_slot()
    assert order(source).severity is Severity.OK


def test_a_publication_that_may_be_younger_than_the_slot_is_warned_of(source):
    """The server really does not send what came in between: it fails or, on 18, leaves it out."""
    source.execute("create table t (id int primary key)")
    source.create_slot()
    source.execute("insert into t values (1); ")
    source.execute("create publication p for table t")
    source.execute("insert into t values (2)")
    finding = order(source)
    assert finding.severity is Severity.WARNING
    assert not finding.safe
    peek = (
        f"select count(*) from pg_logical_slot_peek_binary_changes('{source.slot}', null, null,"
        f" 'proto_version', '1', 'publication_names', '{PUBLICATION}')"
        " where get_byte(data, 0) = ascii('I')"
    )
    try:
        assert source.execute(peek) == [(1,)]
    except psycopg.errors.UndefinedObject as error:
        assert "publication" in str(error)  # noqa: PT017  # which of the two is the version's
    source.run(finding.sql)
    source.create_slot()
    assert order(source).severity is Severity.OK


def test_there_is_no_order_to_tell_without_a_slot_or_with_a_foreign_one(source):
    source.execute("create publication p")
    assert "publication-order" not in {finding.name for finding in source.check()}
    source.create_slot("test_decoding")
    assert "publication-order" not in {finding.name for finding in source.check()}


def test_a_slot_name_of_any_letters_is_only_a_name(source):
    found = check(source.settings(), "it's", PUBLICATION, [])
    assert [f.message for f in found if f.name == "slot"] == ['slot "it\'s" will be created']
