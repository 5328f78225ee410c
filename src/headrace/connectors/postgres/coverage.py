"""Whether the stream still tells every change of a table: what a start and a running capture watch.

Nothing in the stream says that a table left the publication, that its rows are filtered from now
on, or that another table took its name. The catalog does, by the oids of the table and of its
membership: a membership that is altered, or taken away and given back, gets a new one.

Nor does it say that rows came to a partitioned table, or left it, together with their partition:
those of one that is attached, detached, dropped, or truncated by itself (of a publication with
publish_via_partition_root, a TRUNCATE is sent under the root's name or not at all).

Nor that all rows print otherwise from now on, because an enum's label was renamed or a composite
type altered, neither of which writes a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Final

import psycopg

from headrace.model import TableId

PUBLISHED_SCHEMAS_SINCE: Final = 150000  # pg_publication_namespace came with them

# A partition is published by itself, with a table it is part of, or, via the root, as that.
_MEMBERSHIP: Final = """
SELECT n.nspname::text, c.relname::text, c.oid::bigint,
       CASE WHEN (p.puballtables OR line.members IS NOT NULL)
                 AND NOT (p.pubviaroot AND line.under_another)
            THEN pg_catalog.concat_ws(' ', p.oid, line.members, p.pubinsert, p.pubupdate,
                                      p.pubdelete, p.pubtruncate, p.pubviaroot)
        END
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN pg_catalog.pg_publication p
 CROSS JOIN LATERAL (
       SELECT pg_catalog.string_agg(m.oid::text, ' ' ORDER BY m.oid) AS members,
              pg_catalog.bool_or(l.relid <> c.oid
                                 AND (p.puballtables OR m.oid IS NOT NULL)) AS under_another
         FROM (SELECT c.oid AS relid
                UNION
               SELECT relid FROM pg_catalog.pg_partition_ancestors(c.oid)) AS l
         JOIN pg_catalog.pg_class t ON t.oid = l.relid
         LEFT JOIN (SELECT oid, prrelid AS relation, NULL::oid AS schema
                      FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid
                    {schemas}) AS m ON m.relation = t.oid OR m.schema = t.relnamespace
       ) AS line
 WHERE p.pubname = %s AND c.relkind IN ('r', 'p')
"""
MEMBERSHIP: Final = _MEMBERSHIP.format(
    schemas="UNION ALL SELECT oid, NULL, pnnspid"
    " FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = p.oid"
)
MEMBERSHIP_BEFORE_15: Final = _MEMBERSHIP.format(schemas="")

# Of partitions of all levels: `file` is that of a leaf's rows, 0 of what has none itself; `written`
# and `attached` are the transactions that last wrote its entry and made it a part; `born` says that
# CREATE TABLE … PARTITION OF made it, so that it had no rows before. That command writes columns
# first and the inheritance then, while ATTACH PARTITION writes all of them anew by one command, as
# their cmin tells. The entry of ctid (-1) stays as the table's creation wrote it.
PARTS: Final = """
SELECT n.nspname::text, c.relname::text, m.oid::bigint,
       pg_catalog.format('%%I.%%I', mn.nspname, m.relname) AS name,
       CASE WHEN m.relkind = 'p' THEN 0 ELSE m.relfilenode::bigint END AS file,
       m.xmin::text AS written, i.xmin::text AS attached,
       i.xmin = own.xmin AND (m.relkind = 'p' OR m.relfilenode = m.oid)
       AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
                    WHERE a.attrelid = m.oid AND a.attnum > 0 AND NOT a.attisdropped
                      AND a.xmin = i.xmin
                      AND a.cmin::text::bigint < i.cmin::text::bigint) AS born
  FROM ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]), pg_catalog.unnest(%(names)s::text[]))
       AS w (schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind = 'p'
 CROSS JOIN LATERAL (
       WITH RECURSIVE below (relid) AS (
            SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = c.oid
             UNION ALL
            SELECT l.inhrelid FROM pg_catalog.pg_inherits l JOIN below ON l.inhparent = below.relid
       ) SELECT relid FROM below
       ) AS part
  JOIN pg_catalog.pg_inherits i ON i.inhrelid = part.relid
  JOIN pg_catalog.pg_class m ON m.oid = part.relid AND m.oid <> c.oid
  JOIN pg_catalog.pg_namespace mn ON mn.oid = m.relnamespace
  JOIN pg_catalog.pg_attribute own ON own.attrelid = m.oid AND own.attnum = -1
"""

# What types of users, of the columns and inside of those, print as: labels of enums one by one, as
# new ones harm nobody, and the attributes of a composite type together.
SPELLINGS: Final = """
WITH RECURSIVE used (schema, name, type) AS (
SELECT w.schema, w.name, a.atttypid
  FROM ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]), pg_catalog.unnest(%(names)s::text[]))
       AS w (schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE a.atttypid >= 16384
 UNION
SELECT u.schema, u.name, inner_type.oid
  FROM used u
  JOIN pg_catalog.pg_type t ON t.oid = u.type
 CROSS JOIN LATERAL (
       SELECT t.typbasetype UNION ALL SELECT t.typelem UNION ALL
       SELECT a.atttypid FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
       ) AS inner_type (oid)
 WHERE inner_type.oid >= 16384)
SELECT u.schema, u.name, pg_catalog.format('enum %%s, label %%s', t.typname, e.oid), e.enumlabel
  FROM used u
  JOIN pg_catalog.pg_enum e ON e.enumtypid = u.type
  JOIN pg_catalog.pg_type t ON t.oid = u.type
 UNION ALL
