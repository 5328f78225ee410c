"""Everything that a table is beyond its rows, as the statements that make another one like it.

The server writes them (pg_get_indexdef and its kin): nothing is composed by hand that it can
compose. What LIKE copies exactly (columns with types, collations, NOT NULL, defaults, identity,
generation, storage, compression) is left to LIKE, and read here only to tell whether a table
changed. Valid for Postgres 13 to 18.

Texts are read under `search_path = pg_catalog`, so that every name in them is qualified.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from headrace.connectors.postgres.target_session import Cursor
from headrace.model import TableId

# Everything read or written here is qualified; only pg_catalog is looked up by itself.
QUALIFIED_NAMES: Final = "SET LOCAL search_path TO pg_catalog"

_TABLE: Final = """
SELECT c.oid::bigint, c.relkind::text, c.relpersistence::text, m.amname, s.spcname,
       quote_ident(pg_get_userbyid(c.relowner))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_am m ON m.oid = c.relam
  LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
 WHERE n.nspname = $1 AND c.relname = $2
"""

# One text per column: all that LIKE copies, and column grants apart from their own statements.
_COLUMNS: Final = """
SELECT concat_ws(' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod),
                 a.attcollation::regcollation, a.attnotnull, a.attidentity, a.attgenerated,
                 a.attstorage, to_jsonb(a) ->> 'attcompression',
                 pg_get_expr(d.adbin, d.adrelid),
                 (SELECT to_jsonb(s) - 'seqrelid' FROM pg_sequence s
                    JOIN pg_depend p ON p.objid = s.seqrelid AND p.deptype = 'i'
                   WHERE p.refobjid = a.attrelid AND p.refobjsubid = a.attnum
                     AND p.classid = 'pg_class'::regclass AND p.refclassid = p.classid))
  FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""

# What LIKE does not copy, as actions of ALTER TABLE. -1 and null (17 on) are the default target.
# NOT NULL has constraints since 18, which LIKE copies as valid and inherited.
_ACTIONS: Final = """
SELECT action FROM (
SELECT 1 AS step, format('SET (%s)', string_agg(format('%s=%L', prefix || split_part(o, '=', 1),
              substr(o, strpos(o, '=') + 1)), ', ' ORDER BY prefix, place)) AS action
  FROM (SELECT '' AS prefix, u.o, u.place
          FROM pg_class c, unnest(c.reloptions) WITH ORDINALITY AS u(o, place) WHERE c.oid = $1::oid
         UNION ALL
        SELECT 'toast.', u.o, u.place
          FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid,
               unnest(t.reloptions) WITH ORDINALITY AS u(o, place)
         WHERE c.oid = $1::oid) options
HAVING count(*) > 0
 UNION ALL
SELECT 2, format('ALTER COLUMN %I SET STATISTICS %s', attname, attstattarget)
  FROM pg_attribute WHERE attrelid = $1::oid AND attnum > 0 AND attstattarget >= 0
   AND NOT attisdropped
 UNION ALL
SELECT 3, format('ALTER COLUMN %I SET (%s)', attname, array_to_string(attoptions, ', '))
  FROM pg_attribute WHERE attrelid = $1::oid AND attnum > 0 AND attoptions IS NOT NULL
   AND NOT attisdropped
 UNION ALL
SELECT 4, format('ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid))
  FROM pg_constraint WHERE conrelid = $1::oid AND contype = 'c'
 UNION ALL
SELECT step, CASE step WHEN 5 THEN format('DROP CONSTRAINT %I', conname)
             ELSE format('ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid)) END
  FROM pg_constraint, generate_series(5, 6) AS step
 WHERE conrelid = $1::oid AND contype = 'n' AND (NOT convalidated OR connoinherit)) actions
 ORDER BY step, action
"""

