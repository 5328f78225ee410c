"""The source's own types that a destination lacks, found beforehand, with the SQL that makes them.

Columns get the source's own type names (DESIGN.md §12, from Postgres to Postgres): domains, enums,
composites, ranges and what extensions bring must stand at the destination too. Nobody but its owner
can say how they are to be made there, so Headrace tells the statements and runs none.

Types are named as a session's search_path shows them, and looked up by the destination's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from headrace.connectors.postgres.identifiers import quoted
from headrace.model import TableId
from headrace.model.finding import Finding, Severity

Connection = psycopg.Connection[Any]

# A table's types and those that they are made of, the deepest first, without what every server has.
# The multirange of a range comes with it (pg_range has that column from 14 on).
_NEEDED: Final = """
WITH RECURSIVE needed AS (
    SELECT a.atttypid AS type, 0 AS depth
      FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE (n.nspname, c.relname) = (%s, %s) AND a.attname = ANY (%s)
       AND a.attnum > 0 AND NOT a.attisdropped
     UNION
    SELECT part.type, n.depth + 1
      FROM needed n
      JOIN pg_catalog.pg_type t ON t.oid = n.type
     CROSS JOIN LATERAL (
           SELECT t.typbasetype WHERE t.typtype = 'd'
            UNION ALL
           SELECT t.typelem WHERE (t.typtype, t.typcategory) = ('b', 'A')
            UNION ALL
           SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid
              AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
           SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid
            UNION ALL
           SELECT r.rngtypid FROM pg_catalog.pg_range r
            WHERE (pg_catalog.to_jsonb(r) ->> 'rngmultitypid')::oid = t.oid
           ) AS part (type)
), deepest AS (
    SELECT type, max(depth) AS depth FROM needed GROUP BY type
)
SELECT pg_catalog.format_type(t.oid, NULL) AS name,
       CASE WHEN t.typtype = 'c' AND c.relkind <> 'c' THEN 'row' ELSE t.typtype::text END AS kind,
       (SELECT e.extname::text FROM pg_catalog.pg_depend d
          JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
         WHERE (d.classid, d.objid, d.deptype) = ('pg_catalog.pg_type'::regclass, t.oid, 'e')
       ) AS extension,
       ARRAY (SELECT l.enumlabel::text FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid
               ORDER BY l.enumsortorder) AS labels,
       CASE t.typtype
       WHEN 'd' THEN
           pg_catalog.format_type(t.typbasetype, t.typtypmod)
           || coalesce(' DEFAULT ' || t.typdefault, '')
           || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END
           || coalesce((SELECT pg_catalog.string_agg(
                                   ' CONSTRAINT ' || pg_catalog.quote_ident(k.conname) || ' '
                                   || pg_catalog.pg_get_constraintdef(k.oid), '' ORDER BY k.conname)
                          FROM pg_catalog.pg_constraint k
                         WHERE k.contypid = t.oid AND k.contype = 'c'), '')
       WHEN 'c' THEN
           (SELECT pg_catalog.string_agg(
                       pg_catalog.quote_ident(a.attname) || ' '
                       || pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
              FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
       WHEN 'r' THEN
           (SELECT 'SUBTYPE = ' || pg_catalog.format_type(r.rngsubtype, NULL)
              FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid)
       END AS definition
  FROM deepest d
  JOIN pg_catalog.pg_type t ON t.oid = d.type
  LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
 WHERE t.typnamespace <> 'pg_catalog'::regnamespace
   AND (t.typtype, t.typcategory) <> ('b', 'A') AND t.typtype <> 'm'
 ORDER BY d.depth DESC, t.oid
"""

_KNOWN: Final = """
SELECT pg_catalog.to_regtype(name) IS NOT NULL,
       ARRAY (SELECT l.enumlabel::text FROM pg_catalog.pg_enum l
               WHERE l.enumtypid = pg_catalog.to_regtype(name))
  FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS n (name, place) ORDER BY place
"""


@dataclass(frozen=True)
class NeededType:
    """A type of the source's own, as SQL names it. `kind` is pg_type.typtype, or `row`; `labels`
    are an enum's; `definition` is the rest of a statement that makes it, where there is one."""

    name: str
    kind: str
    extension: str | None
    labels: Sequence[str]
    definition: str | None

    def statement(self) -> str | None:
        """What makes it, if a statement does."""
        if self.extension is not None:
            name = quoted(self.extension)
            return f"CREATE EXTENSION IF NOT EXISTS {name}"
        match self.kind:
            case "e":
                return f"CREATE TYPE {self.name} AS ENUM ({', '.join(map(_text, self.labels))})"
            case "d":
                return f"CREATE DOMAIN {self.name} AS {self.definition}"
            case "c":
                return f"CREATE TYPE {self.name} AS ({self.definition})"
            case "r":
                return f"CREATE TYPE {self.name} AS RANGE ({self.definition})"
        return None  # a table's row type comes with the table, a base type with its library


def needed_types(source: Connection, table: TableId, columns: Collection[str]) -> list[NeededType]:
    """Types of a table that not every server has; what they are made of comes first."""
    with source.cursor(row_factory=class_row(NeededType)) as cursor:
        parameters = (table.schema, table.name, list(columns))
        return cursor.execute(_NEEDED.encode(), parameters).fetchall()


def type_findings(
    target: Connection, table: TableId, needed: Sequence[NeededType]
) -> Iterator[Finding]:
    """What of `needed` the destination lacks, and what labels its enums do."""
    names = [kind.name for kind in needed]
    known = target.execute(_KNOWN.encode(), (names,)).fetchall()
    missing = [kind for kind, (there, _) in zip(needed, known, strict=True) if not there]
    if missing:
        yield _missing(table, missing)
    for kind, (there, labels) in zip(needed, known, strict=True):
        lacking = [label for label in kind.labels if label not in labels]
        if there and labels and lacking:
            yield _unlabelled(table, kind, lacking)


def _missing(table: TableId, missing: Sequence[NeededType]) -> Finding:
    statements = dict.fromkeys(filter(None, (kind.statement() for kind in missing)))
    unmade = [kind.name for kind in missing if kind.statement() is None]
    names = ", ".join(kind.name for kind in missing)
    return Finding(
        Severity.BLOCKER,
        "target-types",
        f"{table}: the destination lacks the type {names}",
        (str(table),),
        fix=f"make {', '.join(unmade)} there as at the source" if unmade else "make them there",
        sql=tuple(statements),
    )


def _unlabelled(table: TableId, kind: NeededType, labels: Sequence[str]) -> Finding:
    return Finding(
        Severity.WARNING,
        "target-enum",
        f"{table}: rows with {', '.join(labels)} are quarantined, which the destination's "
        f"{kind.name} lacks",
        (str(table),),
        fix="add them there",
        sql=tuple(f"ALTER TYPE {kind.name} ADD VALUE {_text(label)}" for label in labels),
    )


def _text(value: str) -> str:
    return sql.Literal(value).as_string(None)
