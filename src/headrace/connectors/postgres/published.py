"""Which tables a publication sends changes of, without waiting for anybody who alters one of them.

The view pg_publication_tables opens each table from 15 on, and so waits for whoever has locked one,
to alter or truncate it. The catalogs alone tell the same (Postgres documentation, "System
Catalogs": pg_publication, pg_publication_rel and pg_publication_namespace).
"""

from __future__ import annotations

from typing import Final

VIEW: Final = "pg_catalog.pg_publication_tables"
OPENS_TABLES_SINCE: Final = 15

# Of a publication with publish_via_partition_root, what it names, but for partitions below others
# that it names; else ordinary tables, with the leaves of partitioned ones. Column lists and row
# filters are those of a table that is named itself, and not by its schema too.
_PUBLISHED: Final = """
(WITH RECURSIVE named (pub, relid) AS (
 SELECT r.prpubid, r.prrelid FROM pg_catalog.pg_publication_rel r
  UNION
 SELECT s.pnpubid, c.oid
   FROM pg_catalog.pg_publication_namespace s
   JOIN pg_catalog.pg_class c ON c.relnamespace = s.pnnspid
  WHERE c.relkind IN ('r', 'p') AND pg_catalog.pg_relation_is_publishable(c.oid)
  UNION
 SELECT p.oid, c.oid
   FROM pg_catalog.pg_publication p
  CROSS JOIN pg_catalog.pg_class c
  WHERE p.puballtables AND c.relkind IN ('r', 'p')
    AND pg_catalog.pg_relation_is_publishable(c.oid)
), tree (pub, relid, below) AS (
 SELECT pub, relid, false FROM named
  UNION
 SELECT t.pub, i.inhrelid, true
   FROM tree t
   JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relid
   JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
), listed (pub, relid) AS (
 SELECT n.pub, n.relid FROM named n JOIN pg_catalog.pg_publication p ON p.oid = n.pub
  WHERE p.pubviaroot
    AND NOT EXISTS (SELECT FROM tree t WHERE t.pub = n.pub AND t.relid = n.relid AND t.below)
  UNION
 SELECT t.pub, t.relid FROM tree t
   JOIN pg_catalog.pg_publication p ON p.oid = t.pub AND NOT p.pubviaroot
   JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind = 'r'
)
SELECT p.pubname, n.nspname AS schemaname, c.relname AS tablename,
       (SELECT pg_catalog.array_agg(a.attname ORDER BY a.attnum)
          FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           AND CASE WHEN r.prattrs IS NOT NULL THEN a.attnum = ANY (r.prattrs)
                    ELSE a.attgenerated = ''
                         OR pg_catalog.to_jsonb(p) ->> 'pubgencols' = a.attgenerated END
       ) AS attnames,
       pg_catalog.pg_get_expr(r.prqual, r.prrelid) AS rowfilter
  FROM listed l
  JOIN pg_catalog.pg_publication p ON p.oid = l.pub
  JOIN pg_catalog.pg_class c ON c.oid = l.relid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_publication_rel r
    ON r.prpubid = p.oid AND r.prrelid = c.oid
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                    WHERE s.pnpubid = p.oid AND s.pnnspid = c.relnamespace))
"""


def without_waiting(query: str, server_version: int) -> str:
    """`query`, which may ask VIEW, for a server of libpq's version number."""
    opens = server_version // 10000 >= OPENS_TABLES_SINCE
    return query.replace(VIEW, _PUBLISHED) if opens else query
