"""Versions against a model of them in plain Python, whichever way the changes are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from change_samples import Change, change_batch, table_schema
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.history import TIME, history
from headrace.errors import DivergedError
from headrace.model import COMMIT_TS, END_AT, START_AT, ChangeBatch, Lsn, ReplicaIdentity

DEFAULT = table_schema({"id": "bigint", "n": "bigint", "doc": "text"}, ["id"])
FULL = table_schema(
    {"id": "bigint", "n": "bigint", "doc": "text"}, ["id"], identity=ReplicaIdentity.FULL
)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)

Row = dict[str, Any]


def at(tick: int) -> datetime:
    return BEGAN + tick * TICK


@dataclass(frozen=True)
class Transaction:
    lsn: int
    time: datetime
    changes: tuple[Change, ...]


# -- the model -------------------------------------------------------------------------------------


@dataclass
class Model:
    """The source's rows, and every version of them: key, start, end, row."""

    tracked: Sequence[str] = ("id", "n", "doc")
    rows: dict[int, Row] = field(default_factory=dict)
    versions: list[list[Any]] = field(default_factory=list)

    def commit(self, after: dict[int, Row], time: datetime) -> None:
        for key in sorted(self.rows.keys() | after.keys()):
            old, new = self.rows.get(key), after.get(key)
            mine = [version for version in self.versions if version[0] == key]
            if old and new and all(old[n] == new[n] for n in self.tracked):
                mine[-1][3] = new
                continue
            bound = time
            if mine:
                bound = max(bound, (mine[-1][2] or mine[-1][1]) + TICK)
            if old:
                mine[-1][2] = bound
            if new:
                self.versions.append([key, bound, None, new])
        self.rows = after

    def table(self) -> set[tuple[Any, ...]]:
        return {(*v[3].values(), v[1], v[2]) for v in self.versions}


