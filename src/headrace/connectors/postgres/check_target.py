"""Preflight of a Postgres destination: what would make a run fail or lose rows, beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg

from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres import records
from headrace.connectors.postgres.check_server import (
    read_transport,
    transport_finding,
    version_finding,
)
from headrace.connectors.postgres.config import address
from headrace.connectors.postgres.existing import judge, name_findings
from headrace.connectors.postgres.identifiers import qualified, quoted
from headrace.connectors.postgres.preparing import has_rows
from headrace.connectors.postgres.target_session import (
    Cursor,
    connect_target,
    only_row,
    target_errors,
)
from headrace.connectors.postgres.target_table import Target, read_target
from headrace.errors import HeadraceError
from headrace.model import Delivery, OnDelete, TableId, TableSchema
from headrace.model.finding import Finding, Severity

AWAY: Final = "target-away"  # a finding that time may cure

_RIGHTS: Final = """
SELECT pg_catalog.pg_is_in_recovery(),
       pg_catalog.current_setting('transaction_read_only') = 'on',
       pg_catalog.has_database_privilege(current_database(), 'CREATE'),
       pg_catalog.has_database_privilege(current_database(), 'TEMPORARY'),
       pg_catalog.quote_ident(current_user), pg_catalog.quote_ident(current_database())
"""

# A pooler that shares servers between transactions loses what sessions keep: temporary tables,
# settings, advisory locks. It may hand us the same server twice, but not while we hold it.
_SESSION: Final = "SELECT pg_catalog.pg_backend_pid()"

_SCHEMA_RIGHT: Final = """
SELECT pg_catalog.has_schema_privilege(oid, 'CREATE'), pg_catalog.quote_ident(nspname)
  FROM pg_catalog.pg_namespace WHERE nspname = %s
"""

_TABLE_RIGHTS: Final = """
SELECT ARRAY(SELECT privilege
               FROM pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
              WHERE NOT pg_catalog.has_table_privilege(%s::oid, privilege)),
       pg_catalog.quote_ident(current_user), pg_catalog.pg_has_role(%s, 'USAGE'),
       (SELECT pg_catalog.has_schema_privilege(relnamespace, 'USAGE')
          FROM pg_catalog.pg_class WHERE oid = %s)
