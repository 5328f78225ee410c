"""From settings to sessions: what is pinned, what a refusal means, and that no secret shows."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo as libpq
from psycopg import sql
from pydantic import SecretStr

from headrace.config import PostgresConnection
from headrace.connectors.postgres.config import address, connect, connection_error, conninfo
from headrace.errors import ConfigError, SourceError, SourceUnavailableError
from headrace.testing.database import Database
from headrace.testing.postgres import EmbeddedPostgres

SECRET = "tr0ub4dor & 3 'quoted' %40 \\"
PINS = """
SELECT current_setting('DateStyle'), current_setting('TimeZone'), current_setting('IntervalStyle'),
       current_setting('extra_float_digits'), current_setting('bytea_output'),
       current_setting('client_encoding'), current_setting('statement_timeout')
"""
PINNED = ("ISO", "UTC", "iso_8601", "3", "hex", "UTF8", "0")


def settings_for(dsn: str, **changes: Any) -> PostgresConnection:
    given = libpq.conninfo_to_dict(dsn)
    parts = {
        "host": given["host"],
        "port": given["port"],
        "database": given["dbname"],
        "user": given["user"],
        "password": given["password"],
    }
    return PostgresConnection(type="postgres", **{**parts, **changes})


@contextmanager
def role(database: Database, attributes: str) -> Iterator[PostgresConnection]:
    """A role with a difficult name and password, gone afterwards."""
    user = f'odd "role" {database.name}'
    name = sql.Identifier(user)
    with database.connect() as admin:
        create = sql.SQL("CREATE ROLE {} PASSWORD {} {}")
        admin.execute(create.format(name, sql.Literal(SECRET), sql.SQL(attributes)))
    try:
        yield settings_for(database.dsn, user=user, password=SECRET)
    finally:
        with database.connect() as admin:
            admin.execute(sql.SQL("DROP ROLE {}").format(name))


def pins_of(session: psycopg.Connection[Any]) -> tuple[Any, ...]:
    row = session.execute(PINS).fetchone()
    assert row is not None
    return (row[0].partition(",")[0], *row[1:])


def test_sessions_print_values_alike_whatever_the_role_s_defaults_are(database):
    with role(database, "LOGIN REPLICATION") as settings:
        odd = {
            "DateStyle": "German",
            "TimeZone": "Asia/Kathmandu",
            "IntervalStyle": "sql_standard",
            "extra_float_digits": "-5",
            "bytea_output": "escape",
            "statement_timeout": "1h",
        }
        with database.connect() as admin:
            for name, value in odd.items():
                alter = sql.SQL("ALTER ROLE {} SET {} = {}").format(
                    sql.Identifier(settings.user), sql.Identifier(name), sql.Literal(value)
                )
                admin.execute(alter)
        with connect(settings) as session:
            assert pins_of(session) == PINNED
        with connect(settings, replication=True) as walsender:
            assert pins_of(walsender) == PINNED
        with psycopg.connect(conninfo(settings)) as driver:
            assert pins_of(driver) == PINNED


def test_a_session_needs_no_startup_options_which_poolers_refuse(database):
    settings = settings_for(database.dsn)
    assert "options" not in libpq.conninfo_to_dict(conninfo(settings, pinned=False))
    with connect(settings) as session:
        assert "options" not in session.info.get_parameters()
        assert session.autocommit


def test_a_replication_session_is_a_walsender_of_the_database(database):
    with connect(settings_for(database.dsn), replication=True) as walsender:
        result = walsender.pgconn.exec_(b"IDENTIFY_SYSTEM")
        assert result.get_value(0, 3) == database.name.encode()


def test_a_url_stands_in_place_of_the_parts_and_the_parts_win_over_its_parameters(database):
    given = libpq.conninfo_to_dict(database.dsn)
    url = (
        f"postgresql://{given['user']}:wrong@{given['host']}:{given['port']}/{given['dbname']}"
        "?application_name=mine&options=-c%20work_mem%3D7MB"
    )
    settings = PostgresConnection(type="postgres", url=url, password=given["password"])
    with connect(settings) as session:
        assert session.execute("SELECT current_setting('work_mem')").fetchone() == ("7MB",)
        assert session.info.get_parameters()["application_name"] == "mine"
    with psycopg.connect(conninfo(settings)) as driver:
        assert driver.execute("SELECT current_setting('work_mem')").fetchone() == ("7MB",)
        assert pins_of(driver) == PINNED
    assert address(settings) == f"postgres@{given['host']}:{given['port']}/{database.name}"


# -- refusals --------------------------------------------------------------------------------------


def refusal(settings: PostgresConnection, **how: bool) -> SourceError:
    with pytest.raises(SourceError) as caught:
        connect(settings, **how)
    error = caught.value
    shown = "".join(traceback.format_exception(error)) + repr(error.context)
    assert settings.password is None or settings.password.get_secret_value() not in shown
    assert f"cannot connect to {address(settings)}: " in error.message
    assert error.hint
    return error


def test_a_wrong_password_is_no_passing_fault(database):
    error = refusal(settings_for(database.dsn, password=SecretStr(SECRET)))
    assert "password authentication failed" in error.message
    assert "check user and password" in error.hint
    assert not error.transient


def test_a_missing_database_and_role_are_named(database):
    assert "psql -l" in refusal(settings_for(database.dsn, database="no such")).hint
    assert "password" in refusal(settings_for(database.dsn, user="no such")).hint


def test_a_role_that_may_not_replicate_gets_the_statement_that_lets_it(database):
    with role(database, "LOGIN") as settings:
        error = refusal(settings, replication=True)
        assert not error.transient
        with database.connect() as admin:
            admin.execute(error.hint.encode())
        connect(settings, replication=True).close()


def test_a_role_that_may_not_log_in_is_no_passing_fault(database):
    with role(database, "NOLOGIN") as settings:
        assert "not permitted to log in" in refusal(settings).message


def test_nobody_at_the_port_is_a_passing_fault(database):
    with EmbeddedPostgres(fast=True) as server:
        settings = settings_for(server.dsn())
        connect(settings).close()
        server.stop()
        error = refusal(settings)
        assert isinstance(error, SourceUnavailableError)
        assert "that the server is up" in error.hint


def test_an_unknown_host_is_a_passing_fault(database):
    error = refusal(settings_for(database.dsn, host="no-such-host.invalid"))
    assert isinstance(error, SourceUnavailableError)
    assert "check host" in error.hint


def test_a_full_server_is_a_passing_fault():
    few = {"max_connections": "4", "superuser_reserved_connections": "0", "max_wal_senders": "1"}
    with EmbeddedPostgres(few, fast=True) as server, ExitStack() as sessions:
        settings = settings_for(server.dsn())
        sessions.enter_context(connect(settings, replication=True))
        error = refusal(settings, replication=True)
        assert isinstance(error, SourceUnavailableError)
        assert "max_wal_senders" in error.hint
        for _ in range(int(few["max_connections"])):
            sessions.enter_context(connect(settings))
        error = refusal(settings)
        assert isinstance(error, SourceUnavailableError)
        assert "max_connections" in error.hint


@pytest.mark.parametrize(
    "text",
    [
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is shutting down",
        "FATAL:  the database system is not yet accepting connections",
        "connection timeout expired",
        "something that a later version says",
    ],
)
def test_what_time_may_cure_is_tried_again(database, text):
    error = connection_error(psycopg.OperationalError(text), settings_for(database.dsn))
    assert isinstance(error, SourceUnavailableError)
    assert error.hint


def test_a_pooler_that_refuses_options_is_recognized(database):
    text = "FATAL:  unsupported startup parameter in options: datestyle"
    error = connection_error(psycopg.OperationalError(text), settings_for(database.dsn))
    assert "pooler" in error.hint
    assert not error.transient


def test_14_a_url_that_libpq_cannot_read_is_not_quoted():
    settings = PostgresConnection(type="postgres", url="postgresql://u:s3cret%zz@h/d")
    with pytest.raises(ConfigError) as caught:
        connect(settings)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def verified(tls_server, certificates) -> dict[str, Any]:
    return {"host": "localhost", "sslmode": "verify-full", "sslrootcert": str(certificates.ca)}


def in_use(session: psycopg.Connection[Any]) -> bool:
    query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    return session.execute(query).fetchone() == (True,)


def test_a_verified_connection_is_encrypted_also_for_replication(tls_server, verified):
    settings = settings_for(tls_server.dsn(), **verified)
    with connect(settings) as session:
        assert in_use(session)
    with connect(settings, replication=True) as walsender:
        assert walsender.pgconn.ssl_in_use


def test_a_certificate_for_another_name_is_refused(tls_server, verified):
    error = refusal(settings_for(tls_server.dsn(), **{**verified, "host": "127.0.0.1"}))
    assert "does not match host name" in error.message
    assert "verify-full" in error.hint
    assert not error.transient


@pytest.mark.parametrize("authority", ["system", "/no/such/file.crt", None])
def test_a_certificate_of_an_unknown_authority_is_refused(tls_server, verified, authority):
    settings = settings_for(tls_server.dsn(), **{**verified, "sslrootcert": authority})
    assert "sslrootcert" in refusal(settings).hint


def test_a_server_that_wants_tls_says_so(tls_server):
    error = refusal(settings_for(tls_server.dsn(), sslmode="disable"))
    assert "sslmode: require" in error.hint


def test_a_server_without_tls_says_so(postgres_server):
    error = refusal(settings_for(postgres_server.dsn(), sslmode="require"))
    assert "enable ssl on the server" in error.hint
    assert not error.transient


def test_the_root_certificate_s_default_place_is_not_ours(tmp_path: Path, tls_server, verified):
    (tmp_path / "ca.crt").write_bytes(Path(verified["sslrootcert"]).read_bytes())
    moved = {**verified, "sslrootcert": str(tmp_path / "ca.crt")}
    connect(settings_for(tls_server.dsn(), **moved)).close()


def test_invariant_13_the_kernel_gives_up_a_peer_that_is_silent_for_connection_timeout(
    database: Database,
) -> None:
    """Asked of the sockets themselves, as only the network could show it."""
    for replication in (False, True):
        patient = settings_for(database.dsn, connection_timeout="8s")
        with (
            connect(patient, replication=replication) as session,
            socket.socket(fileno=os.dup(session.fileno())) as wire,
        ):
            idle, interval, probes, unacknowledged = (
                wire.getsockopt(socket.IPPROTO_TCP, option)
                for option in (
                    socket.TCP_KEEPIDLE,
                    socket.TCP_KEEPINTVL,
                    socket.TCP_KEEPCNT,
                    socket.TCP_USER_TIMEOUT,
                )
            )
        assert idle + interval * probes <= 8
        assert unacknowledged == 8000
