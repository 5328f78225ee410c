"""A transaction that is handed over in parts after its commit: for each table all of it or nothing.

That is how a large one comes under protocol 1 (Postgres 13), or where the server cannot stream it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from check_source import PUBLICATION, CheckedSource, checked_source

from headrace.connectors.postgres import source as postgres_source
from headrace.connectors.postgres import stream as replication
from headrace.connectors.postgres.source import PostgresSource
from headrace.connectors.postgres.stream import ReplicationStream
from headrace.model import DecodedChanges, Finished, TableId
from headrace.testing.database import Database

BAD, GOOD = TableId("public", "bad"), TableId("public", "good")
ROWS = 1000  # of a kilobyte each
PART = 100_000  # bytes


@pytest.fixture
def source(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckedSource]:
    monkeypatch.setattr(postgres_source, "STREAMING_SINCE", 99)
    monkeypatch.setattr(replication, "BURST_BYTES", 1)  # one read
    with checked_source(database) as source:
        for table in (BAD, GOOD):
            source.execute(f"create table {table} (id int primary key, v text)")
        source.execute(f"create publication {PUBLICATION} for table {BAD}, {GOOD}")
        source.create_slot()
        yield source


def change_both(source: CheckedSource) -> None:
    """In one transaction, by turns."""
    with source.database.connect(autocommit=False) as session:
        for first in range(0, ROWS, 100):
            for table in (BAD, GOOD):
                series = f"generate_series({first}, {first + 99}) g"
                session.execute(f"insert into {table} select g, repeat('x', 1000) from {series}")


def take_part(stream: ReplicationStream) -> list[DecodedChanges]:
    while stream.pending_bytes < PART and (stream.in_transaction or not stream.pending_rows):
        stream.receive(1.0)
    return list(stream.take(0).decode())


def rows(found: list[DecodedChanges], table: TableId) -> int:
    batches = [batch for part in found for batch in part.batches]
    batches += [batch for part in found for _, batch in part.unfinished]
    return sum(batch.num_rows for batch in batches if batch.schema.table == table)


def finished(found: list[DecodedChanges]) -> list[Finished]:
    return [one for part in found for one in part.finished]


@pytest.mark.parametrize("parts", [1, 3])
def test_2_nothing_of_a_table_that_is_given_up_halfway_is_to_be_committed(
    source: CheckedSource, parts: int
) -> None:
    """Invariant 2: also what was handed over before, whether or not more of it was to come."""
    ours = PostgresSource(source.settings(), source.slot, PUBLICATION, [BAD, GOOD], {})
    stream = ours.stream(ours.prepare(None))
    try:
        change_both(source)
        found = [change for _ in range(parts) for change in take_part(stream)]
        before = rows(found, BAD)
        ours.registry.give_up(BAD)
        while not finished(found):
            found += take_part(stream)
    finally:
        stream.close()
    assert rows(found, BAD) == before > 0
    assert [one.left_out for one in finished(found)] == [{BAD}]
    assert rows(found, GOOD) == ROWS
