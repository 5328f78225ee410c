"""Connections to Postgres: from settings to libpq, and every failure to connect told apart.

All sessions pin the output settings that decide what a value looks like as text, so that the stream
and a snapshot print it alike, whatever the role's or the database's defaults are.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from headrace.config import PostgresConnection
from headrace.errors import SourceError, SourceUnavailableError

PINNED: Final = {
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "3",
    "bytea_output": "hex",
}

CONNECT_TIMEOUT: Final = 10  # seconds; connecting across an ocean takes less than one

# A dead peer is noticed within half a minute even by a session that only waits.
KEEPALIVES: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


def conninfo(settings: PostgresConnection) -> str:
    """libpq's connection string, password included: never to be shown."""
    given = {
        "host": settings.host,
        "port": settings.port,
        "dbname": settings.database,
        "user": settings.user,
        "password": settings.password and settings.password.get_secret_value(),
    }
    address = given if settings.url is None else {}
    tls = {
        "sslmode": settings.sslmode,
        "sslrootcert": settings.sslrootcert,
        "sslcert": settings.sslcert,
        "sslkey": settings.sslkey,
    }
    known = {key: value for key, value in {**address, **tls}.items() if value is not None}
    return make_conninfo(
        settings.url.get_secret_value() if settings.url is not None else "",
        **known,
        **KEEPALIVES,
        application_name="headrace",
        connect_timeout=CONNECT_TIMEOUT,
        client_encoding="UTF8",
        options=" ".join(f"-c {name}={value}" for name, value in PINNED.items()),
    )


def connect(
    settings: PostgresConnection, *, replication: bool = False
) -> psycopg.Connection[Any]:
    """A session in autocommit; with `replication` a walsender of the database.

    Raises:
        SourceUnavailableError: nobody answers, for now.
        SourceError: the server refuses, which waiting does not change.
    """
    more = {"replication": "database"} if replication else {}
    try:
        return psycopg.connect(make_conninfo(conninfo(settings), **more), autocommit=True)
    except psycopg.OperationalError as error:
        raise _refused(str(error).strip(), address(settings)) from error


def address(settings: PostgresConnection) -> str:
    """`user@host:port/database`, for messages."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo(settings))
    return f"{parts.get('user')}@{parts.get('host')}:{parts.get('port')}/{parts.get('dbname')}"


# While connecting, psycopg has the server's message but no SQLSTATE; these are its fixed texts.
_REFUSALS: Final = (
    ("password authentication failed", "check user and password in headrace.yaml"),
    ("no password supplied", "set password: ${NAME} in headrace.yaml, and NAME in the environment"),
    ("no pg_hba.conf entry", "allow this host in pg_hba.conf, or set sslmode: require"),
    ("does not exist", "check database and user in headrace.yaml"),
    ("permission denied to start WAL sender", "ALTER ROLE <role> REPLICATION;"),
    ("must be superuser or replication role", "ALTER ROLE <role> REPLICATION;"),
    ("certificate", "check sslmode and sslrootcert in headrace.yaml, and the host's name"),
    ("does not support SSL", "set sslmode: prefer, or switch TLS on at the server"),
    ("SSL error", "check sslmode and sslrootcert in headrace.yaml"),
    ("could not translate host name", "check host in headrace.yaml"),
    ("authentication method requirement", "check how the server authenticates this role"),
)
_OVERLOADS: Final = (
    ("max_wal_senders", "raise max_wal_senders, or stop other replication connections"),
    ("too many clients", "raise max_connections, or close other sessions"),
    ("remaining connection slots", "raise max_connections, or close other sessions"),
)


def _refused(message: str, where: str) -> SourceError:
    for text, hint in _REFUSALS:
        if text in message:
            return SourceError(f"cannot connect to {where}: {message}", hint=hint)
    for text, hint in _OVERLOADS:
        if text in message:
            return SourceUnavailableError(f"cannot connect to {where}: {message}", hint=hint)
    return SourceUnavailableError(
        f"cannot connect to {where}: {message}",
        hint="check host and port in headrace.yaml, and that the server is up",
    )
