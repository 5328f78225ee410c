"""Preflight of a Postgres source: everything that would make a run fail or lose rows, beforehand.

Each part reads its rows from the catalogs once and judges them by plain functions; this module
puts the parts in order and applies the fixes that are safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import psycopg

from headrace.connectors.postgres.check_publication import (
    Publication,
    publication_findings,
    read_publication,
)
from headrace.connectors.postgres.check_server import (
    OLDEST,
    Role,
    Server,
    capacity_findings,
    provider_of,
    read_role,
    read_server,
    read_transport,
    role_finding,
    settings_findings,
    transport_finding,
    version_finding,
)
from headrace.connectors.postgres.check_slot import (
    failover_findings,
    order_finding,
    read_standbys,
    slot_findings,
)
from headrace.connectors.postgres.check_tables import read_tables, table_findings
from headrace.connectors.postgres.config import PostgresConnection, address, connect
from headrace.connectors.postgres.slot_state import SlotState, slot_state
from headrace.connectors.postgres.slots import FAILOVER_SINCE
from headrace.connectors.postgres.two_phase import disagreement
from headrace.errors import HeadraceError, SourceError, SourceUnavailableError
from headrace.model import TableId
from headrace.model.finding import Finding, Severity

# A fix waits no longer for a lock: all who want the table afterwards would queue up behind it.
LOCK_TIMEOUT: Final = "5s"

# An UPDATE of a table that is published without a replica identity fails: identities come first.
FIRST: Final = "replica-identity"


def check(
    settings: PostgresConnection, slot: str, publication: str, tables: Sequence[TableId]
) -> list[Finding]:
    """Everything looked at, in the order of looking; what is fine too, as OK.

    A server that cannot be reached, or refuses us, is a finding like any other.

    Raises:
        SourceUnavailableError: the connection was lost meanwhile.
        SourceError: the server refused a query.
    """
    try:
        session = connect(settings)
    except HeadraceError as error:
        return [_unreachable("reachable", error)]
    reachable = Finding(Severity.OK, "reachable", f"connected to {address(settings)}")
    with session:
        try:
            return [reachable, *_look(session, settings, slot, publication, tables)]
        except psycopg.Error as error:
            raise _failed(session, f"cannot check {address(settings)}", error) from error


def _unreachable(name: str, error: HeadraceError) -> Finding:
    return Finding(Severity.BLOCKER, name, error.message, fix=error.hint)


def _look(
    session: psycopg.Connection[Any],
    settings: PostgresConnection,
    slot_name: str,
    publication_name: str,
    tables: Sequence[TableId],
) -> list[Finding]:
    """The findings of a session; on a version that is too old, no more than that it is."""
    transport = read_transport(session)
    version = session.info.server_version // 10000
    release = session.info.parameter_status("server_version") or str(version)
    found = [transport_finding(transport), version_finding(version, release)]
    if version < OLDEST:
        return found
    server = read_server(session)
    provider = provider_of(transport, server)
    role = read_role(session, provider)
    slot = slot_state(session, slot_name)
    publication = read_publication(session, publication_name)
    wanted = read_tables(session, tables)
    return [
        *found,
        *settings_findings(server, provider),
        role_finding(role, provider),
        *_replication(settings, role, server),
        *capacity_findings(
            server,
            provider,
            slot_exists=slot is not None,
            slot_active=slot is not None and slot.active_pid is not None,
        ),
        *_slot(settings, slot_name, slot, publication, server),
        *_failover(session, settings, server, slot_name, slot),
        *(
            _on_primary(finding) if server.in_recovery else finding
            for finding in (
                *publication_findings(publication_name, publication, wanted, role),
                *table_findings(wanted, role),
            )
        ),
    ]


def _on_primary(finding: Finding) -> Finding:
    """A standby cannot be written to: what cures it is done elsewhere."""
    if not finding.fix and not finding.sql:
        return finding
    return replace(finding, fix=f"on its primary: {finding.fix}", safe=False)


def _slot(
    settings: PostgresConnection,
    name: str,
    slot: SlotState | None,
    publication: Publication | None,
    server: Server,
) -> list[Finding]:
    """The slot by itself, then, if it can be used at all, beside its publication."""
    wrong = disagreement(server.version, slot, wanted=settings.two_phase)
    found = slot_findings(name, slot, wrong, on_standby=server.in_recovery)
    blocked = any(finding.severity is Severity.BLOCKER for finding in found)
    if slot is None or publication is None or blocked:
        return found
    return [*found, order_finding(slot, publication.name, publication.age)]


def _failover(
    session: psycopg.Connection[Any],
    settings: PostgresConnection,
    server: Server,
    name: str,
    slot: SlotState | None,
) -> list[Finding]:
    """Whether the slot, as it will be, is handed on; standbys hand nothing on themselves."""
    if server.version < FAILOVER_SINCE or server.in_recovery:
        return []
    as_is = slot is None or slot.failover
    failover = as_is if settings.failover is None else settings.failover
    return failover_findings(name, read_standbys(session), failover=failover)


def _replication(settings: PostgresConnection, role: Role, server: Server) -> list[Finding]:
    """Whether a replication connection opens: poolers and pg_hba.conf may admit plain ones only.

    Not tried where another finding already says why it could not.
    """
    if not role.may_replicate or server.wal_senders >= server.max_wal_senders:
        return []
    try:
        connect(settings, replication=True).close()
    except HeadraceError as error:
        return [_unreachable("replication-connection", error)]
    return [Finding(Severity.OK, "replication-connection", "replication connections are accepted")]


def fix(session: psycopg.Connection[Any], findings: Iterable[Finding]) -> list[str]:
    """Run the SQL of the safe findings on an autocommit session; gives the statements run.

    Raises:
        SourceError: the server refused a statement; those before it stay in effect.
        SourceUnavailableError: the connection was lost, or somebody holds a lock.
    """
    safe = sorted((f for f in findings if f.safe), key=lambda finding: finding.name != FIRST)
    statements = [statement for finding in safe for statement in finding.sql]
    for done, statement in enumerate(statements):
        try:
            with session.transaction():
                session.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                session.execute(statement.encode())
        except psycopg.Error as error:
            raise _failed(session, f"{statement} (after {done} others)", error) from error
    return statements


def _failed(session: psycopg.Connection[Any], what: str, error: psycopg.Error) -> HeadraceError:
    text = f"{what}: {error}".strip()
    if session.broken:
        return SourceUnavailableError(text, hint="try again when the server is back")
    if isinstance(error, psycopg.errors.LockNotAvailable):
        hint = "somebody has locked the table; while a run waits, headrace status names who"
        return SourceUnavailableError(text, hint=hint)
    return SourceError(
        text, hint="ask an administrator of the database; this is the server's own answer"
    )
