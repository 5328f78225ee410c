"""Net changes against a table of dicts, over random feeds; and against what Delta tables hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from change_samples import canonical, content, table_schema
from deltalake import DeltaTable, write_deltalake
from feeds import FeedRow, applied, feed
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.netting import net
from headrace.model import FEED_COLUMNS, TableSchema

NAN = float("nan")
SCHEMA = table_schema(
    {"a": "bigint", "b": "double precision", "v": "text", "w": "text[]"}, ["a", "b"]
)
KEYS = st.tuples(st.integers(0, 2), st.sampled_from([0.0, 1.5, NAN]))
VALUES = st.tuples(
    st.none() | st.sampled_from("xy"), st.none() | st.lists(st.just("z"), max_size=1)
)

# What one version does: keys that go, and rows that are put (which may stand already, or move).
VERSIONS = st.lists(
    st.tuples(
        st.lists(KEYS, max_size=3),
        st.lists(st.tuples(KEYS, VALUES), max_size=4),
        st.sampled_from(["merge", "overwrite", "move"]),
    ),
    max_size=5,
)

Table = dict[Any, dict[str, Any]]


def whole(key: tuple[int, float], value: tuple[str | None, list[str] | None]) -> dict[str, Any]:
    return {"a": key[0], "b": key[1], "v": value[0], "w": value[1]}


def by_key(row: dict[str, Any]) -> Any:
    return canonical((row["a"], row["b"]))


def play(table: Table, number: int, gone: list[Any], put: list[Any], how: str) -> list[FeedRow]:
    """Change `table` as one version of a source does, and tell what its feed would."""
    rows = {by_key(row): row for row in (whole(*p) for p in put)}
    told: list[FeedRow] = []
    if how == "overwrite":
        told = [("delete", number, row) for row in table.values()]
        told += [("insert", number, row) for row in rows.values()]
        table.clear()
        table.update(rows)
        return told
    for key in {canonical(k) for k in gone}:
        if key in table:
            told.append(("delete", number, table.pop(key)))
    if how == "move" and table and rows:  # one row takes another key, if that is free
        old, (new, row) = next(iter(table)), next(iter(rows.items()))
        if new not in table:
            told += [("update_preimage", number, table.pop(old))]
            told += [("update_postimage", number, row)]
            table[new] = row
        return told
    for key, row in rows.items():
        if key in table:
            told += [("update_preimage", number, table[key]), ("update_postimage", number, row)]
        else:
            told.append(("insert", number, row))
        table[key] = row
    return told


@settings(max_examples=150, deadline=None)
@given(versions=VERSIONS, cut=st.integers(0, 5), shuffled=st.randoms())
def test_any_range_of_versions_comes_to_what_the_source_holds(
    versions: list[Any], cut: int, shuffled: Any
) -> None:
    """DESIGN §13, invariant 4."""
    table: Table = {}
    told = [play(table, number, *version) for number, version in enumerate(versions)]
    there: dict[Any, Any] = {}
    for part in (told[:cut], told[cut:]):
        rows = [row for version in part for row in version]
        shuffled.shuffle(rows)
        changes = net(SCHEMA, feed(SCHEMA, rows))
        keys = [by_key(row) for row in changes.upserts.to_pylist()]
        keys += [by_key(row) for row in changes.deletes.to_pylist()]
        assert len(keys) == len(set(keys))
        there = applied(there, changes)
    assert content(list(there.values())) == content(list(table.values()))


# -- Delta tables ----------------------------------------------------------------------------------

DELTA = table_schema({"id": "bigint", "name": "text", "score": "double precision"}, ["id"])
STEPS: dict[str, Callable[[str, int], None]] = {}


def step(change: Callable[[str, int], None]) -> Callable[[str, int], None]:
    STEPS[change.__name__] = change
    return change


def rows(keys: range, name: str, score: float | None = 1.0) -> pa.Table:
    made = [{"id": key, "name": f"{name}{key}", "score": score} for key in keys]
    return pa.Table.from_pylist(made, schema=DELTA.arrow())


@step
def append(place: str, n: int) -> None:
    write_deltalake(place, rows(range(100 * (n + 1), 100 * (n + 1) + 5), "n"), mode="append")


@step
def merge(place: str, n: int) -> None:
    """Updates, inserts and, of what the merge does not name, deletes."""
    source = rows(range(n % 3, n % 3 + 6), f"m{n}", None)
    merged = DeltaTable(place).merge(source, "s.id = t.id", source_alias="s", target_alias="t")
    merged = merged.when_matched_update_all().when_not_matched_insert_all()
    merged.when_not_matched_by_source_delete("t.id % 4 = 3").execute()


@step
def merge_that_changes_nothing(place: str, _: int) -> None:
    table = DeltaTable(place)
    same = pa.table(table.to_pyarrow_table())
    merged = table.merge(same, "s.id = t.id", source_alias="s", target_alias="t")
    merged.when_matched_update_all().execute()


@step
def update(place: str, n: int) -> None:
    DeltaTable(place).update(predicate="id % 2 = 0", updates={"name": f"'u{n}'"})


@step
def move_keys(place: str, n: int) -> None:
    DeltaTable(place).update(predicate="id % 5 = 1", updates={"id": f"id + {1000 << n}"})


@step
def delete(place: str, n: int) -> None:
    DeltaTable(place).delete(f"id % 7 = {n % 7}")


@step
def overwrite(place: str, n: int) -> None:
    write_deltalake(place, rows(range(n, n + 8), "o"), mode="overwrite")


@step
def compact(place: str, _: int) -> None:
    DeltaTable(place).optimize.compact()


def state(place: str, version: int) -> Any:
    return content(DeltaTable(place, version=version).to_pyarrow_table().to_pylist())


def changes_of(place: str, schema: TableSchema, first: int, last: int) -> pa.Table:
    read = DeltaTable(place).load_cdf(starting_version=first, ending_version=last).read_all()
    fields = pa.schema([*schema.arrow(), *FEED_COLUMNS])
    return pa.table(read).select(fields.names).cast(fields)


@settings(max_examples=6, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(STEPS)), min_size=3, max_size=6), cut=st.integers(1, 4)
)
def test_the_feed_of_a_delta_table_comes_to_its_rows(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], cut: int
) -> None:
    """DESIGN §13, invariant 4, with deltalake as the writer, the feed's reader and the oracle."""
    place = str(tmp_path_factory.mktemp("lake") / "t")
    feed_on = {"delta.enableChangeDataFeed": "true"}
    write_deltalake(place, rows(range(10), "first"), configuration=feed_on)
    for number, name in enumerate(names):
        STEPS[name](place, number)
    there = {(r["id"],): r for r in DeltaTable(place, version=0).to_pyarrow_table().to_pylist()}
    newest, done = DeltaTable(place).version(), 0
    for last in sorted({min(cut, newest), newest}):
        if last == done:
            continue
        there = applied(there, net(DELTA, changes_of(place, DELTA, done + 1, last)))
        done = last
        assert content(list(there.values())) == state(place, last)


def test_each_step_of_these_lives_does_something(tmp_path: Path) -> None:
    place = str(tmp_path / "t")
    feed_on = {"delta.enableChangeDataFeed": "true"}
    write_deltalake(place, rows(range(10), "first"), configuration=feed_on)
    for number, name in enumerate(["append", *sorted(STEPS)]):
        STEPS[name](place, number)
    assert DeltaTable(place).version() >= len(STEPS) - 1  # a compaction may find nothing to do