# `prefix` is how pg_get_indexdef begins; after it comes nothing with a name of the table's.
_INDEXES: Final = """
SELECT i.oid::bigint, i.relname, x.indisunique,
       CASE WHEN starts_with(d.text, d.prefix) THEN substr(d.text, length(d.prefix) + 1) END,
       s.spcname,
       CASE k.contype WHEN 'p' THEN 'PRIMARY KEY' WHEN 'u' THEN 'UNIQUE' END,
       concat_ws(' ', CASE WHEN k.condeferrable THEN 'DEFERRABLE' END,
                 CASE WHEN k.condeferred THEN 'INITIALLY DEFERRED' END),
       ARRAY(SELECT format('ALTER COLUMN %s SET STATISTICS %s', attnum, attstattarget)
               FROM pg_attribute WHERE attrelid = i.oid AND attstattarget >= 0 ORDER BY attnum)
  FROM pg_index x
  JOIN pg_class i ON i.oid = x.indexrelid
  JOIN pg_class c ON c.oid = x.indrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_tablespace s ON s.oid = i.reltablespace
  LEFT JOIN pg_constraint k ON k.conindid = i.oid AND k.conrelid = c.oid AND k.contype IN ('p', 'u')
  CROSS JOIN LATERAL (SELECT pg_get_indexdef(i.oid) AS text,
       format('CREATE %sINDEX %I ON %I.%I ', CASE WHEN x.indisunique THEN 'UNIQUE ' ELSE '' END,
              i.relname, n.nspname, c.relname) AS prefix) d
 WHERE x.indrelid = $1::oid
 ORDER BY x.indisprimary DESC, x.indisunique DESC, i.relname
"""

# From 14 on, statistics may be on expressions. stxstattarget came with 13.
_STATISTICS: Final = """
SELECT s.oid::bigint, n.nspname, s.stxname,
       CASE WHEN starts_with(d.text, d.prefix) AND right(d.text, length(d.suffix)) = d.suffix
            THEN substr(left(d.text, -length(d.suffix)), length(d.prefix) + 1) END,
       nullif(s.stxstattarget, -1), pg_get_userbyid(s.stxowner),
       quote_nullable(obj_description(s.oid, 'pg_statistic_ext'))
  FROM pg_statistic_ext s
  JOIN pg_namespace n ON n.oid = s.stxnamespace
  JOIN pg_class c ON c.oid = s.stxrelid
  JOIN pg_namespace m ON m.oid = c.relnamespace
  CROSS JOIN LATERAL (SELECT pg_get_statisticsobjdef(s.oid) AS text,
                             format('CREATE STATISTICS %I.%I ', n.nspname, s.stxname) AS prefix,
                             format(' FROM %I.%I', m.nspname, c.relname) AS suffix) d
 WHERE s.stxrelid = $1::oid
 ORDER BY n.nspname, s.stxname
"""

_IDENTITY_SEQUENCES: Final = """
SELECT a.attname, s.oid::bigint, s.relname, q.seqtypid::regtype::text,
       quote_nullable(obj_description(s.oid, 'pg_class'))
  FROM pg_depend d
  JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
  JOIN pg_sequence q ON q.seqrelid = s.oid
  JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE d.refobjid = $1::oid AND d.deptype = 'i'
   AND d.classid = 'pg_class'::regclass AND d.refclassid = d.classid
 ORDER BY a.attnum
"""

# Grants in their order: whoever hands on a grant option got it before.
_GRANTS: Final = """
SELECT g.kind, g.identity, g.object, g.part, a.privilege_type,
       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
       a.is_grantable,
       CASE WHEN a.grantor <> g.owner AND pg_has_role(a.grantor, 'MEMBER')
                 AND has_schema_privilege(a.grantor, g.schema, 'USAGE')
            THEN quote_ident(pg_get_userbyid(a.grantor)) END
  FROM (SELECT 1 AS step, 0 AS number, 'TABLE' AS kind, '' AS identity,
               format('%I.%I', n.nspname, c.relname) AS object, '' AS part, c.relacl AS acl,
               c.relowner AS owner, n.oid AS schema
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::oid
         UNION ALL
        SELECT 2, b.attnum, 'TABLE', '', format('%I.%I', n.nspname, c.relname),
               format(' (%I)', b.attname), b.attacl, c.relowner, n.oid
          FROM pg_attribute b JOIN pg_class c ON c.oid = b.attrelid
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = $1::oid AND NOT b.attisdropped
         UNION ALL
        SELECT 3, d.refobjsubid, 'SEQUENCE', b.attname,
               format('%I.%I', n.nspname, s.relname), '', s.relacl, s.relowner, n.oid
          FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
          JOIN pg_attribute b ON b.attrelid = d.refobjid AND b.attnum = d.refobjsubid
          JOIN pg_namespace n ON n.oid = s.relnamespace
         WHERE d.refobjid = $1::oid AND d.deptype = 'i'
           AND d.classid = 'pg_class'::regclass AND d.refclassid = d.classid) g,
       LATERAL aclexplode(g.acl) WITH ORDINALITY
               AS a(grantor, grantee, privilege_type, is_grantable, place)
 ORDER BY g.step, g.number, a.grantor <> g.owner, a.place
"""

