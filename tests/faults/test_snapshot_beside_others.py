"""A snapshot beside people who truncate, rewrite and lock its tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from shop import Shop

import headrace
from headrace.connectors.postgres import snapshot_reading
from headrace.connectors.postgres.source import PostgresSource
from headrace.engine.protocols import Snapshot
from headrace.errors import TableRewrittenError
from headrace.model import TableId
from live_run import LiveRun
from replicated import PUBLICATION, SLOT, assert_equal
from workload import TABLES

NAMES = [TableId("public", name) for name in TABLES]
CUSTOMERS, DOCUMENTS, LINES, EVENTS = NAMES


@contextmanager
def snapshot(shop: Shop) -> Iterator[Snapshot]:
    shop.database.execute(f"create publication {PUBLICATION} for all tables")
    (capture,) = headrace.load(shop.project).settings.captures()
    source = PostgresSource(capture.connection, SLOT, PUBLICATION, NAMES, {})
    with source.snapshot(dict.fromkeys(NAMES), connections=1, place=pytest.fail) as snapshot:
        yield snapshot


def rows(snapshot: Snapshot, table: TableId) -> int:
    return sum(b.num_rows for c in snapshot.chunks(table) for b in snapshot.read(c))


@pytest.mark.parametrize(
    "change",
    ["truncate customers", "alter table customers alter id type bigint", "vacuum full customers"],
)
def test_invariant_7_a_table_that_its_snapshot_may_not_see_any_more_is_refused(
    shop: Shop, change: str
) -> None:
    """TRUNCATE and rewriting ALTER TABLEs are not MVCC-safe: the table would come out empty."""
    ((documents,),) = shop.database.execute("select count(*) from documents")
    with snapshot(shop) as taken:
        shop.database.execute(change)
        with pytest.raises(TableRewrittenError, match=r"public\.customers"):
            rows(taken, CUSTOMERS)
        assert rows(taken, DOCUMENTS) == documents  # the reader is of use to the others


def test_a_table_that_somebody_alters_does_not_hold_up_the_others(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own copy is begun anew, by a snapshot that waits for whoever alters it."""
    monkeypatch.setattr(snapshot_reading, "LOCK_PATIENCE", "10ms")
    ((documents,),) = shop.database.execute("select count(*) from documents")
    with snapshot(shop) as taken, shop.database.connect(autocommit=False) as altering:
        altering.execute("alter table customers add column more int")
        with pytest.raises(TableRewrittenError, match=r"public\.customers: somebody has locked it"):
            rows(taken, CUSTOMERS)
        assert rows(taken, DOCUMENTS) == documents
        altering.rollback()
        assert rows(taken, CUSTOMERS)


def test_a_snapshot_locks_a_table_only_while_it_reads_it(shop: Shop) -> None:
    """Two locks at once could be part of a deadlock, and their victim is somebody's transaction."""
    held = "select relation::regclass::text from pg_locks where relation = any (%s::regclass[])"
    with snapshot(shop) as taken:
        assert shop.database.execute(held, [list(TABLES)]) == []
        for table in NAMES:
            batches = taken.read(taken.chunks(table)[0])
            next(iter(batches))
            assert shop.database.execute(held, [list(TABLES)]) == [(table.name,)]
            list(batches)
            assert shop.database.execute(held, [list(TABLES)]) == []


def test_invariant_7_a_table_that_is_truncated_before_it_is_read_is_copied_anew(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its changes between the snapshot and the TRUNCATE find the rows that they need."""
    read, truncated = headrace.connectors.postgres.snapshot.PostgresSnapshot.read, []

    def truncate_first(self: object, chunk: object) -> object:
        if not truncated:
            truncated.append(True)
            shop.database.execute("delete from events where ctid = (select min(ctid) from events)")
            shop.database.execute("update documents set version = 7; truncate events, documents")
            shop.database.execute("insert into events values ('after', 'it', null)")
        return read(self, chunk)

    monkeypatch.setattr(
        "headrace.connectors.postgres.snapshot.PostgresSnapshot.read", truncate_first
    )
    with LiveRun(shop.project) as run:
        run.wait_for(lambda view: len(view.copier.progress) == len(NAMES))
        run.wait_for(lambda view: all(p.done for p in view.copier.progress.values()))
        run.catch_up(shop.database)
    assert_equal(shop.database, shop.folder)
