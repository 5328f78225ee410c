"""What hangs on a table, and how it is hung on another one in the same transaction.

Postgres binds views, foreign keys, policies and SQL functions to a table's oid, not to its name:
after a swap of names they would go on with the former table (facts §3.1, bug 2). Each of them is
written out before the swap and said again after it, under OR REPLACE where there is one, so that
the object itself, with its own grants, comments and dependents, stays.

The world is closed: `obstacles` names every object that depends on the table in a way that is not
dealt with here, so that such a table is not swapped rather than an object lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.connectors.postgres.definition import catalog_rows
from headrace.connectors.postgres.target_session import Cursor

# A validation under the swap's lock would keep readers waiting: NOT VALID is left out here, said
# when the constraint is added, and cured afterwards where it was not there before.
_FOREIGN_KEYS: Final = """
SELECT format('%I.%I', n.nspname, c.relname), format('%I.%I', q.nspname, p.relname),
       quote_ident(k.conname),
       regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', ''), k.convalidated,
       format('COMMENT ON CONSTRAINT %I ON %I.%I IS %L', k.conname, n.nspname, c.relname,
              obj_description(k.oid, 'pg_constraint')), k.conrelid = $1::oid, k.confrelid = $1::oid,
       m.filled, m.match
  FROM pg_constraint k
  JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace q ON q.oid = p.relnamespace
  CROSS JOIN LATERAL (
       SELECT string_agg(format('f.%I IS NOT NULL', fa.attname), ' AND ') AS filled,
              string_agg(format('p.%I OPERATOR(%I.%s) f.%I', pa.attname, x.nspname, o.oprname,
                                fa.attname), ' AND ') AS match
         FROM unnest(k.conkey, k.confkey, k.conpfeqop) AS u(theirs, ours, equal)
         JOIN pg_attribute fa ON fa.attrelid = k.conrelid AND fa.attnum = u.theirs
         JOIN pg_attribute pa ON pa.attrelid = k.confrelid AND pa.attnum = u.ours
         JOIN pg_operator o ON o.oid = u.equal JOIN pg_namespace x ON x.oid = o.oprnamespace) m
 WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = $1::oid OR k.confrelid = $1::oid)
 ORDER BY 1, 3
"""

# Everything that OR REPLACE or ALTER says anew: which relation it locks (none for a function) and
# how. Views keep their oid, so that what hangs on them, their grants and triggers need nothing.
_RESTATED: Final = """
SELECT DISTINCT 1 AS step, format('%I.%I', n.nspname, v.relname) AS relation, v.relkind::text,
       quote_ident(pg_get_userbyid(v.relowner)),
       format('CREATE OR REPLACE VIEW %I.%I %sAS %s', n.nspname, v.relname,
              coalesce('WITH (' || array_to_string(v.reloptions, ', ') || ') ', ''),
              pg_get_viewdef(v.oid)) AS statement
  FROM pg_depend d
  JOIN pg_rewrite r ON r.oid = d.objid AND r.rulename = '_RETURN'
  JOIN pg_class v ON v.oid = r.ev_class AND v.relkind = 'v' AND v.relpersistence = 'p'
  JOIN pg_namespace n ON n.oid = v.relnamespace
 WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
   AND d.refobjid = $1::oid
 UNION ALL
SELECT DISTINCT 2, format('%I.%I', n.nspname, v.relname), v.relkind::text,
       quote_ident(pg_get_userbyid(v.relowner)),
       regexp_replace(pg_get_ruledef(r.oid), '^CREATE RULE', 'CREATE OR REPLACE RULE')
  FROM pg_depend d
  JOIN pg_rewrite r ON r.oid = d.objid AND r.rulename <> '_RETURN'
  JOIN pg_class v ON v.oid = r.ev_class AND v.relpersistence = 'p'
  JOIN pg_namespace n ON n.oid = v.relnamespace
 WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
   AND d.refobjid = $1::oid AND v.oid <> $1::oid
 UNION ALL