# Statements that are run when the new table bears its name, in this order. The texts of rules and
# triggers name the table; policies may ask it in a subquery, and so must see the new one.
_FINISH: Final = """
WITH t AS (
    SELECT c.*, n.nspname, format('%I.%I', n.nspname, c.relname) AS name
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::oid
), finish(step, part, statement) AS (
SELECT 1, '', format('ALTER TABLE %s %s ROW LEVEL SECURITY, %s ROW LEVEL SECURITY', name,
       CASE WHEN relrowsecurity THEN 'ENABLE' ELSE 'DISABLE' END,
       CASE WHEN relforcerowsecurity THEN 'FORCE' ELSE 'NO FORCE' END) FROM t
 UNION ALL
SELECT 2, p.polname, format('CREATE POLICY %I ON %s AS %s FOR %s TO %s', p.polname, t.name,
       CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
       CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                     WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
       (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END,
                          ', ') FROM unnest(p.polroles) r))
       || coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
       || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '')
  FROM t JOIN pg_policy p ON p.polrelid = t.oid
 UNION ALL
SELECT 3, g.tgname, pg_get_triggerdef(g.oid) FROM t JOIN pg_trigger g ON g.tgrelid = t.oid
 WHERE NOT g.tgisinternal
 UNION ALL
SELECT 4, g.tgname, format('ALTER TABLE %s %s TRIGGER %I', t.name,
       CASE g.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA'
                        ELSE 'ENABLE ALWAYS' END, g.tgname)
  FROM t JOIN pg_trigger g ON g.tgrelid = t.oid WHERE NOT g.tgisinternal AND g.tgenabled <> 'O'
 UNION ALL
SELECT 5, r.rulename, pg_get_ruledef(r.oid) FROM t JOIN pg_rewrite r ON r.ev_class = t.oid
 UNION ALL
SELECT 6, r.rulename, format('ALTER TABLE %s %s RULE %I', t.name,
       CASE r.ev_enabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA'
                         ELSE 'ENABLE ALWAYS' END, r.rulename)
  FROM t JOIN pg_rewrite r ON r.ev_class = t.oid WHERE r.ev_enabled <> 'O'
 UNION ALL
SELECT 7, '', format('ALTER TABLE %s REPLICA IDENTITY %s', name, coalesce(
       CASE relreplident WHEN 'n' THEN 'NOTHING' WHEN 'f' THEN 'FULL' WHEN 'i' THEN
       (SELECT format('USING INDEX %I', i.relname)
          FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
         WHERE x.indrelid = t.oid AND x.indisreplident) END, 'DEFAULT')) FROM t
 UNION ALL
SELECT 8, '', format('ALTER TABLE %s %s', name, coalesce(
       (SELECT format('CLUSTER ON %I', i.relname)
          FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
         WHERE x.indrelid = t.oid AND x.indisclustered), 'SET WITHOUT CLUSTER')) FROM t
 UNION ALL
SELECT 9, a.attname, format('COMMENT ON COLUMN %s.%I IS %L', t.name, a.attname, d.description)
  FROM t JOIN pg_attribute a ON a.attrelid = t.oid AND NOT a.attisdropped
  JOIN pg_description d ON d.classoid = 'pg_class'::regclass AND d.objoid = t.oid
                       AND d.objsubid = a.attnum
 UNION ALL
SELECT 9, i.relname, format('COMMENT ON INDEX %I.%I IS %L', t.nspname, i.relname,
       d.description)
  FROM t JOIN pg_index x ON x.indrelid = t.oid JOIN pg_class i ON i.oid = x.indexrelid
  JOIN pg_description d ON d.classoid = 'pg_class'::regclass AND d.objoid = i.oid
 UNION ALL
SELECT 9, k.conname, format('COMMENT ON CONSTRAINT %I ON %s IS %L', k.conname, t.name,
       d.description)
  FROM t JOIN pg_constraint k ON k.conrelid = t.oid AND k.contype <> 'f'
  JOIN pg_description d ON d.classoid = 'pg_constraint'::regclass AND d.objoid = k.oid
 UNION ALL
SELECT 9, p.polname, format('COMMENT ON POLICY %I ON %s IS %L', p.polname, t.name, d.description)
  FROM t JOIN pg_policy p ON p.polrelid = t.oid
  JOIN pg_description d ON d.classoid = 'pg_policy'::regclass AND d.objoid = p.oid
 UNION ALL
SELECT 9, g.tgname, format('COMMENT ON TRIGGER %I ON %s IS %L', g.tgname, t.name, d.description)
  FROM t JOIN pg_trigger g ON g.tgrelid = t.oid AND NOT g.tgisinternal
  JOIN pg_description d ON d.classoid = 'pg_trigger'::regclass AND d.objoid = g.oid
 UNION ALL
SELECT 9, r.rulename, format('COMMENT ON RULE %I ON %s IS %L', r.rulename, t.name, d.description)
  FROM t JOIN pg_rewrite r ON r.ev_class = t.oid
  JOIN pg_description d ON d.classoid = 'pg_rewrite'::regclass AND d.objoid = r.oid
 UNION ALL
SELECT 9, '', format('COMMENT ON TABLE %s IS %L', t.name, obj_description(t.oid, 'pg_class'))
  FROM t
 UNION ALL
SELECT 9, a.attname, format('SECURITY LABEL FOR %I ON COLUMN %s.%I IS %L', l.provider, t.name,
       a.attname, l.label)
  FROM t JOIN pg_seclabel l ON l.classoid = 'pg_class'::regclass AND l.objoid = t.oid
  JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = l.objsubid
 WHERE l.objsubid > 0
 UNION ALL
SELECT 9, '', format('SECURITY LABEL FOR %I ON TABLE %s IS %L', l.provider, t.name, l.label)
  FROM t JOIN pg_seclabel l ON l.classoid = 'pg_class'::regclass AND l.objoid = t.oid
 WHERE l.objsubid = 0)
SELECT statement FROM finish ORDER BY step, part, statement
"""