SELECT u.schema, u.name, pg_catalog.format('composite type %%s, %%s', t.typname, t.oid),
       pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid,
                                                  a.atttypmod), ', ' ORDER BY a.attnum)
  FROM used u
  JOIN pg_catalog.pg_type t ON t.oid = u.type AND t.typtype = 'c'
  JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
 GROUP BY 1, 2, 3
"""


@dataclass(frozen=True)
class Part:
    """A partition; see PARTS."""

    name: str
    file: int
    written: str
    attached: str
    born: bool


@dataclass(frozen=True)
class Coverage:
    """Which table bears a name, and how it is published; None where it is not.

    `parts` are its partitions of all levels by oid; None where nobody looked. `spellings` are what
    its users' types print as.
    """

    relation: int
    membership: str | None
    parts: Mapping[int, Part] | None = field(default=None)
    spellings: Mapping[str, str] = field(default_factory=dict)


GONE: Final = Coverage(0, None)


def read_coverage(
    session: psycopg.Connection[Any], publication: str, tables: Collection[TableId]
) -> dict[TableId, Coverage] | None:
    """The coverage of those of `tables` that exist; None without the publication."""
    schemas = session.info.server_version >= PUBLISHED_SCHEMAS_SINCE
    rows = session.execute(MEMBERSHIP if schemas else MEMBERSHIP_BEFORE_15, (publication,))
    members = {
        TableId(schema, name): (relation, membership) for schema, name, relation, membership in rows
    }
    if not members:
        return None
    wanted = {"schemas": [t.schema for t in tables], "names": [t.name for t in tables]}
    parts: dict[TableId, dict[int, Part]] = {}
    for schema, name, oid, *part in session.execute(PARTS, wanted):
        parts.setdefault(TableId(schema, name), {})[oid] = Part(*part)
    spellings: dict[TableId, dict[str, str]] = {}
    for schema, name, what, spelling in session.execute(SPELLINGS, wanted):
        spellings.setdefault(TableId(schema, name), {})[what] = spelling
    return {
        table: Coverage(*members[table], parts.get(table, {}), spellings.get(table, {}))
        for table in tables
        if table in members
    }


# -- the record in the log's folder ----------------------------------------------------------------


def to_record(covered: Mapping[TableId, Coverage]) -> list[list[Any]]:
    """As JSON holds it."""
    return [
        [
            *(table.schema, table.name, was.relation, was.membership),
            [[oid, *astuple(part)] for oid, part in (was.parts or {}).items()],
            dict(was.spellings),
        ]
        for table, was in covered.items()
    ]


def from_record(rows: Iterable[Sequence[Any]]) -> dict[TableId, Coverage]:
    """What `to_record` gave; older records lack partitions, or what types print as."""
    return {
        TableId(schema, name): Coverage(relation, membership, *_looked_at(*more))
        for schema, name, relation, membership, *more in rows
    }


def _looked_at(
    parts: Iterable[Sequence[Any]] | None = None, spellings: Mapping[str, str] | None = None
) -> tuple[dict[int, Part] | None, Mapping[str, str]]:
    known = None if parts is None else {oid: Part(*part) for oid, *part in parts}
    return known, spellings or {}


# -- what departed ---------------------------------------------------------------------------------


def departures(
    before: Mapping[TableId, Coverage], now: Mapping[TableId, Coverage], publication: str
) -> dict[TableId, str]:
    """Why changes of a table that was covered may be missing, for each of which that is so."""
    reasons = {table: _departure(was, now.get(table)) for table, was in before.items()}
    return {
        table: f"{table}: {reason.format(publication=repr(publication))}"
        for table, reason in reasons.items()
        if reason is not None
    }


def _departure(was: Coverage, now: Coverage | None) -> str | None:
    if was.membership is None:
        return None  # it was told when it went
    if now is None:
        return "it was renamed, dropped, or is selected no more; its changes are not followed"
    if now.relation != was.relation:
        return "another table has its name now: it was dropped and created anew, or renamed"
    if now.membership is None:
        return "it is in publication {publication} no more; its changes are not sent"
    if now.membership != was.membership:
        return "its place in publication {publication} was changed; changes may not have been sent"
    for what, spelling in was.spellings.items():
        if now.spellings.get(what, spelling) != spelling:
            return f"{what.partition(',')[0]} was altered; rows from before have what it was"
    if was.parts is None or now.parts is None:
        return None
    return next(_moved(was.parts, now.parts), None)


def _moved(before: Mapping[int, Part], now: Mapping[int, Part]) -> Iterator[str]:
    """Why a partitioned table has, or lacks, rows that the stream does not tell of."""
    for oid, part in before.items():
        if part.file and oid not in now:
            yield f"partition {part.name} was detached or dropped, with its rows"
    for oid, part in now.items():
        if (not part.born) if oid not in before else part.attached != before[oid].attached:
            yield f"partition {part.name} was attached, with rows that were not sent"
    both = [(before[oid], part) for oid, part in now.items() if oid in before and part.file]
    anew = [part for was, part in both if part.file != was.file]
    # All at once, that is a TRUNCATE or an ALTER TABLE of the whole, of which the stream tells.
    together = len(anew) == len(both) > 1 and len({part.written for part in anew}) == 1
    if anew and not together:
        yield f"partition {anew[0].name} was truncated or rewritten by itself"
