"""Slots whose decoder knows every table as it is.

From Postgres 14 on (measured up to 18.6) the decoder of a slot that has just begun does not know
what a transaction did to the catalog before the decoder had seen all running ones (state
SNAPBUILD_FULL_SNAPSHOT in snapbuild.c) if that transaction committed afterwards. Until another
one alters the catalog, it decodes with the old definitions: the values of a new column are missing
without a word, and a table that was truncated or rewritten cannot be found ("could not map
filenumber"). All those transactions begin after the command that creates the slot, and end before
it does. So whatever of the catalog was written meanwhile makes the slot suspect, and another one is
begun.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

import psycopg

from headrace import failpoints
from headrace.connectors.postgres.coverage import PUBLISHED_SCHEMAS_SINCE
from headrace.connectors.postgres.slots import create_slot, creation, drop_slot
from headrace.model import Lsn

NEXT: Final = """
SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text
"""

# Temporary tables are not decoded. What is gone by now is not missed by anybody.
_WRITTEN: Final = """
SELECT what::text FROM (
    SELECT c.xmin, c.oid::regclass::text FROM pg_catalog.pg_class c WHERE c.relpersistence <> 't'
     UNION ALL
    SELECT a.xmin, c.oid::regclass::text FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_class c ON c.oid = a.attrelid WHERE c.relpersistence <> 't'
     UNION ALL
    SELECT i.xmin, c.oid::regclass::text FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class c ON c.oid = i.indrelid WHERE c.relpersistence <> 't'
     UNION ALL
    SELECT xmin, inhrelid::regclass::text FROM pg_catalog.pg_inherits
     UNION ALL
    SELECT xmin, oid::regtype::text FROM pg_catalog.pg_type
     WHERE typtype <> 'c' AND typcategory <> 'A'  -- which tables have, temporary ones too
     UNION ALL
    SELECT xmin, enumtypid::regtype::text FROM pg_catalog.pg_enum
     UNION ALL
    SELECT xmin, nspname FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_'
     UNION ALL
    SELECT xmin, pubname FROM pg_catalog.pg_publication
     UNION ALL
    SELECT xmin, prrelid::regclass::text FROM pg_catalog.pg_publication_rel
    {schemas}
) AS rows (written_by, what)
 WHERE pg_catalog.age(written_by) BETWEEN 0 AND pg_catalog.age(%s::xid) LIMIT 1
"""
WRITTEN: Final = _WRITTEN.format(
    schemas="UNION ALL"
    " SELECT xmin, pnnspid::regnamespace::text FROM pg_catalog.pg_publication_namespace"
)
WRITTEN_BEFORE_15: Final = _WRITTEN.format(schemas="")

_log = logging.getLogger("headrace.run")


def begin_slot(
    replication: psycopg.Connection[Any],
    session: psycopg.Connection[Any],
    slot: str,
    stop: threading.Event,
    *,
    failover: bool,
) -> Lsn:
    """Create a slot to stay; gives the LSN that its changes come after. See `create_slot`."""
    has_schemas = session.info.server_version >= PUBLISHED_SCHEMAS_SINCE
    written = WRITTEN if has_schemas else WRITTEN_BEFORE_15
    while True:
        first = _only(session, NEXT)
        command = creation(session, slot, failover=failover)
        result = create_slot(replication, session, command, stop)
        failpoints.hit("slot.created")
        altered = _only(session, written, first)
        if altered is None:
            return Lsn.parse((result.get_value(0, 1) or b"").decode())
        _log.warning("slot_begun_anew slot=%s reason='%s was altered meanwhile'", slot, altered)
        drop_slot(session, slot)


def _only(session: psycopg.Connection[Any], query: str, *parameters: object) -> str | None:
    row = session.execute(query.encode(), parameters).fetchone()
    return None if row is None else str(row[0])
