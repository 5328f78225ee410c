"""Preflight of the tables: there, of a kind that replicates, readable whole, and with a key.

Each finding names all tables that it concerns, so that a thousand tables give a page, not a book.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import class_row

from headrace.connectors.postgres.check_server import Role
from headrace.connectors.postgres.identifiers import qualified, quoted
from headrace.model import META_COLUMNS, ReplicaIdentity, TableId
from headrace.model.finding import Finding, Severity

# One row per wanted table, found or not. row_security_active tells whether policies would hide rows
# from this role: it knows of owners, FORCE, superusers and BYPASSRLS. Tables that logical
# replication can carry are permanent, ordinary or partitioned, and not of the system.
TABLES: Final = """
SELECT w.schema, w.name,
       c.oid IS NOT NULL AS found,
       c.relkind::text AS kind, c.relpersistence::text AS persistence,
       coalesce(pg_catalog.pg_relation_is_publishable(c.oid), false) AS publishable,
       ARRAY(SELECT ARRAY[an.nspname::text, ac.relname::text]
               FROM pg_catalog.pg_partition_ancestors(c.oid) AS a
               JOIN pg_catalog.pg_class ac ON ac.oid = a.relid
               JOIN pg_catalog.pg_namespace an ON an.oid = ac.relnamespace
              WHERE a.relid <> c.oid) AS ancestors,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_enter,
       pg_catalog.has_table_privilege(c.oid, 'SELECT') AS may_select,
       pg_catalog.row_security_active(c.oid) AS row_security,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                AND a.attname = ANY (%(reserved)s)
              ORDER BY a.attnum) AS reserved,
       pg_catalog.current_setting('server_version_num')::int >= 180000
       AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                      AND a.attgenerated = 's') AS generates
  FROM ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]), pg_catalog.unnest(%(names)s::text[]))
       WITH ORDINALITY AS w (schema, name, place)
  LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
  LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
                                 AND c.relkind NOT IN ('i', 'I', 't')
 ORDER BY w.place
"""

# The table itself and, of a partitioned one, its leaves: those decide whether an UPDATE is let
# through and what of the old row goes to the WAL, while the root decides what is published as the
# key. A deferrable key, or one whose index is not valid, identifies nothing, nor does one with a
# generated column that is not sent: before 18 none is. From then on FULL wants every column sent,
# and of a virtual one (18 and later) there is nothing to send.
RELATIONS: Final = """
SELECT w.schema AS root_schema, w.name AS root_name, rn.nspname AS schema, r.relname AS name,
       r.relreplident::text AS identity,
       CASE r.relreplident
         WHEN 'f' THEN NOT generated.virtual
         WHEN 'n' THEN false
         ELSE EXISTS (SELECT FROM pg_catalog.pg_index i
                       WHERE i.indrelid = r.oid AND i.indisvalid AND i.indimmediate
                         AND CASE r.relreplident WHEN 'd' THEN i.indisprimary
                                                 ELSE i.indisreplident END)
       END AND NOT generated.unsent AS identified, generated.virtual, generated.unsent,
       EXISTS (SELECT FROM pg_catalog.pg_index i
                WHERE i.indrelid = r.oid AND i.indisprimary AND NOT i.indimmediate) AS deferrable,
       pg_catalog.pg_has_role(r.relowner, 'USAGE') AS owned
  FROM ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]), pg_catalog.unnest(%(names)s::text[]))
       WITH ORDINALITY AS w (schema, name, place)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
 CROSS JOIN LATERAL (SELECT c.oid
                      UNION
                      SELECT relid FROM pg_catalog.pg_partition_tree(c.oid) WHERE isleaf) AS part
  JOIN pg_catalog.pg_class r ON r.oid = part.oid
  JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
 CROSS JOIN LATERAL (
       SELECT coalesce(pg_catalog.bool_or(a.attgenerated = 'v'), false) AS virtual,
              pg_catalog.current_setting('server_version_num')::int < 180000
              AND coalesce(pg_catalog.bool_or(
                      a.attnum = ANY ((k.indkey::int2[])[0:k.indnkeyatts - 1])), false) AS unsent
         FROM pg_catalog.pg_attribute a
         LEFT JOIN pg_catalog.pg_index k
           ON k.indrelid = r.oid AND CASE r.relreplident WHEN 'd' THEN k.indisprimary
                                                         WHEN 'i' THEN k.indisreplident END
        WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''
       ) AS generated
 WHERE pg_catalog.pg_relation_is_publishable(r.oid)
 ORDER BY w.place, r.oid <> c.oid, rn.nspname, r.relname