# Triggers that make rows what they are: rows that are loaded must pass through them too. Each as
# what stands before the table in CREATE TRIGGER, and after it.
_SHAPING: Final = """
SELECT left(d.text, strpos(d.text, d.name) - 1),
       substr(d.text, strpos(d.text, d.name) + length(d.name))
  FROM pg_trigger g
  JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL (SELECT pg_get_triggerdef(g.oid) AS text,
                             format(' ON %I.%I ', n.nspname, c.relname) AS name) d
 WHERE g.tgrelid = $1::oid AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
   AND g.tgtype & 7 = 7  -- FOR EACH ROW, BEFORE, INSERT (pg_trigger.h)
 ORDER BY g.tgname
"""

# What would fire, judge or name other objects, and is made anew from the live table's.
_STRIP: Final = """
SELECT format('DROP POLICY %I ON %I.%I', p.polname, n.nspname, c.relname)
  FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = $1::oid
 UNION ALL
SELECT format('DROP TRIGGER %I ON %I.%I', g.tgname, n.nspname, c.relname)
  FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = $1::oid AND NOT g.tgisinternal
 UNION ALL
SELECT format('DROP RULE %I ON %I.%I', r.rulename, n.nspname, c.relname)
  FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = $1::oid
"""

# Who has rights on a table and on its identity sequences.
_GRANTED: Final = """
SELECT DISTINCT g.kind, g.identity,
       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
  FROM (SELECT 'TABLE' AS kind, '' AS identity, relacl AS acl FROM pg_class WHERE oid = $1::oid
         UNION ALL
        SELECT 'TABLE', '', attacl FROM pg_attribute WHERE attrelid = $1::oid AND NOT attisdropped
         UNION ALL
        SELECT 'SEQUENCE', b.attname, s.relacl
          FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
          JOIN pg_attribute b ON b.attrelid = d.refobjid AND b.attnum = d.refobjsubid
         WHERE d.refobjid = $1::oid AND d.deptype = 'i'
           AND d.classid = 'pg_class'::regclass AND d.refclassid = d.classid) g, aclexplode(g.acl) a
"""


@dataclass(frozen=True)
class Index:
    """`definition` is what follows the table in CREATE INDEX; `constraint` PRIMARY KEY, UNIQUE or
    None; `settings` are actions of ALTER INDEX."""

    oid: int = field(compare=False)
    name: str
    unique: bool
    definition: str
    tablespace: str | None
    constraint: str | None
    deferral: str
    settings: list[str]


