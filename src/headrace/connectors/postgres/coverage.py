"""Whether the stream still tells every change of a table: what a start and a running capture watch.

Nothing in the stream says that a table left the publication, that its rows are filtered from now
on, or that another table took its name. The catalog does, by the oids of the table and of its
membership: a membership that is altered, or taken away and given back, gets a new one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from headrace.model import TableId

PUBLISHED_SCHEMAS_SINCE: Final = 150000  # pg_publication_namespace came with them

_MEMBERSHIP: Final = """
SELECT n.nspname::text, c.relname::text, c.oid::bigint,
       CASE WHEN p.puballtables OR r.oid IS NOT NULL OR {schema} IS NOT NULL
            THEN pg_catalog.concat_ws(' ', p.oid, r.oid, {schema}, p.pubinsert, p.pubupdate,
                                      p.pubdelete, p.pubtruncate, p.pubviaroot)
        END
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN pg_catalog.pg_publication p
  LEFT JOIN pg_catalog.pg_publication_rel r ON r.prrelid = c.oid AND r.prpubid = p.oid
  {join}
 WHERE p.pubname = %s AND c.relkind IN ('r', 'p')
"""
MEMBERSHIP: Final = _MEMBERSHIP.format(
    schema="s.oid",
    join="LEFT JOIN pg_catalog.pg_publication_namespace s"
    " ON s.pnnspid = n.oid AND s.pnpubid = p.oid",
)
MEMBERSHIP_BEFORE_15: Final = _MEMBERSHIP.format(schema="NULL::oid", join="")


@dataclass(frozen=True)
class Coverage:
    """Which table bears a name, and how it is published; None where it is not."""

    relation: int
    membership: str | None


def read_coverage(
    session: psycopg.Connection[Any], publication: str, tables: Collection[TableId]
) -> dict[TableId, Coverage] | None:
    """The coverage of those of `tables` that exist; None without the publication."""
    schemas = session.info.server_version >= PUBLISHED_SCHEMAS_SINCE
    rows = session.execute(MEMBERSHIP if schemas else MEMBERSHIP_BEFORE_15, (publication,))
    found = {
        TableId(schema, name): Coverage(relation, membership)
        for schema, name, relation, membership in rows
    }
    return {table: found[table] for table in tables if table in found} if found else None


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
    if now is None:
        return "it was renamed, dropped, or is selected no more; its changes are not followed"
    if now.relation != was.relation:
        return "another table has its name now: it was dropped and created anew, or renamed"
    if now.membership is None:
        return "it is in publication {publication} no more; its changes are not sent"
    if now.membership != was.membership:
        return "its place in publication {publication} was changed; changes may not have been sent"
    return None
