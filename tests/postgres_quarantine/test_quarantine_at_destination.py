"""Tables of a destination with their quarantine: what is parked and where they stand agree."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from parking_lot import LOG, settings_of

from headrace.connectors.postgres import quarantine
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.replay import Replayed
from headrace.connectors.postgres.synced_table import PostgresTable
from headrace.errors import DestinationUnavailableError, DivergedError, QuarantineFullError
from headrace.model import Checkpoint, Column, Delivery, Lsn, NetChanges, TableId, TableSchema
from headrace.testing.database import Database

PIPELINE = "lake_to_shop"
PARENT, CHILD = TableId("public", "parent"), TableId("public", "child")
COLUMNS = (Column("id", pa.int64(), "long"), Column("parent", pa.int64(), "long"))
DELIVERY = Delivery(quarantine_rows=3)


class Place:
    """Tables parent and child, whose `parent` points to a row of the former."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.destination = PostgresDestination(settings_of(database))
        self.tables = {name: self._made(name) for name in (PARENT, CHILD)}
        database.execute("alter table child add foreign key (parent) references parent")
        self.beside = self.destination.table(CHILD, PIPELINE, DELIVERY)  # as a command has it

    def _made(self, name: TableId) -> PostgresTable:
        table = self.destination.table(name, PIPELINE, DELIVERY)
        table.prepare(self.schema(name))
        return table

    def schema(self, name: TableId) -> TableSchema:
        return TableSchema(name, 1, COLUMNS, ("id",))

    def apply(self, name: TableId, version: int, *rows: tuple[int, int | None]) -> None:
        schema = self.schema(name)
        upserts = pa.Table.from_pylist([{"id": i, "parent": p} for i, p in rows], schema.arrow())
        gone = schema.arrow().empty_table().select(["id"])
        self.tables[name].apply(NetChanges(schema, upserts, gone), self.at(version))

    @staticmethod
    def at(version: int) -> Checkpoint:
        return Checkpoint(LOG, version, Lsn(version))

    def rows(self, name: TableId) -> list[tuple[Any, ...]]:
        return self.database.execute(f"select id, parent from {name} order by id")

    def parked(self) -> dict[TableId, int]:
        with self.database.connect() as connection:
            return quarantine.counts(connection.cursor(), PIPELINE)

    def close(self) -> None:
        self.destination.close()


@pytest.fixture
def place(database: Database) -> Iterator[Place]:
    made = Place(database)
    yield made
    made.close()


def test_good_rows_parked_rows_and_checkpoint_are_one_commit(place: Place) -> None:
    """DESIGN §13, invariants 3 and 12."""
    place.apply(PARENT, 1, (1, None))
    place.apply(CHILD, 1, (10, 1), (11, 2), (12, None))
    assert place.rows(CHILD) == [(10, 1), (12, None)]
    assert place.parked() == {CHILD: 1}
    assert place.tables[CHILD].standing() == place.at(1)
    place.apply(CHILD, 1, (10, 1), (11, 2), (12, None))  # again: nothing is done twice
    assert place.parked() == {CHILD: 1}


def test_over_its_budget_a_table_stands_where_it_stood(place: Place) -> None:
    place.apply(CHILD, 1, (9, None))
    with pytest.raises(QuarantineFullError):
        place.apply(CHILD, 2, (10, None), *((i, 5) for i in range(20, 24)))
    assert (place.rows(CHILD), place.parked()) == ([(9, None)], {})
    assert place.tables[CHILD].standing() == place.at(1)


def test_a_row_that_waits_is_applied_once_the_other_table_has_its_parent(place: Place) -> None:
    place.apply(CHILD, 1, (10, 1), (11, 2))
    assert place.tables[CHILD].retry_waiting() == 2
    place.apply(PARENT, 1, (1, None))
    assert place.tables[CHILD].retry_waiting() == 1
    assert place.rows(CHILD) == [(10, 1)]
    assert place.parked() == {CHILD: 1}
    place.apply(PARENT, 2, (2, None))
    assert place.beside.retry_waiting() == 0
    assert (place.rows(CHILD), place.parked()) == ([(10, 1), (11, 2)], {})
    assert place.tables[CHILD].retry_waiting() == 0


def test_a_retry_waits_for_an_apply_that_supersedes_its_row(place: Place) -> None:
    place.apply(CHILD, 1, (10, 1))
    done: list[Replayed] = []

    def retry() -> None:
        done.append(place.beside.retry())

    with place.database.connect() as other:
        with other.transaction():
            other.execute("select from headrace.checkpoints where table_name = 'child' for update")
            thread = threading.Thread(target=retry)
            thread.start()
            await_lock_waiter(place.database)
            other.execute("delete from headrace.quarantine")
            other.execute("insert into child values (10, null)")
        thread.join()
    assert done == [Replayed(0, {})]
    assert place.rows(CHILD) == [(10, None)]


def await_lock_waiter(database: Database) -> None:
    waits = "select count(*) from pg_locks where not granted"
    with database.connect() as watcher:
        while watcher.execute(waits).fetchall() == [(0,)]:
            watcher.execute("select pg_sleep(0.005)")


def test_a_retry_that_meets_no_rows_fault_changes_nothing(place: Place) -> None:
    place.apply(CHILD, 1, (10, 1), (11, 2))
    place.apply(PARENT, 1, (1, None), (2, None))
    place.database.execute("""
    create function stop() returns trigger language plpgsql as $$
    begin if new.id = 11 then raise exception 'later' using errcode = '57014'; end if;
    return new; end $$;
    create trigger stop before insert on child for each row execute function stop()
    """)
    with pytest.raises(DestinationUnavailableError):
        place.beside.retry()
    assert (place.rows(CHILD), place.parked()) == ([], {CHILD: 2})


def test_rows_of_a_table_that_is_gone_cannot_be_tried_again(place: Place) -> None:
    place.apply(CHILD, 1, (10, 1))
    place.database.execute("drop table child")
    with pytest.raises(DivergedError) as raised:
        place.beside.retry()
    assert raised.value.hint == "headrace resync public.child"


def test_a_later_version_of_a_parked_row_is_applied_by_the_destination(place: Place) -> None:
    place.apply(CHILD, 1, (10, 1))
    place.apply(CHILD, 2, (10, None))
    assert (place.rows(CHILD), place.parked()) == ([(10, None)], {})


def test_a_connection_lost_in_the_search_leaves_nothing_half_done(place: Place) -> None:
    place.apply(PARENT, 1, (1, None))
    place.database.execute("""
    create function vanish() returns trigger language plpgsql as $$
    begin if new.id = 15 then perform pg_terminate_backend(pg_backend_pid()); end if;
    return new; end $$;
    create trigger vanish before insert on child for each row execute function vanish()
    """)
    with pytest.raises(DestinationUnavailableError):
        place.apply(CHILD, 1, (10, 7), *((i, 1) for i in range(11, 20)))
    assert (place.rows(CHILD), place.parked()) == ([], {})
    place.database.execute("drop trigger vanish on child")
    place.apply(CHILD, 1, (10, 7), *((i, 1) for i in range(11, 20)))
    assert len(place.rows(CHILD)) == 9
    assert place.parked() == {CHILD: 1}
