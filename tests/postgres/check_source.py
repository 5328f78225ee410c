"""A source for the preflight's tests: a fresh database, roles of it, and findings by name."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import conninfo, sql

from headrace.config import PostgresConnection
from headrace.connectors.postgres.check import check, fix
from headrace.connectors.postgres.config import connect
from headrace.model import TableId
from headrace.model.finding import Finding, Severity
from headrace.testing.database import Database

PUBLICATION = "p"


class Findings(list[Finding]):
    """Findings, of which the only one of a name can be had by that name."""

    def named(self, name: str) -> Finding:
        (finding,) = [finding for finding in self if finding.name == name]
        return finding

    def names(self, *severities: Severity) -> set[str]:
        return {finding.name for finding in self if finding.severity in severities}

    @property
    def blockers(self) -> set[str]:
        return self.names(Severity.BLOCKER)

    @property
    def warnings(self) -> set[str]:
        return self.names(Severity.WARNING)


@dataclass
class CheckedSource:
    """A database to be checked; slots bear its name, as they belong to the whole server."""

    database: Database
    roles: list[str] = field(default_factory=list)

    @property
    def slot(self) -> str:
        return self.database.name

    def execute(self, query: str) -> list[tuple[Any, ...]]:
        return self.database.execute(query)

    def settings(self, role: str | None = None, **parameters: str) -> PostgresConnection:
        as_role = {"user": role, "password": role} if role else {}
        dsn = conninfo.make_conninfo(self.database.dsn, **as_role, **parameters)
        parts = conninfo.conninfo_to_dict(dsn)
        return PostgresConnection(
            type="postgres",
            host=parts["host"],
            port=parts["port"],
            database=parts["dbname"],
            user=parts["user"],
            password=parts["password"],
            sslmode=parts.get("sslmode"),
        )

    def check(self, *tables: str, role: str | None = None, slot: str | None = None) -> Findings:
        ids = [TableId.parse(table) for table in tables]
        return Findings(check(self.settings(role), slot or self.slot, PUBLICATION, ids))

    def fix(self, findings: Sequence[Finding], role: str | None = None) -> list[str]:
        with connect(self.settings(role)) as session:
            return fix(session, findings)

    def run(self, statements: Sequence[str]) -> None:
        """What an administrator does who is handed a finding's SQL."""
        for statement in statements:
            self.execute(statement)

    def role(self, attributes: str = "REPLICATION") -> str:
        """A new role whose password is its name, and which has rights on nothing."""
        name = f"Role {secrets.token_hex(4)}"
        self.execute(f"create role \"{name}\" login {attributes} password '{name}'")
        self.roles.append(name)
        return name

    def create_slot(self, plugin: str = "pgoutput") -> None:
        self.execute(f"select pg_create_logical_replication_slot('{self.slot}', '{plugin}')")


@contextmanager
def checked_source(database: Database) -> Iterator[CheckedSource]:
    """`database` as a source; its roles are dropped afterwards."""
    source = CheckedSource(database)
    try:
        yield source
    finally:
        with psycopg.connect(database.dsn) as admin:
            for role in map(sql.Identifier, source.roles):
                admin.execute(sql.SQL("reassign owned by {} to current_user").format(role))
                admin.execute(sql.SQL("drop owned by {}").format(role))
                admin.execute(sql.SQL("drop role {}").format(role))
