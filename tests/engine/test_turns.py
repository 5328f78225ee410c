"""Tables take turns: none waits for one that is slow, and each takes what came until its turn."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest

from headrace.engine.materialize import Materialization
from headrace.engine.protocols import DestinationTable
from headrace.engine.table_state import Phase, TableTarget
from headrace.errors import DestinationUnavailableError
from headrace.log import CommitDraft, LogReader, LogWriter, SnapshotEvent, open_storage
from headrace.model import (
    COMMIT_LSN,
    OP,
    ORDINAL,
    ChangeBatch,
    Checkpoint,
    Column,
    Lsn,
    NetChanges,
    TableId,
    TableSchema,
    change_schema,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = 60.0  # seconds until a wait gives up


@dataclass
class Gated:
    """A table at a destination that works while its gate is open, and remembers what it took."""

    at: Checkpoint
    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    taken: list[int] = field(default_factory=list)  # the commit of each apply
    faults: list[Exception] = field(default_factory=list)  # of loads

    def checkpoint(self, log_id: str) -> Checkpoint:
        return Checkpoint(log_id, self.at.commit, self.at.lsn)

    def held(self) -> None:
        return None

    def rest(self) -> float:
        return 0.0

    def settle(self) -> None:
        pass

    def evolve(self, schema: TableSchema) -> None:
        pass

    def retry_waiting(self) -> int:
        return 0

    def load(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        raise self.faults.pop()

    def apply(self, changes: NetChanges, to: Checkpoint, before: Iterable[NetChanges] = ()) -> None:
        self.begun.set()
        assert self.gate.wait(PATIENCE)
        self.taken.append(to.commit)


def schema_of(name: str) -> TableSchema:
    return TableSchema(TableId("s", name), 1, (Column("id", pa.int64(), "int8", 1),), ("id",))


@dataclass
class Shop:
    """A change log of two tables whose destination stands at its first commit."""

    log: LogWriter
    tables: dict[str, Gated]
    pipeline: Materialization

    def change(self, *names: str) -> int:
        """Commit a row of each table; gives the commit's number."""
        assert self.log.position is not None
        lsn = Lsn(self.log.position + 10)
        files = [self.log.stage(_insert(schema_of(name), lsn)) for name in names]
        return self.log.commit(CommitDraft(lsn, NOW, files=files)).commit

    def queued(self, name: str, commit: int) -> bool:
        return any(s.commit == commit for s in list(self.state(name).queue))

    def state(self, name: str):  # type: ignore[no-untyped-def]
        return self.pipeline.tables[TableId("s", name)]


def _insert(schema: TableSchema, lsn: Lsn) -> ChangeBatch:
    columns = {
        "id": pa.array([int(lsn)], pa.int64()),
        OP: pa.array(["i"]),
        COMMIT_LSN: pa.array([int(lsn)], pa.uint64()),
        ORDINAL: pa.array([0], pa.uint64()),
        "_commit_ts": pa.array([NOW], pa.timestamp("us", "UTC")),
    }
    layout = change_schema(schema)
    arrays = [columns.get(f.name, pa.nulls(1, f.type)).cast(f.type) for f in layout]
    return ChangeBatch(schema, pa.RecordBatch.from_arrays(arrays, schema=layout))


@pytest.fixture
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    with LogWriter.open(open_storage(str(tmp_path)), "shop") as log:
        for name in ("slow", "quick"):
            log.add_schema(schema_of(name))
        log.commit(CommitDraft(Lsn(10), NOW))
        reader = LogReader.open(log.storage, "shop", feed=log.feed)
        tables = {name: Gated(Checkpoint("", 1, Lsn(10))) for name in ("slow", "quick")}
        targets = [
            TableTarget(TableId("s", name), cast(DestinationTable, table))
            for name, table in tables.items()
        ]
        workers = getattr(request, "param", 2)
        yield Shop(log, tables, Materialization("lake", reader, targets, workers=workers))


@contextmanager
def running(shop: Shop) -> Iterator[None]:
    stop = threading.Event()
    runner = threading.Thread(target=shop.pipeline.run, args=(stop,))
    runner.start()
    try:
        yield
    finally:
        for table in shop.tables.values():
            table.gate.set()
        stop.set()
        shop.pipeline.interrupt()
        runner.join(PATIENCE)
    assert not runner.is_alive()


def until(condition, what: str) -> None:  # type: ignore[no-untyped-def]
    """Look again and again: a destination is asked, as its readers do."""
    patience = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        patience.wait(0.01)
    raise AssertionError(f"waited in vain for {what}")


def test_a_table_that_takes_long_delays_no_other(shop: Shop) -> None:
    slow, quick = shop.tables["slow"], shop.tables["quick"]
    quick.gate.set()
    with running(shop):
        shop.change("slow")
        assert slow.begun.wait(PATIENCE)
        for _ in range(3):
            commit = shop.change("quick")
            until(lambda commit=commit: commit in quick.taken, "the quick table")
        assert slow.taken == []


@pytest.mark.parametrize("shop", [1], indirect=True)
def test_a_turn_takes_what_came_while_the_table_waited_for_it(shop: Shop) -> None:
    slow, quick = shop.tables["slow"], shop.tables["quick"]
    quick.gate.set()
    both = shop.change("slow", "quick")
    with running(shop):
        assert slow.begun.wait(PATIENCE)
        later = shop.change("quick")
        until(lambda: shop.queued("quick", later), "its queue")
        slow.gate.set()
        until(lambda: later in quick.taken, "the quick table")
    # They meet at the first commit, for a version of both; then one turn takes all that is left.
    assert quick.taken == [both, later]
    assert slow.taken == [both]


def test_3_changes_that_a_snapshot_was_to_replace_are_not_passed_until_it_is_loaded(
    shop: Shop,
) -> None:
    """A crash between the two would go on behind them, with neither."""
    state, slow = shop.state("slow"), shop.tables["slow"]
    slow.faults.append(DestinationUnavailableError("no answer", hint="wait"))
    state.phase = Phase.FAILED  # of a table that stopped, and is copied for another pipeline
    changed = shop.change("slow")
    assert shop.log.position is not None
    event = SnapshotEvent(TableId("s", "slow"), shop.log.position, 1, (), taken_at=NOW)
    shop.log.commit(CommitDraft(None, snapshots=[event]))
    with running(shop):
        until(lambda: not slow.faults, "the load that fails")
        until(lambda: state.phase is Phase.RETRYING, "its failure")
    recorded = shop.pipeline.describe()["tables"]["s.slow"]
    assert recorded["applied"] == 1
    assert recorded["passed"] < changed