class Table:
    """A destination that keeps versions as rows, and does what NetChanges say."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def standing(self, keys: pa.Table, since: datetime) -> tuple[npt.NDArray[np.intp], pa.Table]:
        which, found = [], []
        for place, key in enumerate(keys["id"].to_pylist()):
            mine = [row for row in self.rows if row["id"] == key]
            current = [row for row in mine if row[END_AT] is None]
            assert len(current) <= 1
            told = current or [row for row in mine if row[END_AT] >= since]
            which += [place] * len(told)
            found += told
        fields = [*DEFAULT.arrow(), pa.field(START_AT, TIME), pa.field(END_AT, TIME)]
        return np.array(which, np.intp), pa.Table.from_pylist(found, pa.schema(fields))

    def apply(self, net: Any) -> None:
        upserts = net.upserts.to_pylist()
        current = [row["id"] for row in upserts if row[END_AT] is None]
        gone = {*net.deletes["id"].to_pylist(), *current}
        assert len(current) + net.deletes.num_rows == len(gone)
        self.rows = [row for row in self.rows if row[END_AT] or row["id"] not in gone]
        if net.truncate:
            for row in self.rows:
                row[END_AT] = row[END_AT] or max(net.truncated_at, row[START_AT] + TICK)
        self.rows += upserts

    def table(self) -> set[tuple[Any, ...]]:
        assert len({tuple(row.values()) for row in self.rows}) == len(self.rows)
        return {tuple(row.values()) for row in self.rows}


# -- random lives ----------------------------------------------------------------------------------

KEYS = st.integers(1, 3)
VALUES = st.integers(0, 3)
PUTS = st.tuples(st.just("put"), KEYS, VALUES, st.booleans())
STEPS = st.one_of(
    PUTS,
    PUTS,
    PUTS,
    st.tuples(st.just("move"), KEYS, KEYS, st.booleans()),
    st.tuples(st.just("delete"), KEYS, VALUES, st.booleans()),
    st.tuples(st.just("truncate"), KEYS, VALUES, st.just(False)),
)
LIVES = st.lists(
    st.tuples(st.integers(-2, 3), st.booleans(), st.lists(STEPS, min_size=1, max_size=4)),
    max_size=12,
)


def played(life: Any, model: Model, *, full: bool) -> Iterator[Transaction]:
    """The transactions of a life as the log has them; the model follows."""
    tick = 100
    for number, (pace, _, steps) in enumerate(life, start=1):
        tick += pace  # the clock goes back now and then
        rows = {key: dict(row) for key, row in model.rows.items()}
        changes = [change for step in steps for change in _change(rows, *step, full=full)]
        model.commit(rows, at(tick))
        yield Transaction(number, at(tick), tuple(changes))


def _change(
    rows: dict[int, Row], kind: str, key: int, value: int, leave: bool, *, full: bool
) -> Iterator[Change]:
    """One step, as Postgres would tell it; `leave` leaves the document unsent."""
    old = rows.get(key)
    if kind == "truncate":
        rows.clear()
        yield Change("t")
    elif kind == "put" and old is None:
        rows[key] = {"id": key, "n": value % 2, "doc": f"said {value // 2}"}
        yield Change("i", rows[key])
    elif old is None or (kind == "move" and (value in rows or value == 0)):
        return
    elif kind == "delete":
        del rows[key]
        yield Change("d", {}, old if full else {"id": key})
    else:
        new = {**old, "n": value % 2} if kind == "put" else {**old, "id": value}
        if not leave:
            new["doc"] = f"said {value // 2}"
        del rows[key]
        rows[new["id"]] = new
        sent = {**new, "doc": None} if leave else new
        before = old if full else ({"id": key} if kind == "move" else None)
        yield Change("u", sent, before, ("doc",) if leave else ())


def batches_of(transactions: Sequence[Transaction], schema: Any) -> list[ChangeBatch]:
    made = []
    for tx in transactions:
        changes = [Change(c.op, c.row, c.before, c.unsent, tx.lsn) for c in tx.changes]
        data = change_batch(schema, changes).data
        times = pa.array([tx.time] * len(changes), TIME)
        place = data.schema.get_field_index(COMMIT_TS)
        made.append(ChangeBatch(schema, data.set_column(place, data.schema.field(place), times)))
    return made


def apply(table: Table, transactions: Sequence[Transaction], schema: Any, tracked: Any) -> None:
    if transactions:
        batches = batches_of(transactions, schema)
        table.apply(history(schema, batches, Lsn(0), tracked, table.standing))


@settings(max_examples=150, deadline=None)
@given(
    life=LIVES,
    full=st.booleans(),
    tracked=st.sampled_from([("id", "n", "doc"), ("n",), ("doc",)]),
)
def test_5_versions_are_what_transactions_left_however_the_log_is_cut(
    life: Any, full: bool, tracked: tuple[str, ...]
) -> None:
    model, table, schema = Model(tracked), Table(), FULL if full else DEFAULT
    transactions = list(played(life, model, full=full))
    cuts = [place for place, (_, cut, _) in enumerate(life) if cut and place]
    bounds = [0, *cuts, len(transactions)]
    for start, end in pairwise(bounds):
        apply(table, transactions[start:end], schema, tracked)
    assert table.table() == model.table()


def test_5_a_transaction_that_changes_nothing_writes_nothing() -> None:
    table = Table()
    apply(
        table,
        [Transaction(1, at(1), (Change("i", {"id": 1, "n": 1, "doc": "x"}),))],
        FULL,
        FULL.names,
    )
    same = Change("u", {"id": 1, "n": 1, "doc": "x"}, {"id": 1, "n": 1, "doc": "x"})
    net = history(
        FULL, batches_of([Transaction(2, at(2), (same,))], FULL), Lsn(0), FULL.names, table.standing
    )
    assert net.is_empty


def test_6_an_unsent_value_that_nobody_holds_stops_the_table() -> None:
    left = Change("u", {"id": 1, "n": 2}, None, ("doc",))
    with pytest.raises(DivergedError, match="doc"):
        apply(Table(), [Transaction(1, at(1), (left,))], DEFAULT, DEFAULT.names)