SELECT DISTINCT 3, format('%I.%I', n.nspname, c.relname), c.relkind::text,
       quote_ident(pg_get_userbyid(c.relowner)),
       format('ALTER POLICY %I ON %I.%I', p.polname, n.nspname, c.relname)
       || coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
       || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '')
  FROM pg_depend d
  JOIN pg_policy p ON p.oid = d.objid
  JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_class'::regclass
   AND d.refobjid = $1::oid AND p.polrelid <> $1::oid
 UNION ALL
SELECT DISTINCT 4, NULL, 'function', quote_ident(pg_get_userbyid(p.proowner)),
       pg_get_functiondef(p.oid)
  FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
 WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass
   AND d.refobjid = $1::oid AND to_jsonb(p) ->> 'prosqlbody' IS NOT NULL
 ORDER BY step, relation, statement
"""

# FOR ALL TABLES and TABLES IN SCHEMA go by name. Column lists and row filters came with 15.
_PUBLICATIONS: Final = """
SELECT format('ALTER PUBLICATION %I DROP TABLE %I.%I', p.pubname, n.nspname, c.relname),
       format('ALTER PUBLICATION %I ADD TABLE %I.%I', p.pubname, n.nspname, c.relname){details}
  FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
  JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE r.prrelid = $1::oid
 ORDER BY p.pubname
"""
_PUBLICATION_DETAILS: Final = """
       || coalesce((SELECT ' (' || string_agg(quote_ident(a.attname), ', ' ORDER BY u.place) || ')'
                      FROM unnest(r.prattrs) WITH ORDINALITY AS u(number, place)
                      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.number), '')
       || coalesce(' WHERE (' || pg_get_expr(r.prqual, c.oid) || ')', '')"""
_PUBLICATION_DETAILS_SINCE: Final = 150000

# Sequences that columns own (serial): the sequence itself passes to the new table.
_OWNED_SEQUENCES: Final = """
SELECT format('ALTER SEQUENCE %I.%I OWNED BY NONE', m.nspname, s.relname),
       format('ALTER SEQUENCE %I.%I OWNED BY %I.%I.%I', m.nspname, s.relname, n.nspname, c.relname,
              a.attname)
  FROM pg_depend d
  JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
  JOIN pg_namespace m ON m.oid = s.relnamespace
  JOIN pg_class c ON c.oid = d.refobjid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
 WHERE d.refobjid = $1::oid AND d.deptype = 'a'
   AND d.classid = 'pg_class'::regclass AND d.refclassid = d.classid
 ORDER BY 1
"""

# `own` goes with the table and is made anew, `moved` is hung on the new one; what depends on the
# table or on anything of its own and is neither is told.
_UNKNOWN: Final = """
WITH own(class, oid, asked) AS (
    SELECT 'pg_class'::regclass::oid, $1::oid, true
     UNION ALL
    SELECT 'pg_type'::regclass, t.oid, true
      FROM pg_type t JOIN pg_class c ON c.oid = $1::oid WHERE c.reltype IN (t.oid, t.typelem)
     UNION ALL
    SELECT 'pg_type'::regclass, t.oid, false  -- a sequence's row type, before 15
      FROM pg_depend d JOIN pg_type t ON t.typrelid = d.objid
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = d.classid AND d.refobjid = $1::oid
       AND d.deptype IN ('i', 'a')
     UNION ALL
    SELECT 'pg_class'::regclass, indexrelid, true FROM pg_index WHERE indrelid = $1::oid
     UNION ALL
    SELECT 'pg_constraint'::regclass, oid, true FROM pg_constraint WHERE conrelid = $1::oid
     UNION ALL
    SELECT 'pg_class'::regclass, d.objid, c.relkind = 'S' AND d.deptype = 'i'
      FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind IN ('S', 't')
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = d.classid AND d.refobjid = $1::oid
       AND d.deptype IN ('i', 'a')
     UNION ALL
    SELECT 'pg_attrdef'::regclass, oid, true FROM pg_attrdef WHERE adrelid = $1::oid
     UNION ALL
    SELECT 'pg_trigger'::regclass, oid, true FROM pg_trigger
     WHERE tgrelid = $1::oid OR tgisinternal AND tgconstrrelid = $1::oid
     UNION ALL
    SELECT 'pg_policy'::regclass, oid, true FROM pg_policy WHERE polrelid = $1::oid
     UNION ALL
    SELECT 'pg_rewrite'::regclass, oid, true FROM pg_rewrite WHERE ev_class = $1::oid
     UNION ALL
    SELECT 'pg_statistic_ext'::regclass, oid, true FROM pg_statistic_ext WHERE stxrelid = $1::oid
), moved(class, oid) AS (
    SELECT 'pg_constraint'::regclass::oid, oid FROM pg_constraint
     WHERE contype = 'f' AND confrelid = $1::oid
     UNION ALL
    SELECT 'pg_publication_rel'::regclass, oid FROM pg_publication_rel WHERE prrelid = $1::oid
     UNION ALL
    SELECT 'pg_rewrite'::regclass, r.oid
      FROM pg_rewrite r JOIN pg_class v ON v.oid = r.ev_class
     WHERE v.relkind <> 'm' AND v.relpersistence = 'p'
     UNION ALL
    SELECT 'pg_policy'::regclass, oid FROM pg_policy
     UNION ALL
    SELECT 'pg_proc'::regclass, p.oid FROM pg_proc p
     WHERE p.oid IN (SELECT objid FROM pg_depend
                      WHERE classid = 'pg_proc'::regclass AND refobjid = $1::oid)
       AND to_jsonb(p) ->> 'prosqlbody' IS NOT NULL
)
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid)
       || ' depends on ' || pg_describe_object(d.refclassid, d.refobjid, 0)
  FROM pg_depend d JOIN own o ON o.class = d.refclassid AND o.oid = d.refobjid AND o.asked
 WHERE (d.classid, d.objid) NOT IN (SELECT class, oid FROM own)
   AND (d.refclassid = 'pg_type'::regclass
        OR (d.classid, d.objid) NOT IN (SELECT class, oid FROM moved))
 UNION ALL
