"""Every version of every row (mode scd2): transactions of a real Postgres, by three readers."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from deltalake import DeltaTable
from harness import Shop

from headrace.errors import UnsuitableShapeError
from tables import READERS, exact

PERIOD = ("__START_AT", "__END_AT")
COLUMNS = ("id", "n", "note", "doc")
TABLE = "public.items"
Row = tuple[Any, ...]


def declare(shop: Shop, **more: Any) -> None:
    shop.carry({"source": TABLE, "mode": "scd2", **more})


@pytest.fixture
def items(shop: Shop) -> Shop:
    shop.sql("CREATE TABLE items (id int PRIMARY KEY, n int, note text, doc text)")
    shop.sql("ALTER TABLE items ALTER doc SET STORAGE EXTERNAL")  # out of line, so not sent again
    shop.sql(
        "INSERT INTO items SELECT k, k, 'note', repeat(k::text, 9000) FROM generate_series(1, 6) k"
    )
    declare(shop)
    shop.catch_up()
    return shop


def source(shop: Shop, columns: tuple[str, ...] = COLUMNS) -> dict[int, Row]:
    rows = shop.sql(f"SELECT {', '.join(columns)} FROM items")
    return {row[0]: tuple(exact(value) for value in row) for row in rows}


def versions(
    shop: Shop, columns: tuple[str, ...] = COLUMNS, reader: str = "deltalake"
) -> dict[int, list[tuple[Row, Any, Any]]]:
    """By key, what the lake holds: values, start and end, in order of time."""
    found = READERS[reader](shop.location(TABLE), (*columns, *PERIOD), {})
    assert max(found.values(), default=1) == 1, "a version is there twice"
    by_key: dict[int, list[tuple[Row, Any, Any]]] = {}
    for *values, start, end in sorted(found, key=lambda row: row[-2]):
        by_key.setdefault(values[0], []).append((tuple(values), start, end))
    return by_key


class Watched:
    """The states that transactions left, as the source itself showed them after each."""

    def __init__(self, shop: Shop, columns: tuple[str, ...] = COLUMNS) -> None:
        self.shop, self.columns = shop, columns
        self.states = [source(shop, columns)]

    def commit(self, *statements: str) -> None:
        with self.shop.database.connect(autocommit=False) as session:
            for statement in statements:
                session.execute(statement)
        self.states.append(source(self.shop, self.columns))

    def expected(self) -> dict[int, list[Row]]:
        """By key, its versions in order, None where there was no row."""
        keys = {key for state in self.states for key in state}
        told: dict[int, list[Row]] = {}
        for key in keys:
            states = [None, *(state.get(key) for state in self.states)]
            told[key] = [b for a, b in pairwise(states) if b is not None and a != b]
        return told

    def assert_kept(self) -> None:
        """Invariant 5, by each reader."""
        expected, last = self.expected(), self.states[-1]
        for reader in READERS:
            found = versions(self.shop, self.columns, reader)
            assert {k: [v for v, _, _ in told] for k, told in found.items()} == expected, reader
            for key, told in found.items():
                for (_, start, end), (_, following, _) in pairwise(told):
                    assert start < end <= following
                assert [v for v, _, end in told if end is None] == [
                    last[k] for k in (key,) if k in last
                ]


STEPS = (
    "INSERT INTO items VALUES ({a}, {n}, 'new', repeat('{n}', 9000)) ON CONFLICT DO NOTHING",
    "UPDATE items SET n = {n} WHERE id = {a}",
    "UPDATE items SET note = 'said {n}' WHERE id IN ({a}, {b})",
    "UPDATE items SET doc = repeat('{b}', 9000) WHERE id = {a}",
    "UPDATE items SET id = {b} WHERE id = {a} AND NOT EXISTS (SELECT FROM items WHERE id = {b})",
    "DELETE FROM items WHERE id = {a}",
    "UPDATE items SET n = n",
)


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_5_6_each_version_stands_once_whatever_transactions_do(items: Shop, identity: str) -> None:
    """Keys move, rows come back, what is out of line is not sent; runs end in between."""
    items.sql(f"ALTER TABLE items REPLICA IDENTITY {identity}")
    items.catch_up()
    watched, random_ = Watched(items), random.Random(5)
    for number in range(40):
        steps = random_.choices(STEPS, k=random_.choice((1, 1, 2, 3)))
        values = {name: random_.randint(1, 9) for name in "abn"}
        watched.commit(*(step.format(**values) for step in steps))
        if number in (9, 10, 25):
            items.catch_up()
    watched.commit("TRUNCATE items", "INSERT INTO items VALUES (1, 1, 'back', 'x')")
    watched.commit("TRUNCATE items")
    items.catch_up()
    watched.commit("INSERT INTO items SELECT k, k, 'again', 'y' FROM generate_series(1, 3) k")
    items.catch_up()
    watched.assert_kept()


def test_5_a_truncate_closes_what_is_current_and_leaves_the_past_alone(items: Shop) -> None:
    watched = Watched(items)
    watched.commit("UPDATE items SET n = 70 WHERE id = 1")
    items.catch_up()
    past = versions(items)[1][0]
    watched.commit("TRUNCATE items")
    items.catch_up()
    watched.assert_kept()
    assert versions(items)[1][0] == past


def test_5_a_table_created_anew_keeps_its_history_under_the_names_of_its_columns(
    items: Shop,
) -> None:
    """A dump that is restored numbers columns anew where one had been dropped."""
    columns = ("id", "n", "doc")
    items.sql("ALTER TABLE items DROP note")
    watched = Watched(items, columns)
    watched.commit("UPDATE items SET n = 70 WHERE id = 1")
    watched.commit("DELETE FROM items WHERE id = 2")
    items.catch_up()
    items.sql("CREATE TABLE copy AS TABLE items")
    items.sql("DROP TABLE items")
    items.sql("CREATE TABLE items (n int, id int PRIMARY KEY, doc text)")
    items.sql("INSERT INTO items (id, n, doc) SELECT id, n, doc FROM copy")
    assert not items.project.resync([TABLE])
    watched.assert_kept()


def test_only_changes_of_tracked_columns_make_versions(items: Shop) -> None:
    declare(items, track=["n"])
    watched = Watched(items)
    before = versions(items)[1]
    items.sql("UPDATE items SET note = 'quiet' WHERE id = 1")
    items.catch_up()
    ((values, start, end),) = versions(items)[1]
    assert (values[2], start, end) == ("quiet", before[0][1], None)
    items.sql("UPDATE items SET note = 'loud', n = 9 WHERE id = 1")
    items.catch_up()
    old, new = versions(items)[1]
    assert (old[0][2], new[0][2]) == ("quiet", "loud")
    assert old[2] == new[1]
    assert versions(items).keys() == watched.states[0].keys()


def test_8_changed_columns_are_followed_in_the_midst_of_versions(items: Shop) -> None:
    items.sql("UPDATE items SET n = 20 WHERE id = 2")
    items.sql("ALTER TABLE items ADD COLUMN size int DEFAULT 5")
    items.sql("UPDATE items SET size = 6 WHERE id = 2")
    items.catch_up()
    columns = ("id", "n", "size")
    told = [values for values, _, _ in versions(items, columns)[2]]
    assert told[-1] == (2, 20, 6)
    assert [values[1] for values in told] == [2, 20, 20]
    assert {k: v[-1][0] for k, v in versions(items, columns).items()} == source(items, columns)
    items.sql("ALTER TABLE items RENAME note TO remark")
    items.sql("ALTER TABLE items DROP COLUMN size")
    items.sql("ALTER TABLE items ALTER n TYPE bigint")
    items.sql("UPDATE items SET n = 1::bigint << 33 WHERE id = 2")
    items.catch_up()
    columns = ("id", "n", "remark", "doc")
    found = versions(items, columns)
    assert [values[1:3] for values, _, _ in found[2]] == [
        *((n, "note") for n in (2, 20, 20)),
        (2**33, "note"),
    ]
    assert {k: v[-1][0] for k, v in found.items()} == source(items, columns)


def test_a_resync_makes_versions_of_differences_and_leaves_the_rest_alone(items: Shop) -> None:
    watched = Watched(items)
    watched.commit("UPDATE items SET n = 10 WHERE id = 1", "DELETE FROM items WHERE id = 2")
    items.catch_up()
    before = versions(items)
    items.sql("ALTER PUBLICATION headrace_shop DROP TABLE items")  # the stream misses what follows
    watched.commit(
        "UPDATE items SET note = 'missed' WHERE id = 3",
        "DELETE FROM items WHERE id = 4",
        "INSERT INTO items VALUES (2, 0, 'back', 'z'), (9, 9, 'new', 'z')",
    )
    items.sql("ALTER PUBLICATION headrace_shop ADD TABLE items")
    assert not items.project.resync([TABLE])
    watched.assert_kept()
    after = versions(items)
    assert {key: after[key] for key in (1, 5, 6)} == {key: before[key] for key in (1, 5, 6)}
    watched.commit("UPDATE items SET n = n + 1")
    items.catch_up()
    watched.assert_kept()


def test_rows_tell_of_the_change_that_brought_their_version(items: Shop) -> None:
    declare(items, metadata=["op"])
    assert not items.project.resync([TABLE])
    items.sql("UPDATE items SET n = 70 WHERE id = 1")
    items.catch_up()
    told = versions(items, ("id", "n", "_op"))[1]
    assert [values for values, _, _ in told][-1] == (1, 70, "u")


def test_a_table_without_a_key_is_refused_with_the_way_out(shop: Shop) -> None:
    shop.sql("CREATE TABLE items (id int)")
    shop.sql("ALTER TABLE items REPLICA IDENTITY FULL")
    declare(shop)
    (failure,) = shop.run()
    assert isinstance(failure.error, UnsuitableShapeError)
    assert "ADD PRIMARY KEY" in failure.error.hint


def test_verify_compares_the_current_rows_and_finds_one_that_is_wrong(items: Shop) -> None:
    items.sql("UPDATE items SET n = 70 WHERE id = 1")
    items.sql("DELETE FROM items WHERE id = 2")
    items.catch_up()
    (verified,) = items.project.verify()
    assert verified.equal
    assert verified.rows == 5
    lake = DeltaTable(items.location(TABLE))
    lake.update(predicate="id = 1 AND __END_AT IS NULL", updates={"n": "0"})
    lake.delete("id IN (2, 3)")  # a version that has ended, and one that is current
    (verified,) = items.project.verify(repair=True)
    assert (verified.missing, verified.extra) == (2, 1)
    (verified,) = items.project.verify()
    assert verified.equal
    assert [values[1] for values, _, _ in versions(items)[1]] == [1, 0, 70]
    assert 2 not in versions(items)  # of the past the source tells nothing
