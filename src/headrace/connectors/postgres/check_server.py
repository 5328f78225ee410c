"""Preflight of the server and the role: version, settings, rights and room for replication."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from headrace.connectors.postgres.providers import Provider, detect
from headrace.model.finding import Finding, Severity

OLDEST: Final = 13
NEWEST: Final = 18

# WAL that the server keeps for a slot is the time that a consumer may be away; databases busy
# enough to stream write some GiB an hour.
ENOUGH_WAL_BYTES: Final = 10 << 30

STANDBY_SINCE: Final = 16  # before, standbys decode nothing

STREAM_AND_SNAPSHOT: Final = 2  # walsenders at once: the stream, and a snapshot's temporary slot

# Settings of which a server has no such (NULL) came later: idle_replication_slot_timeout is of 18.
# pg_stat_replication shows one row per walsender, whoever asks. The prefixes tell managed services.
SERVER: Final = """
SELECT pg_catalog.pg_is_in_recovery() AS in_recovery,
       pg_catalog.current_setting('server_version_num')::int / 10000 AS version,
       pg_catalog.current_setting('hot_standby_feedback')::bool AS hot_standby_feedback,
       pg_catalog.current_setting('wal_level') AS wal_level,
       pg_catalog.current_setting('max_wal_senders')::int AS max_wal_senders,
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication)::int AS wal_senders,
       pg_catalog.current_setting('max_replication_slots')::int AS max_replication_slots,
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots)::int AS slots,
       pg_catalog.current_setting('max_slot_wal_keep_size') AS slot_wal_keep,
       pg_catalog.pg_size_bytes(pg_catalog.current_setting('max_slot_wal_keep_size'))
         AS slot_wal_keep_bytes,
       pg_catalog.current_setting('wal_sender_timeout') AS wal_sender_timeout,
       coalesce(pg_catalog.current_setting('idle_replication_slot_timeout', true), '0')
         AS idle_slot_timeout,
       ARRAY(SELECT DISTINCT pg_catalog.split_part(name, '.', 1) || '.'
               FROM pg_catalog.pg_settings WHERE name LIKE '%.%') AS prefixes
"""

# The role that the session runs as, and which of the roles named is it a member of.
ROLE: Final = """
SELECT r.rolname AS name, r.rolsuper AS superuser, r.rolreplication AS replication,
       ARRAY(SELECT m.rolname::text FROM pg_catalog.pg_roles m
              WHERE m.rolname = ANY (%s) AND pg_catalog.pg_has_role(r.oid, m.oid, 'MEMBER')
              ORDER BY 1) AS member_of,
       pg_catalog.has_database_privilege(r.oid, d.oid, 'CREATE') AS may_create,
       d.datname AS database
  FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
 WHERE r.rolname = current_user AND d.datname = pg_catalog.current_database()
