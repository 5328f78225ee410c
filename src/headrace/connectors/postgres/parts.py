"""A batch of rows as the parts that can be landed piece by piece."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from headrace.connectors.postgres.bisection import Operation, Part
from headrace.connectors.postgres.merge import Landing, WritePlan
from headrace.connectors.postgres.target_session import Cursor
from headrace.model import TableId

# A row that leaves and comes back would take others with it by a foreign key's action, or show
# itself to a trigger, or lose what a rule makes of it.
_BOUND: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint
                WHERE confrelid = c.oid AND contype = 'f' AND confdeltype IN ('c', 'n', 'd'))
    OR EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal)
    OR c.relhasrules
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE (n.nspname, c.relname) = (%s, %s)
"""


def parts(
    cursor: Cursor, plan: WritePlan, landing: Landing, upserts: pa.Table, deletes: pa.Table
) -> list[Part]:
    """Deletes, then upserts. Rows may make room for each other where none but us would notice."""

    def vacatable() -> bool:
        return bool(plan.key) and plan.only_ours and not _is_bound(cursor, plan.table)

    return [
        Part(Operation.DELETE, deletes, landing.delete),
        Part(Operation.UPSERT, upserts, landing.upsert, landing.vacate, vacatable),
    ]


def _is_bound(cursor: Cursor, table: TableId) -> bool:
    found = cursor.execute(_BOUND, [table.schema, table.name]).fetchone()
    return found is None or bool(found[0])