SELECT pg_describe_object(d.classid, d.objid, 0) || ' belongs to '
       || pg_describe_object(d.refclassid, d.refobjid, 0)
  FROM pg_depend d JOIN own o ON o.class = d.classid AND o.oid = d.objid
 WHERE d.deptype IN ('e', 'x')
 ORDER BY 1
"""

# Objects of others, which we may not change. The table's own owner comes first.
_NOT_OURS: Final = """
SELECT pg_describe_object(class, oid, 0) || ' belongs to ' || pg_get_userbyid(owner)
  FROM (SELECT 1, 'pg_class'::regclass::oid, oid, relowner FROM pg_class WHERE oid = $1::oid
         UNION ALL
        SELECT 2, d.refclassid, v.oid, v.relowner
          FROM pg_depend r JOIN pg_rewrite w ON w.oid = r.objid
          JOIN pg_class v ON v.oid = w.ev_class
          CROSS JOIN (SELECT 'pg_class'::regclass::oid AS refclassid) d
         WHERE r.classid = 'pg_rewrite'::regclass AND r.refobjid = $1::oid
           AND r.refclassid = 'pg_class'::regclass
         UNION ALL
        SELECT 3, 'pg_class'::regclass, c.oid, c.relowner
          FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
         WHERE k.confrelid = $1::oid
         UNION ALL
        SELECT 4, 'pg_class'::regclass, c.oid, c.relowner
          FROM pg_depend d JOIN pg_policy p ON p.oid = d.objid JOIN pg_class c ON c.oid = p.polrelid
         WHERE d.classid = 'pg_policy'::regclass AND d.refobjid = $1::oid
           AND d.refclassid = 'pg_class'::regclass
         UNION ALL
        SELECT 5, 'pg_proc'::regclass, p.oid, p.proowner
          FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
         WHERE d.classid = 'pg_proc'::regclass AND d.refobjid = $1::oid
           AND d.refclassid = 'pg_class'::regclass
         UNION ALL
        SELECT 6, 'pg_publication'::regclass, p.oid, p.pubowner
          FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
         WHERE r.prrelid = $1::oid) AS touched(step, class, oid, owner)
 WHERE NOT pg_has_role(owner, 'USAGE')
 ORDER BY step, 1