"""


@dataclass(frozen=True)
class Server:
    """A row of SERVER, with the texts of settings as SHOW prints them."""

    in_recovery: bool
    version: int
    hot_standby_feedback: bool
    wal_level: str
    max_wal_senders: int
    wal_senders: int
    max_replication_slots: int
    slots: int
    slot_wal_keep: str
    slot_wal_keep_bytes: int
    wal_sender_timeout: str
    idle_slot_timeout: str
    prefixes: Sequence[str]


@dataclass(frozen=True)
class Role:
    """A row of ROLE; `may_create` is CREATE on the database, which publications need."""

    name: str
    superuser: bool
    replication: bool
    member_of: Sequence[str]
    may_create: bool
    database: str

    @property
    def quoted(self) -> str:
        return sql.Identifier(self.name).as_string(None)

    @property
    def may_replicate(self) -> bool:
        return self.superuser or self.replication or bool(self.member_of)


@dataclass(frozen=True)
class Transport:
    """How the session reached the server."""

    host: str
    address: str  # its IP address; empty for a Unix socket
    encrypted: bool

    @property
    def is_local(self) -> bool:
        return not self.address or ipaddress.ip_address(self.address).is_loopback


def read_transport(session: psycopg.Connection[Any]) -> Transport:
    return Transport(session.info.host, session.info.hostaddr, session.pgconn.ssl_in_use)


def read_server(session: psycopg.Connection[Any]) -> Server:
    with session.cursor(row_factory=class_row(Server)) as cursor:
        return cursor.execute(SERVER).fetchall()[0]


def read_role(session: psycopg.Connection[Any], provider: Provider) -> Role:
    with session.cursor(row_factory=class_row(Role)) as cursor:
        return cursor.execute(ROLE, (list(provider.replication_roles),)).fetchall()[0]


def provider_of(transport: Transport, server: Server) -> Provider:
    return detect(transport.host, server.prefixes)


# -- findings --------------------------------------------------------------------------------------


def transport_finding(transport: Transport) -> Finding:
    """Whether others on the way can read rows and watch the login."""
    if transport.encrypted:
        return Finding(Severity.OK, "encryption", "the connection is encrypted (TLS)")
    if transport.is_local:
        return Finding(Severity.OK, "encryption", "the connection does not leave this machine")
    return Finding(
        Severity.WARNING,
        "encryption",
        f"the connection to {transport.host} is not encrypted: rows travel readable",
        evidence="TLS is not in use",
        fix="set sslmode: verify-full (and sslrootcert:) for this connection in headrace.yaml",
    )


def version_finding(version: int, text: str) -> Finding:
    """Only versions whose replication was tested are fine.

    `version` is the major number, `text` what the server calls itself.
    """
    evidence = f"server_version = {text}"
    if version < OLDEST:
        return Finding(
            Severity.BLOCKER,
            "server-version",
            f"Postgres {text} is too old: Headrace replicates from {OLDEST} on",
            evidence=evidence,
            fix=f"upgrade the server to Postgres {OLDEST} or later",
        )
    if version > NEWEST:
        return Finding(
            Severity.WARNING,
            "server-version",
            f"Postgres {text} is newer than this Headrace knows ({NEWEST})",
            evidence=evidence,
            fix="look for a newer Headrace: pip install --upgrade headrace",
        )
    return Finding(Severity.OK, "server-version", f"Postgres {text}")


def settings_findings(server: Server, provider: Provider) -> list[Finding]:
    """What the server's own settings allow."""
    return [
        _primary(server, provider),
        _wal_level(server, provider),
        _slot_wal_keep(server, provider),
        _idle_slot_timeout(server, provider),
        _wal_sender_timeout(server, provider),
    ]


def _primary(server: Server, provider: Provider) -> Finding:
    """A standby is read from, but publications are made on its primary."""
    if not server.in_recovery:
        return Finding(Severity.OK, "primary", "the server is a primary")
    if server.version < STANDBY_SINCE:
        return Finding(
            Severity.BLOCKER,
            "primary",
            f"the server is a standby, which Postgres can decode from since {STANDBY_SINCE}",
            evidence="pg_is_in_recovery() = true",
            fix="give host and port of the primary in headrace.yaml",
        )
    if server.hot_standby_feedback:
        return Finding(Severity.OK, "primary", "the server is a standby; its primary keeps rows")
    return _parameter_warning(
        provider,
        "primary",
        "the server is a standby of whose needs its primary does not know: once that removes "
        "catalog rows that the slot needs, the slot is lost",
        "hot_standby_feedback",
        "pg_is_in_recovery() = true, hot_standby_feedback = off",
        "on",
    )


def _wal_level(server: Server, provider: Provider) -> Finding:
    evidence = f"wal_level = {server.wal_level}"
    if server.wal_level == "logical":
        return Finding(Severity.OK, "wal-level", evidence)
    statements = ("ALTER SYSTEM SET wal_level = 'logical'",) if provider.parameter_is_sql else ()
    return Finding(
        Severity.BLOCKER,
        "wal-level",
        "the server does not write what logical replication needs to its WAL",
        ("wal_level",),
        evidence,
        provider.wal_level,
        statements,
    )


def _slot_wal_keep(server: Server, provider: Provider) -> Finding:
    setting = "max_slot_wal_keep_size"
    evidence = f"{setting} = {server.slot_wal_keep}"
    if server.slot_wal_keep_bytes < 0:
        return Finding(Severity.OK, "slot-wal-keep-size", f"{evidence}: WAL is kept without limit")
    if server.slot_wal_keep_bytes >= ENOUGH_WAL_BYTES:
        return Finding(Severity.OK, "slot-wal-keep-size", evidence)
    return _parameter_warning(
        provider,
        "slot-wal-keep-size",
        f"the slot is lost, and tables are copied anew, once it lags {server.slot_wal_keep} of WAL",
        setting,
        evidence,
        f"{ENOUGH_WAL_BYTES >> 30}GB",
    )


