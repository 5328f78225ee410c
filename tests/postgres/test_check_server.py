"""The preflight of server and role: each finding on a real server where one can be had."""

from __future__ import annotations

import re
import socket

import pytest
from check_source import PUBLICATION, CheckedSource, Findings, checked_source

from headrace.config import PostgresConnection
from headrace.connectors.postgres import providers
from headrace.connectors.postgres.check import check
from headrace.connectors.postgres.check_server import (
    Server,
    Transport,
    settings_findings,
    transport_finding,
    version_finding,
)
from headrace.model.finding import Severity
from headrace.testing.database import Database, temporary_database
from headrace.testing.postgres import EmbeddedPostgres, major_version, server_bin_dir


@pytest.fixture
def source(database):
    with checked_source(database) as source:
        yield source


def has_idle_timeout() -> bool:
    return major_version(server_bin_dir()) >= 18


@pytest.fixture(scope="module")
def tight_server():
    """A server with every setting at its least helpful, but for wal_level."""
    settings = {
        "max_replication_slots": "1",
        "max_wal_senders": "1",
        "max_slot_wal_keep_size": "64MB",
        "wal_sender_timeout": "0",
        "listen_addresses": "*",
    }
    if has_idle_timeout():
        settings["idle_replication_slot_timeout"] = "1h"
    hba = ["local all all scram-sha-256", "host all all all scram-sha-256"]
    with EmbeddedPostgres(settings, fast=True, hba=hba) as server:
        yield server


@pytest.fixture
def tight_source(tight_server):
    with temporary_database(tight_server.dsn()) as database, checked_source(database) as source:
        yield source


# -- settings --------------------------------------------------------------------------------------


def test_without_logical_wal_nothing_goes():
    settings = {"wal_level": "replica", "max_wal_senders": "0", "max_replication_slots": "0"}
    with (
        EmbeddedPostgres(settings, fast=True) as server,
        checked_source(Database("postgres", server.dsn())) as source,
    ):
        found = source.check()
        lacking = {"wal-level", "replication-slots", "wal-senders"}
        assert found.blockers >= lacking
        finding = found.named("wal-level")
        assert finding.evidence == "wal_level = replica"
        for name in lacking:
            source.run(found.named(name).sql)
        for setting in settings:  # the command line would override what ALTER SYSTEM wrote
            del server.settings[setting]
        server.restart()
        assert source.check().names(Severity.OK) >= lacking


def test_settings_that_lose_slots_are_warned_of(tight_source):
    found = tight_source.check()
    assert found.named("slot-wal-keep-size").evidence == "max_slot_wal_keep_size = 64MB"
    expected = {"slot-wal-keep-size", "wal-sender-timeout"}
    if has_idle_timeout():
        expected.add("idle-slot-timeout")
        assert found.named("idle-slot-timeout").evidence == "idle_replication_slot_timeout = 1h"
    assert found.warnings - {"replication-slots", "wal-senders"} == expected
    assert found.named("wal-sender-timeout").evidence == "wal_sender_timeout = 0"
    assert not any(f.safe for f in found if f.severity is Severity.WARNING)


def test_their_fixes_end_the_warnings():
    """Settings in a file, so that ALTER SYSTEM, which is what the fixes are, can change them."""
    with EmbeddedPostgres(fast=True) as server, temporary_database(server.dsn()) as database:
        settings = ["max_slot_wal_keep_size = '1GB'", "wal_sender_timeout = 0"]
        if has_idle_timeout():
            settings.append("idle_replication_slot_timeout = '1min'")
        for setting in settings:
            database.execute(f"alter system set {setting}")
        database.execute("select pg_reload_conf()")
        with checked_source(database) as source:
            warned = settled(source, len(settings))
            for finding in warned:
                source.run(finding.sql if finding.severity is Severity.WARNING else ())
            assert settled(source, 0).warnings == set()


def settled(source, warnings: int):
    """The findings once the reload has reached new sessions; the test's timeout bounds it."""
    while len((found := source.check()).warnings) != warnings:
        continue
    return found


def test_room_for_stream_and_snapshot_is_counted(tight_source):
    """One slot and one walsender are there: enough for the stream, none left for a snapshot."""
    crowded = {"replication-slots", "wal-senders"}
    found = tight_source.check()
    assert found.warnings >= crowded
    assert found.named("replication-slots").evidence == "0 of max_replication_slots = 1 in use"
    assert "room for the stream only" in found.named("replication-slots").message
    tight_source.create_slot()
    found = tight_source.check()
    assert found.warnings >= crowded
    assert found.named("replication-slots").evidence == "1 of max_replication_slots = 1 in use"
    with tight_source.database.connect() as session:
        session.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots")
        session.execute("select pg_create_physical_replication_slot('another')")
        found = tight_source.check()
        session.execute("select pg_drop_replication_slot('another')")
    assert "replication-slots" in found.blockers
    assert "needs 2 more" in found.named("replication-slots").message


# -- the way to the server -------------------------------------------------------------------------


