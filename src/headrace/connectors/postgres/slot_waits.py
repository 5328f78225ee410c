"""Who holds up a replication slot that is being created, told from another session.

A run's log names them as it waits; `headrace status` asks here. The server lists a slot as soon as
its creation begins, and knows no confirmed position of it before that ends (Postgres documentation,
"pg_replication_slots").
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
