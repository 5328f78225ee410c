"""From settings to sessions: connection strings, and sessions whose output is always the same.

A server's or role's own DateStyle, TimeZone and so on would change how values are written as text;
every session of ours pins them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headrace.config.connections import PostgresConnection
from headrace.errors import (
    ConfigError,
    HeadraceError,
    SenderRefusedError,
    SourceError,
    SourceUnavailableError,
)

__all__ = [
    "LIFT_LIMITS",
    "PINNED",
    "PostgresConnection",
    "address",
    "connect",
    "connection_error",
    "conninfo",
    "session",
]

PINNED: Final = (
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "iso_8601"),
    ("extra_float_digits", "3"),  # floats read back bit by bit, on servers before 12 too
    ("bytea_output", "hex"),
    ("statement_timeout", "0"),  # a role's limits for people would cut a snapshot short
    ("idle_in_transaction_session_timeout", "0"),
    ("lock_timeout", "0"),
    ("quote_all_identifiers", "off"),  # names that the catalog prints are compared
)

# Limits that came with 14 and 17, where they exist: options that a server does not know it refuses.
LIFT_LIMITS: Final = """
SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings
 WHERE name IN ('idle_session_timeout', 'transaction_timeout')
"""

_DEFAULTS: Final = {"client_encoding": "UTF8", "application_name": "headrace"}

# Probes of an idle connection that may be lost before it counts as dead.
_PROBES: Final = 3

# Connection errors carry no SQLSTATE: only libpq's or the server's text tells them apart.
_KNOWN_FAILURES: Final[tuple[tuple[str, type[HeadraceError], str], ...]] = (
    (
        r'exceeds "?max_wal_senders',
        SenderRefusedError,
        "raise max_wal_senders on the server, or stop another replication client",
    ),
    (
        r"too many (clients|connections)|connection slots are reserved",
        SourceUnavailableError,
        "raise max_connections on the server, or close other sessions",
    ),
    (
        r"starting up|shutting down|recovery mode|not yet accepting|administrator command",
        SourceUnavailableError,
        "wait until the server is up; Headrace tries again",
    ),
    (
        r"replication role to start walsender|permission denied to start WAL sender",
        SourceError,
        "ALTER ROLE {user} REPLICATION",
    ),
    (
        r"password authentication failed|no password supplied|authentication method requirement",
        SourceError,
        "check user and password of this connection; the environment variable may be outdated",
    ),
    (
        r"certificate|SSL error|does not match host name",
        SourceError,
        "check sslmode, sslrootcert and host: verify-full needs the authority's file and the "
        "name that the certificate bears",
    ),
    (
        r"does not support SSL|SSL is not enabled",
        SourceError,
        "enable ssl on the server, or set sslmode: prefer to accept an open connection",
    ),
    (
        r"no encryption|SSL required|requires? (SSL|TLS)",
        SourceError,
        "the server wants TLS: set sslmode: require, or better verify-full",
    ),
    (
        r"no pg_hba.conf entry",
        SourceError,
        "let the server's pg_hba.conf admit this host, user and database",
    ),
    (
        r"unsupported startup parameter",
        SourceError,
        "a pooler stands before the server: give host and port of the server itself; "
        "replication does not pass through poolers",
    ),
    (r"role .* does not exist|not permitted to log in", SourceError, "check user"),
    (r"database .* does not exist", SourceError, "check database: psql -l lists those there are"),
    (
        r"translate host name|Name or service not known|resolve host",
        SourceUnavailableError,
        "check host, and that this machine can resolve it",
    ),
)
_UNREACHABLE: Final = "check host and port, that the server is up, and that no firewall is between"


_Result = TypeVar("_Result")


class _Session(psycopg.Connection[tuple[Any, ...]]):
    """A session that gives up a server which says nothing for `patience` seconds.

    The kernel notices a peer that is gone. What it cannot notice is something on the way (a proxy,
    a load balancer) that acknowledges all we send and forwards nothing.
    """

    patience: float | None = None

    def wait(self, gen: Generator[Any, Any, _Result], *args: Any, **named: Any) -> _Result:
        return super().wait(gen if self.patience is None else self._patient(gen), *args, **named)

    def _patient(self, gen: Generator[Any, Any, _Result]) -> Generator[Any, Any, _Result]:
        """What psycopg waits for; it is told of each moment in which nothing came, too."""
        assert self.patience is not None
        until, ready = time.monotonic() + self.patience, None
        while True:
            try:
                wanted = gen.send(ready)
            except StopIteration as end:
                found: _Result = end.value
                return found
            ready = yield wanted
            if ready:
                until = time.monotonic() + self.patience
            elif time.monotonic() > until:
                self.close()
                raise psycopg.OperationalError(f"no answer for {self.patience:g} s")


def conninfo(settings: PostgresConnection, *, pinned: bool = True) -> str:
    """libpq's connection string, secrets included: hand it to a driver, never to a person.

    `pinned` puts PINNED into `options`; some poolers refuse that, and sessions then SET them.

    Raises:
        ConfigError: `url` is not a connection URL.
    """
    parameters = _parameters(settings)
    if pinned:
        ours = " ".join(f"-c {name}={value}" for name, value in PINNED)
        parameters["options"] = f"{parameters.get('options') or ''} {ours}".strip()
    return make_conninfo("", **parameters)


def connect(
    settings: PostgresConnection, *, replication: bool = False, prompt: bool = False
) -> psycopg.Connection[tuple[Any, ...]]:
    """An autocommit session with PINNED settings; a walsender's with `replication`.

    One that is `prompt` is for queries that are answered at once: a server that does not, for
    `connection_timeout`, counts as away.

    Raises:
        SourceUnavailableError: the server cannot be reached for now.
        SourceError: the server refuses us (password, rights, TLS, database …).
        ConfigError: `url` is not a connection URL.
    """
    text = conninfo(settings, pinned=replication)
    if replication:
        text = make_conninfo(text, replication="database")
    try:
        session = _Session.connect(text, autocommit=True)
    except psycopg.Error as error:
        raise connection_error(error, settings) from error
    session.patience = settings.connection_timeout
    _pin(session, settings, replication=replication)
    if not prompt:
        session.patience = None
    return session


@contextmanager
def session(
    settings: PostgresConnection, *, replication: bool = False, prompt: bool = False
) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A session for the length of a block, as `connect` makes it; what goes wrong inside comes out
    as ours.

    Raises:
        SourceUnavailableError: the connection was lost, or the server is too busy.
        SourceError: the server refused a query.
    """
    connection = connect(settings, replication=replication, prompt=prompt)
    try:
        with connection:
            yield connection
    except psycopg.Error as error:
        raise query_error(error, settings) from error