def own_address() -> str:
    """An address of this machine that is no loopback; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def test_an_open_connection_to_elsewhere_is_warned_of(tight_server):
    dsn = tight_server.dsn(host=own_address())
    with temporary_database(dsn) as database, checked_source(database) as source:
        found = source.check()
    assert found.named("encryption").severity is Severity.WARNING


def test_tls_counts_as_encrypted(tls_server):
    dsn = tls_server.dsn(sslmode="require")
    with temporary_database(dsn) as database, checked_source(database) as source:
        found = source.check()
    assert found.named("encryption").severity is Severity.OK
    assert "TLS" in found.named("encryption").message


@pytest.mark.parametrize(
    ("transport", "severity"),
    [
        (Transport("db.example.com", "203.0.113.7", False), Severity.WARNING),
        (Transport("db.example.com", "203.0.113.7", True), Severity.OK),
        (Transport("db.example.com", "2001:db8::7", False), Severity.WARNING),
        (Transport("localhost", "::1", False), Severity.OK),
        (Transport("localhost", "127.0.0.1", False), Severity.OK),
        (Transport("/run/postgresql", "", False), Severity.OK),
    ],
)
def test_only_what_leaves_the_machine_must_be_encrypted(transport, severity):
    assert transport_finding(transport).severity is severity


@pytest.mark.parametrize(
    ("version", "severity"),
    [
        (12, Severity.BLOCKER),
        (13, Severity.OK),
        (18, Severity.OK),
        (19, Severity.WARNING),
    ],
)
def test_only_versions_that_were_tested_are_fine(version, severity):
    assert version_finding(version, f"{version}.1").severity is severity


# -- rights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", ["", "nosuperuser noreplication createdb createrole"])
def test_a_role_without_replication_gets_the_sql_that_gives_it(source, attributes):
    role = source.role(attributes)
    finding = source.check(role=role).named("replication-right")
    assert finding.severity is Severity.BLOCKER
    assert finding.sql == (f'ALTER ROLE "{role}" REPLICATION',)
    assert "replication-connection" not in {f.name for f in source.check(role=role)}
    source.run(finding.sql)
    assert source.check(role=role).names(Severity.OK) >= {
        "replication-right",
        "replication-connection",
    }


def check_at(host: str, source: CheckedSource, role: str) -> Findings:
    """The findings of a server that goes by the name of `host`."""
    settings = source.settings()
    url = f"postgresql://{role}:{role}@{host}:{settings.port}/{settings.database}"
    named = PostgresConnection(type="postgres", url=f"{url}?hostaddr=127.0.0.1".replace(" ", "%20"))
    return Findings(check(named, source.slot, PUBLICATION, []))


def test_a_replication_connection_that_is_refused_is_a_finding(tight_source):
    """As by a pooler; here since a plain server knows nothing of rds_replication."""
    role = tight_source.role("")
    tight_source.execute(f'create role rds_replication; grant rds_replication to "{role}"')
    try:
        found = check_at("shop.eu-central-1.rds.amazonaws.com", tight_source, role)
    finally:
        tight_source.execute("drop role rds_replication")
    assert found.named("replication-right").severity is Severity.OK
    finding = found.named("replication-connection")
    assert finding.severity is Severity.BLOCKER
    assert re.search("to start wal ?sender", finding.message, re.IGNORECASE)


# -- managed services ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "sql", "fix"),
    [
        ("a.rds.amazonaws.com", "GRANT rds_replication TO {role}", "GRANT rds_replication"),
        ("a.neon.tech", None, "Neon console"),
        ("a.example.com", "ALTER ROLE {role} REPLICATION", "ALTER ROLE"),
    ],
)
def test_the_replication_right_is_given_in_the_services_own_way(source, host, sql, fix):
    role = source.role("")
    finding = check_at(host, source, role).named("replication-right")
    assert finding.sql == ((sql.format(role=f'"{role}"'),) if sql else ())
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("host", "prefixes", "name"),
    [
        ("ep-cool-rain-1.eu-central-1.aws.neon.tech", (), "Neon"),
        ("10.0.0.7", ("neon.",), "Neon"),
        ("x.abc.eu-central-1.rds.amazonaws.com", (), "Amazon RDS or Aurora"),
        ("X.ABC.EU-CENTRAL-1.RDS.AMAZONAWS.COM.", (), "Amazon RDS or Aurora"),
        ("10.0.0.7", ("plpgsql.", "rds."), "Amazon RDS or Aurora"),
        ("10.0.0.7", ("cloudsql.",), "Google Cloud SQL"),
        ("x.postgres.database.azure.com", (), "Azure Database for PostgreSQL"),
        ("neon.tech.example.com", ("plpgsql.",), "Postgres"),
        ("", (), "Postgres"),
    ],
)
def test_each_service_is_known_by_host_or_settings(host, prefixes, name):
    assert providers.detect(host, prefixes).name == name


@pytest.mark.parametrize("provider", providers.MANAGED, ids=lambda provider: provider.name)
def test_no_managed_service_is_told_to_alter_system(provider):
    """Their owners may not; every change has a console step instead."""
    server = Server(False, 18, False, "replica", 1, 0, 1, 0, "1MB", 1 << 20, "0", "1h", ())
    found = settings_findings(server, provider)
    changes = [finding for finding in found if finding.severity is not Severity.OK]
    assert len(changes) == 4
    assert all(finding.fix and not finding.sql for finding in changes)
    assert "ALTER SYSTEM" not in str(changes)
    assert "{" not in "".join(finding.fix for finding in changes)


@pytest.mark.parametrize(
    ("version", "feedback", "severity"),
    [
        (15, True, Severity.BLOCKER),  # it cannot decode
        (16, True, Severity.OK),
        (16, False, Severity.WARNING),  # its primary removes what the slot needs
    ],
)
def test_a_standby_is_a_source_since_16(version, feedback, severity):
    server = Server(True, version, feedback, "logical", 10, 0, 10, 0, "-1", -1, "1min", "0", ())
    (finding,) = [f for f in settings_findings(server, providers.PLAIN) if f.name == "primary"]
    assert finding.severity is severity