"""

SHOWN: Final = 5  # names in a message, which is to fit on a line or two

KINDS: Final = {
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
    "c": "composite type",
}
PERSISTENCES: Final = {"u": "unlogged table", "t": "temporary table"}


@dataclass(frozen=True)
class _TableRow:
    schema: str
    name: str
    found: bool
    kind: str | None
    persistence: str | None
    publishable: bool
    ancestors: Sequence[Sequence[str]]
    may_enter: bool | None
    may_select: bool | None
    row_security: bool | None
    reserved: Sequence[str]
    generates: bool


@dataclass(frozen=True)
class _RelationRow:
    root_schema: str
    root_name: str
    schema: str
    name: str
    identity: str
    identified: bool
    virtual: bool
    unsent: bool
    deferrable: bool
    owned: bool


@dataclass(frozen=True)
class Relation:
    """A table or a leaf of one, and whether updates and deletes of it can be told apart.

    `virtual`: it has virtual generated columns, with which FULL is no way out; `unsent`: its key
    has a generated column, which this server does not send. `owned`: the role may alter it.
    """

    table: TableId
    identity: ReplicaIdentity
    identified: bool
    virtual: bool
    unsent: bool
    deferrable: bool
    owned: bool


@dataclass(frozen=True)
class Table:
    """A wanted table as the catalog has it; `parts` are itself and its leaf partitions.

    `publishable`: logical replication can carry it; `what` says what it is instead. `generates`:
    it has stored generated columns, and a publication can be told to send them.
    """

    table: TableId
    found: bool
    publishable: bool
    what: str
    partitioned: bool
    ancestors: frozenset[TableId]
    may_enter: bool
    may_select: bool
    row_security: bool
    reserved: tuple[str, ...]
    generates: bool
    parts: tuple[Relation, ...]

    @property
    def owned(self) -> bool:
        return all(part.owned for part in self.parts[:1])

    @property
    def leaves(self) -> tuple[TableId, ...]:
        return tuple(part.table for part in self.parts[1:])


def read_tables(session: psycopg.Connection[Any], tables: Sequence[TableId]) -> list[Table]:
    """The tables in the order given, each once, whether there is such a table or not."""
    each = dict.fromkeys(tables)
    wanted = {
        "schemas": [table.schema for table in each],
        "names": [table.name for table in each],
        "reserved": list(META_COLUMNS),
    }
    parts: dict[TableId, list[Relation]] = {table: [] for table in each}
    with session.cursor(row_factory=class_row(_RelationRow)) as relations:
        for row in relations.execute(RELATIONS, wanted):
            parts[TableId(row.root_schema, row.root_name)].append(_relation(row))
    with session.cursor(row_factory=class_row(_TableRow)) as cursor:
        rows = cursor.execute(TABLES, wanted).fetchall()
    return [_table(row, parts[TableId(row.schema, row.name)]) for row in rows]


def _relation(row: _RelationRow) -> Relation:
    table = TableId(row.schema, row.name)
    identity = ReplicaIdentity(row.identity)
    return Relation(
        table, identity, row.identified, row.virtual, row.unsent, row.deferrable, row.owned
    )


def _table(row: _TableRow, parts: Sequence[Relation]) -> Table:
    return Table(
        TableId(row.schema, row.name),
        row.found,
        row.publishable,
        KINDS.get(row.kind or "") or PERSISTENCES.get(row.persistence or "") or "system table",
        row.kind == "p",
        frozenset(TableId(schema, name) for schema, name in row.ancestors),
        bool(row.may_enter),
        bool(row.may_select),
        bool(row.row_security),
        tuple(row.reserved),
        row.generates,
        tuple(parts),
    )


def names(tables: Iterable[TableId]) -> tuple[str, ...]:
    return tuple(str(table) for table in tables)


def shown(objects: Sequence[str]) -> str:
    """The first of them for a message; a finding's `objects` has them all."""
    rest = len(objects) - SHOWN
    return ", ".join(objects[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


# -- findings --------------------------------------------------------------------------------------


def table_findings(tables: Sequence[Table], role: Role) -> list[Finding]:
    """What keeps these tables from being copied and followed."""
    usable = [table for table in tables if table.publishable]
    checks: tuple[Callable[[Sequence[Table], Role], list[Finding]], ...] = (
        _schema_rights,
        _select_rights,
        _row_security,
        _reserved,
        _identity,
    )
    found = [*_missing(tables), *_unpublishable(tables)]
    exist = Finding(Severity.OK, "tables", f"{len(usable)} tables can be replicated")
    if not found and usable:
        found.append(exist)
    return found + [finding for each in checks if usable for finding in each(usable, role)]


def _missing(tables: Sequence[Table]) -> list[Finding]:
    absent = names(table.table for table in tables if not table.found)
    if not absent:
        return []
    return [
        Finding(
            Severity.BLOCKER,
            "table-missing",
            f"{_count(absent)} not exist: {shown(absent)}",
            absent,
            fix="correct the names under tables: in headrace.yaml, or leave them out",
        )
    ]


def _unpublishable(tables: Sequence[Table]) -> list[Finding]:
    others = [table for table in tables if table.found and not table.publishable]
    if not others:
        return []
    return [
        Finding(
            Severity.BLOCKER,
            "table-kind",
            "logical replication carries ordinary and partitioned tables only",
            names(table.table for table in others),
            "; ".join(f"{table.table}: {table.what}" for table in others),
            "leave them out under tables: in headrace.yaml (exclude: true); an unlogged table "
            "can be made ordinary: ALTER TABLE … SET LOGGED",
        )
    ]


def _schema_rights(tables: Sequence[Table], role: Role) -> list[Finding]:
    closed = [table.table for table in tables if not table.may_enter]
    schemas = dict.fromkeys(quoted(table.schema) for table in closed)
    if not closed:
        return [Finding(Severity.OK, "schema-rights", f"{role.quoted} may use every schema")]
    return [
        Finding(
            Severity.BLOCKER,
            "schema-rights",
            f"role {role.quoted} may not use schema {', '.join(schemas)}",
            names(closed),
            "has_schema_privilege(…, 'USAGE') = false",
            "as owner of the schema: run the GRANT",
            tuple(f"GRANT USAGE ON SCHEMA {schema} TO {role.quoted}" for schema in schemas),
        )
    ]


def _select_rights(tables: Sequence[Table], role: Role) -> list[Finding]:
    closed = [table.table for table in tables if not table.may_select]
    if not closed:
        return [Finding(Severity.OK, "select-rights", f"{role.quoted} may read every table")]
    return [
        Finding(
            Severity.BLOCKER,
            "select-rights",
            f"role {role.quoted} may not read {shown(names(closed))}: no snapshot of it",
            names(closed),
            "has_table_privilege(…, 'SELECT') = false",
            "as owner of the table: run the GRANT",
            tuple(f"GRANT SELECT ON TABLE {qualified(table)} TO {role.quoted}" for table in closed),
        )
    ]


def _row_security(tables: Sequence[Table], role: Role) -> list[Finding]:
    """Policies hide rows from a snapshot, while the stream carries all of them."""
    hidden = names(table.table for table in tables if table.row_security)
    if not hidden:
        return [Finding(Severity.OK, "row-security", "no policy hides rows from this role")]
    return [
        Finding(
            Severity.BLOCKER,
            "row-security",
            f"row-level security hides rows of {shown(hidden)} from role {role.quoted}: "
            "a snapshot would lack them",
            hidden,
            "row_security_active(…) = true",
            "as superuser: run the ALTER ROLE",
            (f"ALTER ROLE {role.quoted} BYPASSRLS",),
        )
    ]


def _reserved(tables: Sequence[Table], role: Role) -> list[Finding]:  # noqa: ARG001  # one of many
    clashing = [table for table in tables if table.reserved]
    if not clashing:
        return [Finding(Severity.OK, "column-names", "no column has a name that Headrace uses")]
    return [
        Finding(
            Severity.BLOCKER,
            "column-names",
            f"columns bear names that Headrace gives its own: {', '.join(META_COLUMNS)}",
            names(table.table for table in clashing),
            "; ".join(f"{table.table}: {', '.join(table.reserved)}" for table in clashing),
            "rename the columns at the source, or leave the tables out (exclude: true)",
        )
    ]


# -- replica identity ------------------------------------------------------------------------------


def lacking_identity(table: Table) -> list[Relation]:
    """The table and the leaves of it whose replica identity must become FULL.

    Leaves follow a root that is FULL or must become so, as one publishes what the others log.
    """
    root, *leaves = table.parts
    whole = root.identity is ReplicaIdentity.FULL or not root.identified
    lacking = [] if root.identified else [root]
    return lacking + [
        leaf
        for leaf in leaves
        if not leaf.identified or (whole and leaf.identity is not ReplicaIdentity.FULL)
    ]


def _identity(tables: Sequence[Table], role: Role) -> list[Finding]:
    lacking = [relation for table in tables for relation in lacking_identity(table)]
    if not lacking:
        return [Finding(Severity.OK, "replica-identity", "every table can be followed by its key")]
    curable = [relation for relation in lacking if not relation.virtual]
    found = []
    for owned in (True, False):
        relations = [relation for relation in curable if relation.owned is owned]
        if relations:
            found.append(_identity_finding(relations, _whole_rows(relations, role), safe=owned))
    hopeless = [relation for relation in lacking if relation.virtual]
    return found + ([_identity_finding(hopeless, ONLY_A_KEY)] if hopeless else [])


ONLY_A_KEY: Final = (
    "give each a primary key; REPLICA IDENTITY FULL would not do, as the server refuses updates "
    "under it where a generated column is virtual",
    (),
)


def _whole_rows(relations: Sequence[Relation], role: Role) -> tuple[str, tuple[str, ...]]:
    who = f"role {role.quoted}" if relations[0].owned else "the tables' owner"
    return (
        f"give each a primary key, or, as {who}, write whole old rows to the WAL: "
        "run the ALTER TABLE",
        tuple(f"ALTER TABLE {qualified(r.table)} REPLICA IDENTITY FULL" for r in relations),
    )


def _identity_finding(
    relations: Sequence[Relation], fix: tuple[str, tuple[str, ...]], *, safe: bool = False
) -> Finding:
    tables = names(relation.table for relation in relations)
    return Finding(
        Severity.BLOCKER,
        "replica-identity",
        f"updates and deletes of {shown(tables)} would fail at the source once published, or "
        "not tell which row they mean: no usable replica identity",
        tables,
        "; ".join(f"{relation.table}: {_why(relation)}" for relation in relations),
        *fix,
        safe=safe,
    )


def _why(relation: Relation) -> str:
    if relation.identity is ReplicaIdentity.NOTHING:
        return "REPLICA IDENTITY NOTHING"
    if relation.unsent:
        return "a generated column in its key, which is not sent before Postgres 18"
    if relation.identity is ReplicaIdentity.INDEX:
        return "its replica identity index was dropped" if not relation.identified else "an index"
    if relation.identity is ReplicaIdentity.FULL:
        return "FULL, with virtual generated columns"
    if relation.identified:
        return "the table it is a partition of is REPLICA IDENTITY FULL"
    return "deferrable primary key" if relation.deferrable else "no primary key"


def _count(tables: Sequence[str]) -> str:
    return "1 table does" if len(tables) == 1 else f"{len(tables)} tables do"