def _idle_slot_timeout(server: Server, provider: Provider) -> Finding:
    setting = "idle_replication_slot_timeout"
    if server.idle_slot_timeout == "0":
        return Finding(Severity.OK, "idle-slot-timeout", "idle slots are kept")
    return _parameter_warning(
        provider,
        "idle-slot-timeout",
        f"the slot is lost, and tables are copied anew, if Headrace is not connected for "
        f"{server.idle_slot_timeout}; a schedule with longer pauses always is",
        setting,
        f"{setting} = {server.idle_slot_timeout}",
        "0",
    )


def _wal_sender_timeout(server: Server, provider: Provider) -> Finding:
    setting = "wal_sender_timeout"
    evidence = f"{setting} = {server.wal_sender_timeout}"
    if server.wal_sender_timeout != "0":
        return Finding(Severity.OK, "wal-sender-timeout", evidence)
    return _parameter_warning(
        provider,
        "wal-sender-timeout",
        "the server never gives up a dead connection: after a network failure the slot stays "
        "active, and Headrace cannot reconnect to it",
        setting,
        evidence,
        "60s",
    )


def _parameter_warning(
    provider: Provider, name: str, message: str, setting: str, evidence: str, value: str
) -> Finding:
    advice = provider.parameter.format(setting=setting, value=value)
    if not provider.parameter_is_sql:
        return Finding(Severity.WARNING, name, message, (setting,), evidence, advice)
    statements = (advice, "SELECT pg_catalog.pg_reload_conf()")
    fix = f"as superuser: {'; '.join(statements)}"
    return Finding(Severity.WARNING, name, message, (setting,), evidence, fix, statements)


def role_finding(role: Role, provider: Provider) -> Finding:
    """Whether the role may open a replication connection."""
    if role.may_replicate:
        return Finding(Severity.OK, "replication-right", f"role {role.quoted} may replicate")
    advice = provider.grant.format(user=role.quoted)
    return Finding(
        Severity.BLOCKER,
        "replication-right",
        f"role {role.quoted} may not replicate",
        (role.name,),
        "neither superuser nor REPLICATION"
        + "".join(f" nor member of {name}" for name in provider.replication_roles),
        f"as an administrator: {advice}" if provider.grant_is_sql else advice,
        (advice,) if provider.grant_is_sql else (),
    )


def capacity_findings(
    server: Server, provider: Provider, *, slot_exists: bool, slot_active: bool
) -> list[Finding]:
    """Room for our slot and walsender, and for one more of each during snapshots."""
    slots = STREAM_AND_SNAPSHOT - slot_exists
    senders = STREAM_AND_SNAPSHOT - slot_active
    return [
        _capacity(
            provider,
            "replication-slots",
            "max_replication_slots",
            (server.slots, server.max_replication_slots, slots),
            "drop a slot that nobody uses (SELECT * FROM pg_replication_slots)",
        ),
        _capacity(
            provider,
            "wal-senders",
            "max_wal_senders",
            (server.wal_senders, server.max_wal_senders, senders),
            "stop another replication client (SELECT * FROM pg_stat_replication)",
        ),
    ]


def _capacity(
    provider: Provider, name: str, setting: str, counts: tuple[int, int, int], other_way: str
) -> Finding:
    used, limit, needed = counts
    evidence = f"{used} of {setting} = {limit} in use"
    if limit - used >= needed:
        return Finding(Severity.OK, name, evidence)
    value = max(used + needed, 10)  # 10 is Postgres' own default of both
    advice = provider.parameter.format(setting=setting, value=value)
    enough = limit - used >= needed - 1
    return Finding(
        Severity.WARNING if enough else Severity.BLOCKER,
        name,
        f"{setting} has room for the stream only: snapshots have to find their LSN in the change "
        "log, which a busy source makes slow"
        if enough
        else f"Headrace needs {needed} more of {setting}: for the stream, and for snapshots",
        (setting,),
        evidence,
        f"{advice} (and restart the server), or {other_way}",
        (advice,) if provider.parameter_is_sql else (),
    )
