"""Columns that come, go, get other names and wider types, and what cannot be followed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import evolving_child
import pyarrow as pa
import pytest
from delta_samples import (
    LOG_ID,
    READERS,
    Lake,
    Model,
    Row,
    assert_holds,
    at,
    changes,
    row_of,
    schema_of,
)
from deltalake import DeltaTable
from evolving import TYPES, Evolving
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UnsupportedSchemaChangeError
from headrace.model import Column, Delivery, SchemaPolicy, TableSchema

NEW = Column("color", pa.string(), "text", 90)


def rows(kind: str, keys: range, value: int = 1) -> list[Row]:
    return [row_of(kind, key, value) for key in keys]


def with_column(
    schema: TableSchema,
    column: Column,
    missing: Mapping[str, pa.Scalar] | None = None,
    place: int = -1,
) -> TableSchema:
    columns = list(schema.columns)
    columns.insert(len(columns) if place < 0 else place, column)
    return replace(schema, columns=tuple(columns), missing=missing or {}, version=2)


@pytest.mark.parametrize("kind", ["int64", "text", "none"])
@pytest.mark.parametrize("constant", [None, "blue"])
@pytest.mark.parametrize("place", [-1, 1])
def test_an_added_column_reaches_old_and_new_rows(
    lake: Lake, kind: str, constant: str | None, place: int
) -> None:
    """Invariant 8: old rows get the source's constant, no value lands in another column."""
    schema = schema_of(kind)
    missing = {} if constant is None else {"color": pa.scalar(constant)}
    wider = with_column(schema, NEW, missing, place)
    cut = len(schema.columns) if place < 0 else place

    def widened(held: list[Row], value: str | None) -> list[Row]:
        return [(*row[:cut], value, *row[cut:]) for row in held]

    first, second = rows(kind, range(6)), rows(kind, range(6, 9))
    table = lake.open()
    table.load(schema, lake.snapshot(schema, first, second), at(1))
    table.apply(changes(schema, rows(kind, range(9, 10)), first[:1]), at(2))
    before = DeltaTable(lake.path).version()
    table.evolve(wider)
    table.evolve(wider)
    assert DeltaTable(lake.path).version() == before + 1
    assert table.checkpoint(LOG_ID) == at(2)
    old = widened(first[1:] + second + rows(kind, range(9, 10)), constant)
    model = Model(wider)
    model.apply(old, [])
    assert_holds(lake.path, model)
    upserts, deletes = widened(rows(kind, range(20, 22), 3), "red"), old[2:4]
    table.apply(changes(wider, upserts, deletes), at(3))
    model.apply(upserts, deletes)
    assert_holds(lake.path, model)


def test_a_column_of_local_times_brings_its_feature(lake: Lake) -> None:
    schema = replace(schema_of("int64"), columns=schema_of("int64").columns[:2])
    table = lake.open()
    table.load(schema, lake.snapshot(schema, [(1, 2)]), at(1))
    assert "timestampNtz" not in (DeltaTable(lake.path).protocol().reader_features or [])
    table.evolve(with_column(schema, Column("local", pa.timestamp("us"), "timestamp", 9)))
    assert "timestampNtz" in (DeltaTable(lake.path).protocol().reader_features or [])


def _retyped(schema: TableSchema) -> TableSchema:
    last = replace(schema.columns[-1], type=pa.string())
    return replace(schema, columns=(*schema.columns[:-1], last))


def _told_otherwise(schema: TableSchema) -> TableSchema:
    """The same type in Delta, for values that the source prints in another way."""
    columns = [replace(c, source_type="xml") if c.name == "txt" else c for c in schema.columns]
    return replace(schema, columns=tuple(columns))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_retyped, r"tags changed its type from .* to .*"),
        (_told_otherwise, "txt changed its type from string .* to xml"),
    ],
)
def test_a_change_that_cannot_be_followed_is_told_and_changes_nothing(
    lake: Lake, change: object, told: str
) -> None:
    """Invariant 8."""
    schema = schema_of("int64")
    table = lake.open()
    table.load(schema, lake.snapshot(schema, rows("int64", range(3))), at(1))
    assert callable(change)
    with pytest.raises(UnsupportedSchemaChangeError, match=told) as caught:
        table.evolve(change(schema))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("headrace resync shop.orders")
    assert DeltaTable(lake.path).version() == 0


# -- lives -----------------------------------------------------------------------------------------

_names = st.sampled_from(["a", "b", "B", "c", "d"])
_keys = st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True)
_seeds = st.integers(0, 100)
_steps = st.one_of(
    st.tuples(st.just("put"), _keys, _seeds),
    st.tuples(st.just("take"), _keys),
    st.tuples(st.just("add"), _names, st.sampled_from([*TYPES]), st.none() | _seeds),
    st.tuples(st.just("drop"), _names),
    st.tuples(st.just("rename"), _names, _names),
    st.tuples(st.just("widen"), _names),
    st.tuples(st.just("exchange"), _names, _names),
    st.tuples(st.just("reopen")),
)


