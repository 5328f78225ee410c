"""Who holds up a run, told from another session: a slot that is being created, or a locked table.

A run's log names those whom its slots wait for; `headrace status` asks here. The server lists a
slot as soon as its creation begins, and knows no confirmed position of it before that ends
(Postgres documentation, "pg_replication_slots").
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from headrace.connectors.postgres.slots import BLOCKERS, PREPARED

# The capture's own slot, and those that export snapshots.
CREATING: Final = r"""
SELECT active_pid FROM pg_catalog.pg_replication_slots
 WHERE (slot_name = %s OR slot_name LIKE 'headrace\_snapshot\_%%')
   AND database = pg_catalog.current_database()
   AND active_pid IS NOT NULL AND confirmed_flush_lsn IS NULL
"""

# A run's sessions have the application name of this one. Prepared transactions block as process 0.
LOCKED: Final = """
SELECT DISTINCT pg_catalog.format('%I.%I', n.nspname, c.relname), b.pid, a.usename::text,
       a.application_name, a.state,
       pg_catalog.to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
  FROM pg_catalog.pg_stat_activity w
  JOIN pg_catalog.pg_locks l ON l.pid = w.pid AND l.locktype = 'relation' AND NOT l.granted
  JOIN pg_catalog.pg_class c ON c.oid = l.relation
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) AS b (pid)
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
 WHERE w.datname = pg_catalog.current_database()
   AND w.application_name = pg_catalog.current_setting('application_name')
"""


def table_waits(session: psycopg.Connection[Any]) -> tuple[str, ...]:
    """Which tables sessions of ours wait for, and until who ends, in words with the cure."""
    return tuple(
        f"a session of ours waits for table {table}, which is locked by "
        + (
            f"a transaction that user {user} opened at {since}: pid {pid}, application "
            f"{application!r}, {state} (hint: SELECT pg_terminate_backend({pid}) ends it)"
            if pid
            else "a prepared transaction (hint: COMMIT PREPARED or ROLLBACK PREPARED it)"
        )
        for table, pid, user, application, state, since in session.execute(LOCKED)
    )


def creation_waits(session: psycopg.Connection[Any], slot: str) -> tuple[str, ...]:
    """What a slot of ours that is being created waits for, in words with the cure; usually none."""
    creating = [pid for (pid,) in session.execute(CREATING, (slot,))]
    found = [
        f"a snapshot waits until a transaction ends that user {user} opened in database {database} "
        f"at {since}: pid {pid}, application {application!r}, {state} "
        f"(hint: SELECT pg_terminate_backend({pid}) ends it)"
        for backend in creating
        for pid, user, database, application, state, since in session.execute(BLOCKERS, (backend,))
    ]
    if creating and not found:
        found = [
            f"a snapshot may wait for the prepared transaction {gid!r} of {owner} in database "
            f"{database} (hint: COMMIT PREPARED or ROLLBACK PREPARED it)"
            for gid, owner, database in session.execute(PREPARED)
        ]
    return tuple(found)