@dataclass(frozen=True)
class Statistics:
    """Extended statistics; `definition` stands between the name and FROM in CREATE STATISTICS."""

    oid: int = field(compare=False)
    schema: str
    name: str
    definition: str
    target: int | None
    owner: str
    comment: str  # as a literal


@dataclass(frozen=True)
class IdentitySequence:
    """The sequence below an identity column; LIKE copies all of it but its type."""

    column: str
    oid: int = field(compare=False)
    name: str
    type: str
    comment: str  # as a literal


@dataclass(frozen=True)
class Grant:
    """Names are quoted. `part` is a column in brackets, `grantor` a role to be taken on, None for
    the owner's."""

    kind: str  # TABLE or SEQUENCE
    identity: str  # the column whose sequence it is
    object: str
    part: str
    privilege: str
    grantee: str
    grantable: bool
    grantor: str | None

    def statements(self) -> tuple[str, ...]:
        option = " WITH GRANT OPTION" if self.grantable else ""
        grant = (
            f"GRANT {self.privilege}{self.part} ON {self.kind} {self.object} "
            f"TO {self.grantee}{option}"
        )
        if self.grantor is None:
            return (grant,)
        return (f"SET LOCAL ROLE {self.grantor}", grant, "RESET ROLE")


@dataclass(frozen=True)
class Definition:
    """A table, apart from its rows and from what hangs on it. Equal ones make equal tables.

    `actions` are clauses of ALTER TABLE for before the rows come, `shaping` the triggers that rows
    pass through, as what stands before and after the table; `finish` are whole statements for when
    the new table bears the name.
    """

    table: TableId
    oid: int
    kind: str
    persistence: str
    access_method: str | None
    tablespace: str | None
    owner: str  # quoted
    columns: tuple[str, ...]
    actions: tuple[str, ...]
    shaping: tuple[tuple[str, str], ...]
    indexes: tuple[Index, ...]
    statistics: tuple[Statistics, ...]
    identities: tuple[IdentitySequence, ...]
    grants: tuple[Grant, ...]
    finish: tuple[str, ...]


def read_definition(cursor: Cursor, table: TableId) -> Definition | None:
    """The relation under this name, or None; in a transaction after QUALIFIED_NAMES."""
    found = catalog_rows(cursor, _TABLE, table.schema, table.name)
    if not found:
        return None
    oid, kind, persistence, method, tablespace, owner = found[0]
    indexes = catalog_rows(cursor, _INDEXES, oid)
    identities = catalog_rows(cursor, _IDENTITY_SEQUENCES, oid)
    return Definition(
        table=table,
        oid=oid,
        kind=kind,
        persistence=persistence,
        access_method=method,
        tablespace=tablespace,
        owner=owner,
        columns=_texts(cursor, _COLUMNS, oid),
        actions=_texts(cursor, _ACTIONS, oid),
        shaping=tuple((before, after) for before, after in catalog_rows(cursor, _SHAPING, oid)),
        indexes=tuple(Index(*row) for row in indexes),
        statistics=tuple(Statistics(*row) for row in catalog_rows(cursor, _STATISTICS, oid)),
        identities=tuple(IdentitySequence(*row) for row in identities),
        grants=tuple(Grant(*row) for row in catalog_rows(cursor, _GRANTS, oid)),
        finish=_texts(cursor, _FINISH, oid),
    )


def read_stripping(cursor: Cursor, oid: int) -> tuple[str, ...]:
    """Statements that take policies, triggers and rules from a table."""
    return _texts(cursor, _STRIP, oid)


def read_grantees(cursor: Cursor, oid: int) -> set[tuple[str, str, str]]:
    """Whom rights were granted on a table, by (kind, identity column, role), quoted."""
    return set(catalog_rows(cursor, _GRANTED, oid))


def catalog_rows(cursor: Cursor, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of a query with $1 for a parameter: in those here, % belongs to format()."""
    raw = psycopg.RawCursor(cursor.connection)
    return raw.execute(query.encode(), parameters).fetchall()


def _texts(cursor: Cursor, query: str, oid: int) -> tuple[str, ...]:
    return tuple(row[0] for row in catalog_rows(cursor, query, oid))
