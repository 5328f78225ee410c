"""Changes of tables made where a slot that begins is blind to them: see `slot_start`.

Postgres waits twice before a slot has begun: for whoever was there at first, then for whoever was
there when that was over. Of what the latter did to the catalog before, its decoder does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from headrace.testing.database import Database

WAITS = """
select count(*) from pg_stat_activity
 where query like 'CREATE_REPLICATION_SLOT%%' and %s = any (pg_blocking_pids(pid))
"""
BLIND_CHANGES = ("alter table customers add column more int default 5", "truncate events")
Session = psycopg.Connection[tuple[Any, ...]]


@contextmanager
def beginning_beside(database: Database, change: str) -> Iterator[Callable[[], None]]:
    """To be called while a slot begins: `change` is made where the decoder is blind."""
    sessions = [database.connect(autocommit=False) for _ in range(3)]
    before, between, after = sessions

    def begin() -> None:
        await_waiting(database, before)
        between.execute(change.encode())
        before.commit()
        await_waiting(database, between)
        after.execute("insert into lines values (1000, 1, 'bolt', 1)")
        between.commit()
        write(after, 1000)

    before.execute("select pg_current_xact_id()")
    try:
        yield begin
    finally:
        for session in sessions:
            session.close()


def await_waiting(database: Database, session: Session) -> None:
    """Until the server waits for a session's transaction before it begins a slot."""
    while database.execute(WAITS, [session.info.backend_pid]) == [(0,)]:
        pass


def write(session: Session, key: int) -> None:
    """To all tables that are changed, and to the column that is added, where it is."""
    columns = session.execute("select * from customers limit 0").description or ()
    session.execute("insert into customers (id) values (%s)", [key])
    if "more" in [column.name for column in columns]:
        session.execute("update customers set more = 7 where id = %s", [key])
    session.execute("insert into events values ('kind', %s, 'blob')", [str(key)])
    session.commit()