# SQLSTATE classes that pass: connection, resources, operator's intervention, locks and deadlocks.
_PASSING: Final = ("08", "53", "57", "55P03", "40")


def query_error(error: psycopg.Error, settings: PostgresConnection) -> HeadraceError:
    """What `error`, met in a session, means, and what to do."""
    message = f"{address(settings)}: {str(error).strip()}"
    if error.sqlstate is None or error.sqlstate.startswith(_PASSING):
        return SourceUnavailableError(message, hint="Headrace tries again; see the server's log")
    return SourceError(message, hint="headrace check names the rights that the role lacks")


def connection_error(error: psycopg.Error, settings: PostgresConnection) -> HeadraceError:
    """What `error`, met while connecting, means, and what to do."""
    text = "; ".join(dict.fromkeys(line.strip() for line in str(error).splitlines()))
    message = f"cannot connect to {address(settings)}: {text}"
    user = _parameters(settings).get("user") or ""
    for pattern, kind, hint in _KNOWN_FAILURES:
        if re.search(pattern, text, re.IGNORECASE):
            return kind(message, hint=hint.format(user='"{}"'.format(user.replace('"', '""'))))
    return SourceUnavailableError(message, hint=_UNREACHABLE)


def address(settings: PostgresConnection) -> str:
    """`user@host:port/database`, for people."""
    parts = {"port": "5432", **_parameters(settings)}
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"{parts.get('user', '')}@{host}:{parts['port']}/{parts.get('dbname', '')}"


def _parameters(settings: PostgresConnection) -> dict[str, str]:
    """libpq's parameters: our defaults, then the URL's, then the settings' own."""
    password = settings.password
    given: dict[str, str | None] = {
        "sslmode": settings.sslmode,
        "sslrootcert": settings.sslrootcert,
        "sslcert": settings.sslcert,
        "sslkey": settings.sslkey,
        "password": None if password is None else password.get_secret_value(),
    }
    if settings.url is None:
        given |= {"host": settings.host, "port": str(settings.port)}
        given |= {"dbname": settings.database, "user": settings.user}
    base = {} if settings.url is None else _url_parameters(settings.url.get_secret_value())
    defaults = {**_DEFAULTS, **_patience(settings.connection_timeout)}
    return {**defaults, **base, **{k: v for k, v in given.items() if v is not None}}


def _patience(seconds: float) -> dict[str, str]:
    """libpq's "Parameter Key Words" that have a dead peer noticed after so many seconds: while
    connecting, while nothing is said (keepalives), and while what we sent is not acknowledged."""
    whole = max(int(seconds), 2)
    return {
        "connect_timeout": str(whole),
        "keepalives": "1",
        "keepalives_idle": str(whole // 2),
        "keepalives_interval": str(max(whole // 2 // _PROBES, 1)),
        "keepalives_count": str(_PROBES),
        "tcp_user_timeout": str(int(seconds * 1000)),
    }


def _url_parameters(url: str) -> dict[str, str]:
    with suppress(psycopg.ProgrammingError):  # its text quotes the URL, with the password
        return {name: str(value) for name, value in conninfo_to_dict(url).items()}
    raise ConfigError(
        "url is not a Postgres connection URL",
        hint="write postgresql://user@host:port/database; percent-encode special characters",
    )


def _pin(
    session: psycopg.Connection[Any], settings: PostgresConnection, *, replication: bool
) -> None:
    """What `options` did not say; a walsender takes no parameters, and got PINNED by them."""
    calls = ", ".join(["pg_catalog.set_config(%s, %s, false)"] * len(PINNED))
    try:
        if not replication:
            session.execute(f"SELECT {calls}", [part for setting in PINNED for part in setting])
        session.execute(LIFT_LIMITS)
    except psycopg.Error as error:
        session.close()
        raise connection_error(error, settings) from error
