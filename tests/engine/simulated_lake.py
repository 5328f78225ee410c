"""A table with versions and a destination, in memory, that fail where a test tells them to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
from change_samples import canonical, content
from feeds import feed, stamp

from headrace.model import (
    Checkpoint,
    FeedPlan,
    FileDiff,
    Loss,
    NetChanges,
    Rejected,
    RowPart,
    Segment,
    TableId,
    TableSchema,
    TableVersion,
    VersionChanges,
)

SHOP = TableId("shop", "t")  # the table's name at the destination

Row = Mapping[str, Any]
Change = tuple[str, Row]  # change type, row


@dataclass(frozen=True)
class Version:
    schema: TableSchema
    rows: tuple[Row, ...]
    changes: tuple[Change, ...] = ()

    @property
    def content(self) -> Counter[Any]:
        return content(self.rows)


@dataclass
class Lake:
    """A VersionedTable whose versions are lists of rows; `faults` are raised by name, once each."""

    versions: list[Version]
    log_id: str = "log-1"
    loss: Loss | None = None
    diff: Callable[[int, int], FileDiff] | None = None
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    before_read: Callable[[], None] = lambda: None
    calls: list[str] = field(default_factory=list)
    woken: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def of(cls, schema: TableSchema, *rows: Row) -> Lake:
        return cls([Version(schema, tuple(rows))])

    # -- writing -----------------------------------------------------------------------------------

    @property
    def rows_now(self) -> tuple[Row, ...]:
        return self.versions[-1].rows

    def write(self, *changes: Change, schema: TableSchema | None = None) -> None:
        """Commit changes; preimages and deletes take away an equal row."""
        newest = self.versions[-1]
        wanted = schema or newest.schema
        rows = [{n: row.get(n) for n in wanted.names} for row in newest.rows]
        for kind, row in changes:
            if kind in ("delete", "update_preimage"):
                at = [canonical(r) for r in rows].index(canonical(_whole(row, wanted)))
                rows.pop(at)
        for kind, row in changes:
            if kind in ("insert", "update_postimage"):
                rows.append(_whole(row, wanted))
        with self.changed:
            self.versions.append(Version(wanted, tuple(rows), changes))
            self.changed.notify_all()

    # -- VersionedTable ----------------------------------------------------------------------------

    @property
    def name(self) -> TableId:
        return self.versions[0].schema.table

    def head(self) -> TableVersion:
        self._meet("head")
        number = len(self.versions) - 1
        return TableVersion(self.log_id, number, stamp(number))

    def await_newer(self, than: int, timeout: float) -> bool:
        self._meet("await_newer")
        with self.changed:
            self.changed.wait_for(lambda: self.woken or len(self.versions) - 1 > than, timeout)
            return len(self.versions) - 1 > than

    def wake(self) -> None:
        with self.changed:
            self.woken = True
            self.changed.notify_all()

    def schema(self, version: int) -> TableSchema:
        return self.versions[version].schema

    def rows(self, version: int) -> Sequence[RowPart]:
        self._meet("rows")
        held = self.versions[version]
        half = (len(held.rows) + 1) // 2
        return [self.part(held.schema, rows) for rows in (held.rows[:half], held.rows[half:])]

    def part(self, schema: TableSchema, rows: Sequence[Row]) -> RowPart:
        def read() -> Iterator[pa.RecordBatch]:
            self._meet("read")
            self.before_read()
            yield from pa.Table.from_pylist(list(rows), schema=schema.arrow()).to_batches()

        return RowPart(read, len(rows))

    def plan(self, after: Checkpoint, to: int) -> FeedPlan:
        self._meet("plan")
        if self.loss is not None:
            return FeedPlan(loss=self.loss)
        assert after.log_id == self.log_id
        segments: list[Segment] = []
        for number in range(after.commit + 1, to + 1):
            version = self.versions[number]
            told = VersionChanges(number, stamp(number), len(version.changes))
            if segments and segments[-1].schema == version.schema:
                segments[-1] = replace(segments[-1], versions=(*segments[-1].versions, told))
            else:
                segments.append(Segment(version.schema, (told,)))
        return FeedPlan(tuple(segments))

    def changes(self, schema: TableSchema, first: int, last: int) -> Iterator[pa.RecordBatch]:
        self._meet("changes")
        told = [
            (kind, number, row)
            for number in range(first, last + 1)
            for kind, row in self.versions[number].changes
        ]
        yield from feed(schema, list(reversed(told))).to_batches()

    def file_diff(self, after: Checkpoint, to: int) -> FileDiff | None:
        self._meet("file_diff")
        return self.diff(after.commit, to) if self.diff else None

    def _meet(self, name: str) -> None:
        self.calls.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)


@dataclass
class Shop:
    """A SyncedTable in memory. Each commit is whole, and kept in `commits` as it was left.

    Where there is a `parent`, rows wait in `waiting` until that has a row of their key.

    `faults` are raised before anything is done; those under `<name>.done` after it was committed,
    as when the connection is lost with the answer. `refuses` names schemas that it cannot follow.
    """

    name: TableId = SHOP
    rows: dict[Any, Row] = field(default_factory=dict)  # by key, or by number without one
    at: Checkpoint | None = None
    given: TableSchema | None = None
    holding: str | None = None
    rules: str | None = None  # to be noted with each commit
    noted: str | None = None
    parked: list[Rejected] = field(default_factory=list)
    parent: Shop | None = None
    waiting: dict[Any, Row] = field(default_factory=dict)
    after_retry: Callable[[], None] = lambda: None
    commits: list[tuple[str, Checkpoint, Counter[Any]]] = field(default_factory=list)
    commit_ts: list[datetime | None] = field(default_factory=list)
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    refuses: Callable[[TableSchema], Exception | None] = lambda schema: None
    calls: list[str] = field(default_factory=list)

    @property
    def content(self) -> Counter[Any]:
        return content(list(self.rows.values()))

    def put(self, schema: TableSchema, at: Checkpoint, *rows: Row) -> None:
        """Stand as an earlier run left it."""
        self.given, self.at = schema, at
        self.rows = {self._key(row): dict(row) for row in rows}

    # -- SyncedTable -------------------------------------------------------------------------------

    def standing(self) -> Checkpoint | None:
        self._meet("standing")
        return self.at

    def applied_schema(self) -> TableSchema | None:
        return self.given

    def held(self) -> str | None:
        return self.holding

    def under(self, rules: str) -> None:
        self.rules = rules

    def made_by(self) -> str | None:
        return self.noted

    def prepare(self, schema: TableSchema) -> None:
        self._meet("prepare")

    def parents(self) -> Mapping[TableId, bool]:
        return {} if self.parent is None else {self.parent.name: self.parent.at is not None}

    def retry_waiting(self) -> int:
        self._meet("retry_waiting")
        waiting, self.waiting = self.waiting, {}
        for row in waiting.values():
            self._put(row)
        self.after_retry()
        return len(self.waiting)

    def count(self) -> int:
        return len(self.rows)

    def evolve(self, schema: TableSchema) -> None:
        self._meet("evolve")
        assert schema.table == self.name
        if (refusal := self.refuses(schema)) is not None:
            raise refusal
        self.given = schema
        self.rows = {k: {n: r.get(n) for n in schema.names} for k, r in self.rows.items()}

    def apply(self, changes: NetChanges, to: Checkpoint) -> None:
        self._meet("apply")
        assert self.at is not None
        if to.log_id == self.at.log_id and to.commit <= self.at.commit:
            return
        assert self.given is not None
        assert changes.schema.table == self.name
        assert set(changes.schema.names) == set(self.given.names)
        for row in changes.deletes.to_pylist():
            self.rows.pop(self._key(row), None)
            self.waiting.pop(self._key(row), None)
        for row in changes.upserts.to_pylist():
            self._put(row)
        self.parked += changes.rejected
        self.commit_ts.append(changes.commit_ts)
        self._commit("apply", to)

    def replace(
        self,
        schema: TableSchema,
        parts: Sequence[RowPart],
        at: Checkpoint,
        rejected: Callable[[], Sequence[Rejected]] = tuple,
    ) -> None:
        self._meet("replace")
        assert schema.table == self.name
        rows = [row for part in parts for batch in part.read() for row in batch.to_pylist()]
        self.parked = list(rejected())
        self.given, self.holding, self.rows = schema, None, {}
        self.waiting = {}
        for row in rows:
            assert self._key(row) not in self.rows, "a key twice"
            self._put(row)
        self._commit("replace", at)

    def read(self, schema: TableSchema, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        self._meet("read")
        table = pa.Table.from_pylist(list(self.rows.values()), schema=schema.arrow())
        yield from table.select(list(columns)).to_batches()

    def checkpoint(self, log_id: str) -> Checkpoint | None:
        raise NotImplementedError

    def load(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        raise NotImplementedError

    def rest(self) -> float:
        return 0.0

    def settle(self) -> None:
        pass

    def _put(self, row: Row) -> None:
        key = self._key(row)
        stands = self.parent is None or key in self.parent.rows
        (self.rows if stands else self.waiting)[key] = row

    def _commit(self, how: str, at: Checkpoint) -> None:
        self.at, self.noted = at, self.rules
        self.commits.append((how, at, self.content))
        self._meet(f"{how}.done")

    def _key(self, row: Row) -> Any:
        if self.given is None or not self.given.key:
            return len(self.rows)
        return tuple(canonical(row[n]) for n in self.given.key)

    def _meet(self, name: str) -> None:
        self.calls.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)


def _whole(row: Row, schema: TableSchema) -> dict[str, Any]:
    return {n: row.get(n) for n in schema.names}
