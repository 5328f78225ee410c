"""A source of one table, in memory, that is copied in ranges of its key while it changes.

What is true as of each LSN is kept, so that whatever a copy comes to can be held against it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
from change_samples import TRUNCATE, Change, change_batch, delete, insert, table_schema, update

from headrace.errors import SourceUnavailableError
from headrace.log import CommitDraft, LogWriter
from headrace.model import KeyRange, Lsn, SnapshotChunk, TableId, TableSchema

TABLE = TableId("public", "t")
SCHEMA = table_schema({"id": "bigint", "n": "bigint", "body": "text"}, key=("id",))
BOUNDS = ["-20", "0", "15", "40", "90"]
RANGES = [KeyRange(*ends) for ends in zip([None, *BOUNDS], [*BOUNDS, None], strict=True)]
FIRST_LSN = Lsn(100)
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

Rows = dict[int, tuple[int, str]]  # by id: n, and body, which is sent only where it changes


@dataclass
class Ranged:
    """`fails_after` so many chunks the connection is lost; `meanwhile` runs before each chunk."""

    log: LogWriter
    chance: random.Random = field(default_factory=random.Random)
    schema_version: int = 1
    identity_now: str = "16384"
    fails_after: int = 1000
    meanwhile: Callable[[], None] = lambda: None
    rows: Rows = field(default_factory=dict)
    lsn: Lsn = FIRST_LSN
    history: dict[Lsn, Rows] = field(default_factory=dict)
    unsent_moves: bool = True
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    read_ranges: list[KeyRange] = field(default_factory=list)
    _waiting: list[tuple[Lsn, list[Change]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # -- what an application does ------------------------------------------------------------------

    def transaction(self, *changes: Change) -> None:
        """What committed at the next LSN; the log learns it later."""
        with self._lock:
            for change in changes:
                self._do(change)
            self.lsn = Lsn(self.lsn + 10)
            self.history[self.lsn] = dict(self.rows)
            self._waiting.append((self.lsn, list(changes)))

    def _do(self, change: Change) -> None:
        if change.op == "t":
            self.rows.clear()
            return
        old = (change.before or change.row)["id"]
        former = self.rows.pop(old, (0, ""))
        if change.op != "d":
            body = former[1] if change.unsent else change.row["body"]
            self.rows[change.row["id"]] = (change.row["n"], body)

    def anything(self) -> None:
        """A few transactions of any kind."""
        for _ in range(self.chance.randint(0, 5)):
            before = dict(self.rows)
            changes = [self._anything() for _ in range(self.chance.randint(1, 4))]
            self.rows = before
            self.transaction(*changes)

    def _anything(self) -> Change:
        change = self._change()
        self._do(change)
        return change

    def _change(self) -> Change:
        dice, free = self.chance.random(), self._free()
        if not self.rows or dice < 0.3:
            return insert(id=free, n=0, body=f"born {self.chance.random()}")
        id_ = self.chance.choice(sorted(self.rows))
        n, n_body = self.rows[id_][0] + 1, f"new {self.chance.random()}"
        if dice < 0.5:
            return update(id=id_, n=n, unsent=("body",))
        if dice < 0.6:
            return update(id=id_, n=n, body=n_body)
        if dice < 0.8:
            return delete(id=id_)
        if dice < 0.98:
            unsent = self.unsent_moves and self.chance.random() < 0.3
            told = {} if unsent else {"body": n_body}
            return update({"id": id_}, ("body",) if unsent else (), id=free, n=n, **told)
        return TRUNCATE

    def _free(self) -> int:
        return self.chance.choice([i for i in range(-60, 120) if i not in self.rows])

    # -- the stream --------------------------------------------------------------------------------

    def stream(self) -> None:
        """Bring what waits into the log."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for lsn, changes in waiting:
            placed = [Change(c.op, c.row, c.before, c.unsent, lsn) for c in changes]
            files = [self.log.stage(change_batch(self.schema(TABLE), placed))]
            self.log.commit(CommitDraft(lsn, WHEN, files))

    def current_lsn(self) -> Lsn:
        self.stream()
        return self.lsn

    # -- snapshots ---------------------------------------------------------------------------------

    @contextmanager
    def snapshot(
        self,
        tables: Mapping[TableId, Sequence[KeyRange] | None],
        connections: int,
        place: object,
    ) -> Iterator[Taken]:
        with self._lock:
            ranges = RANGES if tables[TABLE] is None else tables[TABLE]
            self.history.setdefault(self.lsn, dict(self.rows))
            taken = Taken(self, self.lsn, list(ranges or ()))
        yield taken

    def schema(self, table: TableId) -> TableSchema:
        columns = {"id": "bigint", "n": "bigint", "body": "text"}
        return table_schema(columns, key=("id",), version=self.schema_version)


@dataclass
class Taken:
    """See `engine.protocols.Snapshot`."""

    source: Ranged
    lsn: Lsn
    ranges: list[KeyRange]
    taken_at: datetime = WHEN

    def schema(self, table: TableId) -> TableSchema:
        return self.source.schema(table)

    def identity(self, table: TableId) -> str:
        return self.source.identity_now

    def chunks(self, table: TableId) -> list[SnapshotChunk]:
        return [SnapshotChunk(table, n, "", 1, keys) for n, keys in enumerate(self.ranges)]

    def read(self, chunk: SnapshotChunk) -> Generator[pa.RecordBatch]:
        if chunk.number >= self.source.fails_after:
            raise SourceUnavailableError("the connection is lost")
        with self.source.one_at_a_time:
            self.source.meanwhile()
        assert chunk.keys is not None
        self.source.read_ranges.append(chunk.keys)
        low, high = chunk.keys.low, chunk.keys.high
        found = [
            {"id": id_, "n": n, "body": body}
            for id_, (n, body) in self.source.history[self.lsn].items()
            if (low is None or id_ >= int(low)) and (high is None or id_ < int(high))
        ]
        yield pa.RecordBatch.from_pylist(found, schema=self.schema(chunk.table).arrow())


def rows_in(tables: Iterator[pa.Table]) -> Rows:
    found: Rows = {}
    for row in (row for table in tables for row in table.to_pylist()):
        assert row["id"] not in found, "a row is there twice"
        found[row["id"]] = (row["n"], row["body"])
    return found
