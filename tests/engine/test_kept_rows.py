"""Deleted rows that stay, rows that tell of their change, and changes kept as rows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from change_samples import (
    TRUNCATE,
    Change,
    Keyed,
    change_batch,
    content,
    delete,
    insert,
    table_schema,
    update,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.shaping import net_of, shaped
from headrace.errors import UnsuitableShapeError
from headrace.model import (
    COMMIT_TS,
    XID,
    ChangeBatch,
    Lsn,
    Metadata,
    Mode,
    NetChanges,
    OnDelete,
    ReplicaIdentity,
    Shape,
    TableSchema,
)

ALL = (Metadata.LSN, Metadata.COMMIT_TS, Metadata.OP, Metadata.XID)
MARK = Shape(metadata=ALL, on_delete=OnDelete.MARK)
IGNORE = Shape(metadata=ALL, on_delete=OnDelete.IGNORE)
APPEND = Shape(Mode.APPEND)

COLUMNS = {"id": "bigint", "n": "bigint", "a": "text"}
IDENTITIES = (ReplicaIdentity.DEFAULT, ReplicaIdentity.FULL)


def moment(lsn: int) -> dt.datetime:
    return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=lsn)


def batch(schema: TableSchema, changes: Sequence[Change]) -> ChangeBatch:
    """As `change_batch`, with times and transaction numbers that follow the LSN."""
    made = change_batch(schema, changes).data
    for name, values in (
        (COMMIT_TS, [moment(c.lsn) for c in changes]),
        (XID, [c.lsn + 7 for c in changes]),
    ):
        place = made.schema.get_field_index(name)
        made = made.set_column(
            place, made.schema.field(place), pa.array(values, made.schema.field(place).type)
        )
    return ChangeBatch(schema, made)


def net(shape: Shape, schema: TableSchema, changes: Sequence[Change], after: int = 0) -> NetChanges:
    return net_of(shape, None, schema, [batch(schema, changes)], Lsn(after))  # type: ignore[arg-type]


@dataclass
class Source:
    """A table at work, what it tells of each change, and what must be kept of it: the oracle."""

    identity: ReplicaIdentity
    on_delete: OnDelete
    live: dict[int, dict[str, Any]] = field(default_factory=dict)
    kept: dict[int, dict[str, Any]] = field(default_factory=dict)
    told: list[Change] = field(default_factory=list)

    def _tell(self, change: Change) -> int:
        self.told.append(replace(change, lsn=len(self.told) + 1))
        return len(self.told)

    def _before(self, key: int, *, named: bool) -> dict[str, Any] | None:
        if self.identity is ReplicaIdentity.FULL:
            return dict(self.live[key])
        return {"id": key} if named else None

    def _stands(self, row: dict[str, Any], op: str, lsn: int) -> None:
        self.live[row["id"]] = row
        self.kept[row["id"]] = {**row, "_deleted_at": None, **told_of(op, lsn)}

    def _leaves(self, key: int, op: str, lsn: int) -> None:
        del self.live[key]
        if self.on_delete is OnDelete.MARK:
            self.kept[key] |= {"_deleted_at": moment(lsn), **told_of(op, lsn)}

    def put(self, key: int, n: int) -> None:
        if key in self.live:
            row = {**self.live[key], "n": n}
            sent = {k: v for k, v in row.items() if k != "a"}
            lsn = self._tell(update(self._before(key, named=False), ("a",), **sent))
            self._stands(row, "u", lsn)
        else:
            row = {"id": key, "n": n, "a": f"a{len(self.told)}"}
            self._stands(row, "i", self._tell(insert(**row)))

    def delete(self, key: int, _: int) -> None:
        if key in self.live:
            lsn = self._tell(delete(**(self._before(key, named=True) or {})))
            self._leaves(key, "d", lsn)

    def move(self, key: int, other: int) -> None:
        if key in self.live and other not in self.live:
            row = {**self.live[key], "id": other}
            sent = {k: v for k, v in row.items() if k != "a"}
            lsn = self._tell(update(self._before(key, named=True), ("a",), **sent))
            self._leaves(key, "u", lsn)
            self._stands(row, "u", lsn)

    def truncate(self, *_: int) -> None:
        at = {"_deleted_at": moment(self._tell(TRUNCATE))}
        for key in self.live if self.on_delete is OnDelete.MARK else ():
            self.kept[key] |= at
        self.live.clear()


def told_of(op: str, lsn: int) -> dict[str, Any]:
    return {"_lsn": lsn, "_commit_ts": moment(lsn), "_op": op, "_xid": lsn + 7}


keys = st.integers(0, 3)
steps = st.lists(
    st.tuples(
        st.sampled_from(["put"] * 4 + ["delete", "delete", "move", "move", "truncate"]), keys, keys
    ),
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(
    steps,
    st.sets(st.integers(0, 14)),
    st.sampled_from(IDENTITIES),
    st.sampled_from([OnDelete.MARK, OnDelete.IGNORE]),
)
def test_6_rows_that_stay_have_their_last_values_however_the_stream_is_cut(
    life: list[tuple[str, int, int]], cuts: set[int], identity: ReplicaIdentity, on_delete: OnDelete
) -> None:
    """Invariant 6 as well: no update sends `a`, and no row lacks it."""
    source = Source(identity, on_delete)
    for step, key, other in life:
        getattr(source, step)(key, other)
    schema = table_schema(COLUMNS, ["id"], identity)
    shape = Shape(metadata=ALL, on_delete=on_delete)
    held = Keyed()
    bounds = sorted({0, len(source.told), *(c for c in cuts if c < len(source.told))})
    for first, last in pairwise(bounds):
        batches = [batch(schema, [change]) for change in source.told[max(first - 2, 0) : last]]
        changes = net_of(shape, None, schema, batches, Lsn(first))  # type: ignore[arg-type]
        assert not changes.deletes.num_rows
        held.apply(changes)
    expected = [
        {k: v for k, v in row.items() if on_delete is OnDelete.MARK or k != "_deleted_at"}
        for row in source.kept.values()
    ]
    assert held.content() == content(expected)


def test_a_truncate_tells_when_it_was() -> None:
    schema = table_schema(COLUMNS, ["id"])
    changes = net(
        MARK, schema, [replace(TRUNCATE, lsn=5), replace(insert(id=1, n=1, a="x"), lsn=6)]
    )
    assert changes.truncate
    assert changes.truncated_at == moment(5)
    assert changes.upserts.column("_deleted_at").to_pylist() == [None]
    assert not net(IGNORE, schema, [TRUNCATE]).truncate


@pytest.mark.parametrize("identity", IDENTITIES)
def test_6_every_change_is_a_row_and_names_what_was_not_sent(identity: ReplicaIdentity) -> None:
    """Invariant 6 in mode append: a value is there, or `_unchanged` says that it is as before."""
    full = identity is ReplicaIdentity.FULL
    schema = table_schema(COLUMNS, ["id"], identity)
    old = {"id": 1, "n": 1, "a": "x"}
    known = old if full else {"id": 1}
    life = [
        insert(**old),
        update(old if full else None, ("a",), id=1, n=2),
        update(known, ("a",), id=2, n=2),
        delete(**(known if full else {"id": 2})),
        TRUNCATE,
    ]
    told = [replace(change, lsn=n + 1) for n, change in enumerate(life)]
    changes = net(APPEND, schema, told, after=1)
    assert changes.schema.key == ()
    assert not changes.truncate
    assert shaped(schema, APPEND).names == changes.schema.names
    rows = changes.upserts.to_pylist()
    assert [(r["_op"], r["_lsn"], r["_ordinal"]) for r in rows] == [
        ("u", 2, 1),
        ("u", 3, 2),
        ("d", 4, 3),
        ("t", 5, 4),
    ]
    assert [r["_commit_ts"] for r in rows] == [moment(lsn) for lsn in range(2, 6)]
    assert [r["_xid"] for r in rows] == [9, 10, 11, 12]
    assert [r["id"] for r in rows] == [1, 2, None, None]
    assert [r["a"] for r in rows] == (["x", "x", None, None] if full else [None] * 4)
    unchanged = [None] * 4 if full else [["a"], ["a"], None, None]
    assert [r["_unchanged"] for r in rows] == unchanged
    assert [r["_before"] for r in rows] == [old if full else None, known, life[3].before, None]


def test_rows_of_a_schema_before_are_appended_with_the_constants_that_they_have() -> None:
    former = table_schema({"id": "bigint"}, ["id"])
    newest = table_schema(
        {"id": "bigint", "n": "bigint"}, ["id"], version=2, missing={"n": pa.scalar(7, pa.int64())}
    )
    batches = [batch(former, [insert(id=1), delete(id=1)]), batch(newest, [insert(id=2, n=None)])]
    changes = net_of(APPEND, None, newest, batches, Lsn(0))  # type: ignore[arg-type]
    assert changes.upserts.column("n").to_pylist() == [7, None, None]


@pytest.mark.parametrize("shape", [MARK, IGNORE, Shape(metadata=(Metadata.OP,))])
def test_a_table_without_a_key_is_refused(shape: Shape) -> None:
    with pytest.raises(UnsuitableShapeError, match="no key"):
        shaped(table_schema(COLUMNS), shape)


@pytest.mark.parametrize(
    ("shape", "name"), [(MARK, "_Deleted_At"), (MARK, "_lsn"), (APPEND, "_LSN")]
)
def test_a_column_of_the_source_with_a_name_of_ours_is_refused(shape: Shape, name: str) -> None:
    with pytest.raises(UnsuitableShapeError, match=name):
        shaped(table_schema({"id": "bigint", name: "text"}, ["id"]), shape)