def _do(life: Evolving, step: str, *given: Any) -> None:
    """One step, unless Postgres or Delta would refuse it."""
    names = set(life.schema.names)
    taken = {name.lower() for name in names}
    if step == "reopen":
        life.open()
    elif step in ("put", "take"):
        getattr(life, step)(*given)
    elif step == "add":
        if given[0].lower() not in taken:
            life.add(*given)
    elif step == "rename":
        one, other = given
        if one in names and other.lower() not in taken - {one.lower()}:
            life.rename({one: other})
    elif step == "exchange":
        one, other = given
        if {one, other} <= names:
            life.rename({one: other, other: one})
    elif given[0] in names:
        getattr(life, step)(given[0])


@settings(max_examples=12, deadline=None)
@given(st.lists(_steps, min_size=4, max_size=12), st.booleans())
def test_8_columns_change_between_changes_and_no_value_is_misplaced(
    steps: list[tuple[Any, ...]], drop_columns: bool
) -> None:
    """Invariant 8: not even one that a column of the same name had before."""
    with tempfile.TemporaryDirectory() as root:
        life = Evolving(Lake(Path(root)), Delivery(drop_columns=drop_columns))
        for step in steps:
            _do(life, *step)
        life.assert_holds()
        names = {field.name for field in DeltaTable(life.lake.path).schema().fields}
        assert names == set(life.schema.names) if drop_columns else names >= set(life.schema.names)


@pytest.mark.parametrize("drop_columns", [False, True])
def test_8_values_of_a_dropped_column_do_not_rise_again_under_its_name(
    lake: Lake, drop_columns: bool
) -> None:
    """Invariant 8."""
    life = Evolving(lake, Delivery(drop_columns=drop_columns))
    life.drop("b")
    life.put([1], 7)
    life.open()
    life.add("c", "text", None)
    life.assert_holds()
    life.add("B", "text", None)
    life.assert_holds()


def test_a_dropped_column_stays_and_is_null_in_new_rows(lake: Lake) -> None:
    life = Evolving(lake)
    life.drop("b")
    life.put([1], 7)
    rows = READERS["deltalake"](lake.path, ["id", "b"])
    assert rows == {(k, None if k == 1 else f"text {k}"): 1 for k in range(6)}


def test_a_rewrite_is_one_commit_and_takes_only_the_files_that_need_it(lake: Lake) -> None:
    life = Evolving(lake)
    life.add("c", "integer", None)
    life.put([1], 7)
    life.rename({"c": "d"})
    removed = [a["remove"] for a in _last_commit(lake) if "remove" in a]
    assert len(removed) == 1
    assert len(DeltaTable(lake.path).history()) == 4
    life.assert_holds()


def test_readers_of_the_feed_see_a_wider_type_as_no_change_and_another_name_as_one(
    lake: Lake,
) -> None:
    life = Evolving(lake)
    life.widen("a")
    assert {a["add"]["dataChange"] for a in _last_commit(lake) if "add" in a} == {False}
    life.rename({"a": "z"})
    assert {a["add"]["dataChange"] for a in _last_commit(lake) if "add" in a} == {True}


def _last_commit(lake: Lake) -> list[dict[str, Any]]:
    text = lake.log(DeltaTable(lake.path).version()).read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("policy", [SchemaPolicy.FREEZE, SchemaPolicy.RESYNC])
def test_a_table_that_is_not_to_evolve_says_what_changed_and_stays_as_it_is(
    lake: Lake, policy: SchemaPolicy
) -> None:
    life = Evolving(lake, Delivery(schema_policy=policy))
    version = DeltaTable(lake.path).version()
    with pytest.raises(UnsupportedSchemaChangeError, match="renames column a to z") as caught:
        life.rename({"a": "z"})
    assert caught.value.hint is not None
    assert "headrace resync shop.orders" in caught.value.hint
    assert "schema: evolve" in caught.value.hint
    assert DeltaTable(lake.path).version() == version


def test_the_plan_tells_what_evolving_would_do_and_does_nothing(lake: Lake) -> None:
    life = Evolving(lake)
    columns = [replace(c, name="z") if c.name == "a" else c for c in life.schema.columns[:2]]
    version = DeltaTable(lake.path).version()
    assert life.table.planned(replace(life.schema, columns=tuple(columns))) == (
        "keeps column b, which the source dropped, null in new rows",
        "renames column a to z",
    )
    assert DeltaTable(lake.path).version() == version


@pytest.mark.parametrize(("failpoint", "hits"), evolving_child.KILLS)
def test_3_killed_in_the_middle_of_a_rewrite_it_goes_on_exactly_once(
    tmp_path: Path, failpoint: str, hits: int
) -> None:
    """Invariant 3."""
    assert _child(tmp_path, f"{failpoint}=kill@{hits}") == -signal.SIGKILL
    assert _child(tmp_path, "") == 0
    life = Evolving(Lake(tmp_path))
    evolving_child.live(life, only_model=True)
    life.assert_holds()
    assert life.table.checkpoint(LOG_ID) == at(life.commit)


def _child(root: Path, failpoint: str) -> int:
    script = Path(evolving_child.__file__)
    environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    command = [sys.executable, str(script), str(root)]
    return subprocess.run(command, env=environment, cwd=script.parent, timeout=60).returncode