"""


@dataclass(frozen=True)
class ForeignKey:
    """Names are quoted and qualified. `outward` leads from the table, `inward` to it, both to
    itself. `filled` and `match` are conditions on a referencing row f and a referenced row p."""

    table: str
    parent: str
    name: str
    definition: str
    valid: bool
    comment: str  # the statement that makes it
    outward: bool
    inward: bool
    filled: str
    match: str

    @property
    def enforced(self) -> bool:
        return not self.definition.endswith("NOT ENFORCED")  # 18 on

    @property
    def plain_name(self) -> str:
        """As the catalog has it."""
        quoted = self.name.startswith('"')
        return self.name[1:-1].replace('""', '"') if quoted else self.name

    def validation(self) -> str:
        return f"ALTER TABLE {self.table} VALIDATE CONSTRAINT {self.name}"


@dataclass(frozen=True)
class Restated:
    """An object that names the table and is said again; `relation` is locked for it."""

    relation: str | None
    kind: str  # pg_class.relkind, or function
    owner: str
    statement: str

    def lock(self) -> str | None:
        """LOCK TABLE would lock whatever a view reads; to give it the owner that it has, not."""
        if self.relation is None:
            return None
        if self.kind == "v":
            return f"ALTER VIEW {self.relation} OWNER TO {self.owner}"
        return f"LOCK TABLE ONLY {self.relation} IN ACCESS EXCLUSIVE MODE"


@dataclass(frozen=True)
class Moved:
    """Something that is taken from the former table and given to the new one."""

    release: str
    attach: str


@dataclass(frozen=True)
class Dependents:
    """All that hangs on a table; equal ones are said by equal statements."""

    foreign_keys: tuple[ForeignKey, ...] = ()
    restated: tuple[Restated, ...] = ()
    publications: tuple[Moved, ...] = ()
    sequences: tuple[Moved, ...] = ()

    def locks(self) -> list[str]:
        """Statements that take every lock but the table's own; each relation once.

        Views come before tables, as for whoever reads through a view.
        """
        views = [lock for item in self.restated if (lock := item.lock())]
        users = [key.table for key in self.foreign_keys if key.inward and not key.outward]
        parents = [key.parent for key in self.foreign_keys if key.outward and not key.inward]
        locks = [
            *views,
            *(f"LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE" for table in users),
            *(f"LOCK TABLE ONLY {table} IN SHARE ROW EXCLUSIVE MODE" for table in parents),
        ]
        return list(dict.fromkeys(locks))

    def release(self) -> Iterator[str]:
        """While the former table bears the name."""
        for key in self.foreign_keys:
            yield f"ALTER TABLE {key.table} DROP CONSTRAINT {key.name}"
        for moved in (*self.publications, *self.sequences):
            yield moved.release

    def attach(self) -> Iterator[str]:
        """When the new table bears the name."""
        for moved in (*self.sequences, *self.publications):
            yield moved.attach
        for key in self.foreign_keys:
            yield f"ALTER TABLE {key.table} ADD CONSTRAINT {key.name} {key.definition} NOT VALID"
            yield key.comment
        for item in self.restated:
            yield item.statement

    def validations(self) -> list[str]:
        """Afterwards, each in a transaction of its own."""
        return [key.validation() for key in self.foreign_keys if key.valid]


def read_dependents(cursor: Cursor, oid: int) -> Dependents:
    """What hangs on a table; in a transaction after QUALIFIED_NAMES."""
    detailed = cursor.connection.info.server_version >= _PUBLICATION_DETAILS_SINCE
    publications = _PUBLICATIONS.replace("{details}", _PUBLICATION_DETAILS if detailed else "")
    return Dependents(
        foreign_keys=tuple(ForeignKey(*row) for row in catalog_rows(cursor, _FOREIGN_KEYS, oid)),
        restated=tuple(Restated(*row[1:]) for row in catalog_rows(cursor, _RESTATED, oid)),
        publications=tuple(Moved(*row) for row in catalog_rows(cursor, publications, oid)),
        sequences=tuple(Moved(*row) for row in catalog_rows(cursor, _OWNED_SEQUENCES, oid)),
    )


def obstacles(cursor: Cursor, oid: int) -> Sequence[str]:
    """Objects that would be lost or cannot be changed by us, as clauses for a person."""
    found = [*catalog_rows(cursor, _NOT_OURS, oid), *catalog_rows(cursor, _UNKNOWN, oid)]
    return [row[0] for row in found]