"""


def check_database(settings: PostgresConnection) -> list[Finding]:
    """What the database lets us do; what is fine too, as OK.

    A server that cannot be reached, or refuses us, is a finding like any other.
    """
    try:
        with connect_target(settings) as connection, target_errors(settings):
            return list(_database_findings(settings, connection))
    except HeadraceError as error:
        return [unreached(error)]


def unreached(error: HeadraceError) -> Finding:
    """The server is away for now, or refuses us."""
    name = AWAY if error.transient else "target-reachable"
    return Finding(Severity.BLOCKER, name, error.message, fix=error.hint)


def _database_findings(
    settings: PostgresConnection, connection: psycopg.Connection[tuple[Any, ...]]
) -> Iterator[Finding]:
    yield _ok("target-reachable", f"connected to {address(settings)}")
    yield transport_finding(read_transport(connection))
    version = connection.info.server_version // 10000
    release = connection.info.parameter_status("server_version") or str(version)
    yield version_finding(version, release)
    cursor = connection.cursor()
    rights = only_row(cursor.execute(_RIGHTS))
    recovering, read_only, may_create, may_temporary, role, database = rights
    yield _writable(recovering=recovering, read_only=read_only)
    yield _pooler(connection)
    if not may_temporary:
        grant = f"GRANT TEMPORARY ON DATABASE {database} TO {role}"
        why = f"role {role} may not make temporary tables, through which rows are written"
        yield Finding(Severity.BLOCKER, "target-temporary", why, sql=(grant,))
    if may_create or records.are_there(cursor):
        yield _ok("target-records", "the schema headrace stands or can be made")
    else:
        grant = f"GRANT CREATE ON DATABASE {database} TO {role}"
        why = f"role {role} may not make the schema headrace, which holds the checkpoints"
        yield Finding(Severity.BLOCKER, "target-records", why, sql=(grant,))


def _writable(*, recovering: bool, read_only: bool) -> Finding:
    if recovering:
        why = "the server is a standby: nothing can be written to it"
        fix = "give host and port of the primary in headrace.yaml"
        return Finding(Severity.BLOCKER, "target-writable", why, fix=fix)
    if read_only:
        why = "sessions of this role are read-only (default_transaction_read_only)"
        fix = "ALTER ROLE … RESET default_transaction_read_only, or another role"
        return Finding(Severity.BLOCKER, "target-writable", why, fix=fix)
    return _ok("target-writable", "the server takes writes")


def _pooler(connection: psycopg.Connection[tuple[Any, ...]]) -> Finding:
    """The process that answers is the one that greeted us, unless somebody stands between."""
    answering = connection.execute(_SESSION).fetchone()
    host = connection.info.host
    if answering == (connection.info.backend_pid,) and "-pooler." not in host:
        return _ok("target-session", "the session is the server's own")
    why = "a pooler stands before the server: temporary tables and locks do not survive there"
    fix = "give host and port of the server itself (without -pooler, or the pool's session mode)"
    return Finding(Severity.BLOCKER, "target-session", why, fix=fix)


def check_table(
    cursor: Cursor, pipeline: str, schema: TableSchema, delivery: Delivery
) -> list[Finding]:
    """What keeps a table from taking rows of `schema`; it may be missing."""
    record = records.read(cursor, schema.table) if records.are_there(cursor) else None
    target = read_target(cursor, schema.table)
    if target is None:
        return [*name_findings(schema, delivery), *_creation_findings(cursor, schema.table)]
    found = [*_table_rights(cursor, schema.table, target, delivery)]
    if record is not None and record.pipeline != pipeline:
        return [*found, _foreign(schema.table, f"the pipeline {record.pipeline!r} writes it")]
    if not target.is_table:
        return [*found, *judge(schema, target, delivery)]
    ours = record is not None and record.at is not None
    readable = all(finding.severity is not Severity.BLOCKER for finding in found)
    if not ours and not delivery.take_over and readable and has_rows(cursor, schema.table):
        why = "it has rows that are not this pipeline's (take_over: true replaces them)"
        found.append(_foreign(schema.table, why))
    made_for = record.schema if record is not None else None  # it is altered, or refitted, later
    return [*found, *judge(made_for or schema, target, delivery)]


def _creation_findings(cursor: Cursor, table: TableId) -> Iterator[Finding]:
    found = cursor.execute(_SCHEMA_RIGHT, [table.schema]).fetchone()
    _, _, may_create, _, role, database = only_row(cursor.execute(_RIGHTS))
    if found is None and not may_create:
        grant = f"GRANT CREATE ON DATABASE {database} TO {role}"
        why = f"the schema {table.schema} is missing, and role {role} may not make it"
    elif found is not None and not found[0]:
        grant = f"GRANT CREATE ON SCHEMA {found[1]} TO {role}"
        why = f"role {role} may not make tables in its schema"
    else:
        yield _ok("target-table", f"{table}: will be made", str(table))
        return
    message = f"{table}: {why}"
    yield Finding(Severity.BLOCKER, "target-table", message, (str(table),), sql=(grant,))


def _table_rights(
    cursor: Cursor, table: TableId, target: Target, delivery: Delivery
) -> Iterator[Finding]:
    rights = cursor.execute(_TABLE_RIGHTS, [target.oid, target.owner, target.oid])
    missing, role, owns, enters = only_row(rights)
    if not owns:
        why = f"role {role} does not own it: it cannot add columns, nor build the table anew"
        grant = f"GRANT {quoted(target.owner)} TO {role}"
        yield Finding(
            Severity.WARNING, "target-ownership", f"{table}: {why}", (str(table),), sql=(grant,)
        )
    if delivery.on_delete is OnDelete.IGNORE:
        missing = [right for right in missing if right != "DELETE"]
    grants = [] if enters else [f"GRANT USAGE ON SCHEMA {quoted(table.schema)} TO {role}"]
    if missing:
        grants.append(f"GRANT {', '.join(missing)} ON {qualified(table)} TO {role}")
    if grants:
        lacking = ", ".join([*missing, *([] if enters else ["USAGE of its schema"])])
        why = f"{table}: role {role} lacks {lacking}"
        yield Finding(Severity.BLOCKER, "target-rights", why, (str(table),), sql=tuple(grants))


def _foreign(table: TableId, why: str) -> Finding:
    fix = f"give {table} another `name:` in headrace.yaml, or move the table away"
    return Finding(Severity.BLOCKER, "target-owner", f"{table}: {why}", (str(table),), fix=fix)


def _ok(name: str, message: str, *objects: str) -> Finding:
    return Finding(Severity.OK, name, message, objects)
