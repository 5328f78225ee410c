"""What a stretch of changes comes to, case by case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from change_samples import (
    TRUNCATE,
    Change,
    Keyed,
    change_batch,
    delete,
    insert,
    rows_of,
    table_schema,
    update,
)

from headrace.engine.collapse import collapse
from headrace.errors import DivergedError, LogCorruptError
from headrace.model import ChangeBatch, Lsn, NetChanges, ReplicaIdentity, TableSchema

COLUMNS = {"id": "bigint", "n": "bigint", "doc": "text", "img": "bytea"}
DEFAULT = table_schema(COLUMNS, ["id"])
FULL = table_schema(COLUMNS, ["id"], ReplicaIdentity.FULL)
KEYLESS = table_schema(COLUMNS, [], ReplicaIdentity.FULL)


def net(
    changes: Sequence[Change], schema: TableSchema = DEFAULT, after: int = 0, batches: int = 1
) -> NetChanges:
    parts = np.array_split(np.arange(len(changes)), batches)
    made = [change_batch(schema, [changes[i] for i in part]) for part in parts]
    return collapse(schema, made, Lsn(after))


def row(key: int, n: int | None = None, doc: str | None = None, img: bytes | None = None) -> dict:
    return {"id": key, "n": n, "doc": doc, "img": img}


def fills_of(changes: NetChanges) -> list[tuple[tuple[str, ...], list[int], list[tuple]]]:
    return [(f.columns, f.rows.tolist(), rows_of(f.keys)) for f in changes.fills]


# -- one operation per key -------------------------------------------------------------------------


def test_the_last_put_of_a_key_wins() -> None:
    changes = net([insert(id=1, n=1), update(id=1, n=2), insert(id=2, n=5), update(id=1, n=3)])
    assert rows_of(changes.upserts) == [(2, 5, None, None), (1, 3, None, None)]
    assert rows_of(changes.deletes) == []


def test_a_deleted_key_is_deleted() -> None:
    changes = net([update(id=1, n=2), delete(id=1), delete(id=7)])
    assert rows_of(changes.upserts) == []
    assert rows_of(changes.deletes) == [(1,), (7,)]


def test_a_key_that_came_and_went_is_deleted() -> None:
    changes = net([insert(id=1), delete(id=1)])
    assert (rows_of(changes.upserts), rows_of(changes.deletes)) == ([], [(1,)])


def test_a_key_deleted_and_inserted_again_is_upserted_once() -> None:
    changes = net([delete(id=1), insert(id=1, n=4), delete(id=1), insert(id=1, n=5)])
    assert rows_of(changes.upserts) == [(1, 5, None, None)]
    assert rows_of(changes.deletes) == []


def test_a_moved_row_leaves_its_old_key() -> None:
    changes = net([update({"id": 1}, id=2, n=9)])
    assert rows_of(changes.upserts) == [(2, 9, None, None)]
    assert rows_of(changes.deletes) == [(1,)]


def test_an_old_key_that_did_not_change_moves_nothing() -> None:
    changes = net([update({"id": 1}, id=1, n=9)])
    assert rows_of(changes.upserts) == [(1, 9, None, None)]
    assert rows_of(changes.deletes) == []


def test_keys_swapped_in_one_transaction_are_two_upserts() -> None:
    swap = [update({"id": 1}, id=-1, n=10), update({"id": 2}, id=1, n=20)]
    destination = Keyed([row(1, 10), row(2, 20)])
    changes = net([*swap, update({"id": -1}, id=2, n=10)])
    assert rows_of(changes.deletes) == [(-1,)]
    destination.apply(changes)
    assert destination.content() == Keyed([row(1, 20), row(2, 10)]).content()


def test_a_chain_of_moves_deletes_every_key_but_the_last() -> None:
    chain = [update({"id": k}, id=k + 1, n=k) for k in range(4)]
    changes = net(chain)
    assert rows_of(changes.upserts) == [(4, 3, None, None)]
    assert rows_of(changes.deletes) == [(0,), (1,), (2,), (3,)]


def test_rows_shifted_by_one_key_each_keep_their_own_values() -> None:
    shift = [update({"id": k}, id=k + 1, n=k) for k in (3, 2, 1)]
    changes = net(shift)
    assert rows_of(changes.upserts) == [
        (4, 3) + (None,) * 2,
        (3, 2) + (None,) * 2,
        (2, 1, None, None),
    ]
    assert rows_of(changes.deletes) == [(1,)]


def test_a_move_onto_a_deleted_key_is_one_upsert() -> None:
    changes = net([delete(id=1), update({"id": 2}, id=1, n=2)])
    assert rows_of(changes.upserts) == [(1, 2, None, None)]
    assert rows_of(changes.deletes) == [(2,)]


def test_a_truncate_drops_what_came_before_it() -> None:
    changes = net([insert(id=1), delete(id=5), TRUNCATE, insert(id=2), TRUNCATE, insert(id=3)])
    assert changes.truncate
    assert rows_of(changes.upserts) == [(3, None, None, None)]
    assert rows_of(changes.deletes) == []


def test_a_truncate_alone_is_not_nothing() -> None:
    changes = net([insert(id=1), TRUNCATE])
    assert changes.truncate
    assert not changes.is_empty
    assert changes.upserts.num_rows == 0


def test_changes_up_to_the_checkpoint_are_ignored() -> None:
    old = [Change("i", {"id": 1}, lsn=5), Change("t", lsn=5), Change("d", before={"id": 2}, lsn=6)]
    new = [Change("i", {"id": 3}, lsn=7)]
    changes = net([*old, *new], after=6)
    assert not changes.truncate
    assert rows_of(changes.upserts) == [(3, None, None, None)]
    assert rows_of(changes.deletes) == []
    assert net([*old, *new], after=7).is_empty


def test_the_highest_position_is_compared_as_unsigned() -> None:
    top = (1 << 64) - 1
    assert net([Change("i", {"id": 1}, lsn=top)], after=top - 1).upserts.num_rows == 1
    assert net([Change("i", {"id": 1}, lsn=top)], after=top).is_empty


@pytest.mark.parametrize("schema", [DEFAULT, FULL, KEYLESS])
def test_no_changes_are_empty_tables_of_the_right_types(schema: TableSchema) -> None:
    for batches in ([], [change_batch(schema, [])]):
        changes = collapse(schema, batches, Lsn(0))
        assert changes.is_empty
        assert changes.upserts.schema == schema.arrow()
        whole = [f for f in schema.arrow() if not schema.key or f.name in schema.key]
        assert changes.deletes.schema == pa.schema(whole)


@pytest.mark.parametrize("schema", [DEFAULT, FULL, KEYLESS])
def test_a_change_without_its_old_row_is_refused(schema: TableSchema) -> None:
    with pytest.raises(LogCorruptError, match=r"public\.t") as caught:
        net([Change("d")], schema)
    assert caught.value.hint == "headrace resync public.t"


# -- keys of every kind ----------------------------------------------------------------------------


def test_composite_keys_differ_by_every_column() -> None:
    schema = table_schema({"a": "bigint", "b": "text", "n": "bigint"}, ["b", "a"])
    pairs = [(a, b) for a in range(3) for b in ("x", "y", "")]
    rows = [insert(a=a, b=b, n=n) for n, (a, b) in enumerate(pairs)]
    changes = net([*rows, delete(a=1, b="y"), update({"a": 2, "b": ""}, a=2, b="z", n=99)], schema)
    assert rows_of(changes.upserts) == [
        *((a, b, n) for n, (a, b) in enumerate(pairs) if (a, b) not in {(1, "y"), (2, "")}),
        (2, "z", 99),
    ]
    assert rows_of(changes.deletes) == [("y", 1), ("", 2)]


def test_text_keys_are_told_apart_byte_by_byte() -> None:
    schema = table_schema({"id": "text", "n": "bigint"}, ["id"])
    changes = net([insert(id="a", n=1), insert(id="A", n=2), delete(id="a")], schema)
    assert rows_of(changes.upserts) == [("A", 2)]
    assert rows_of(changes.deletes) == [("a",)]


@pytest.mark.parametrize("kind", ["double precision", "real"])
def test_float_keys_are_equal_as_postgres_sees_them(kind: str) -> None:
    schema = table_schema({"id": kind, "n": "bigint"}, ["id"])
    nan, zero = float("nan"), 0.0
    other_nan = np.frombuffer(np.uint64(0xFFF8000000000001).tobytes(), np.float64)[0]
    first = change_batch(schema, [insert(id=nan, n=1), insert(id=zero, n=2), insert(id=1.5, n=3)])
    second = change_batch(schema, [update(id=other_nan, n=4), update({"id": zero}, id=-0.0, n=5)])
    changes = collapse(schema, [first, second], Lsn(0))
    assert rows_of(changes.upserts) == [(1.5, 3), ("NaN", 4), (-0.0, 5)]
    assert rows_of(changes.deletes) == []


def test_null_is_a_key_value_like_any_other() -> None:
    columns = {"a": "bigint", "b": "text"}
    schema = table_schema(columns, ["a", "b"], ReplicaIdentity.FULL)
    changes = net([insert(a=None, b="x"), insert(a=0, b=None), delete(a=None, b="x")], schema)
    assert rows_of(changes.upserts) == [(0, None)]
    assert rows_of(changes.deletes) == [(None, "x")]


def test_batches_are_one_stretch_however_it_is_cut() -> None:
    chain = [insert(id=0, doc="d"), *(update({"id": k}, ("doc",), id=k + 1) for k in range(5))]
    whole = net(chain)
    for batches in (2, 3, 6):
        cut = net(chain, batches=batches)
        assert cut.upserts.equals(whole.upserts)
        assert cut.deletes.equals(whole.deletes)


# -- unsent TOAST columns --------------------------------------------------------------------------


def test_invariant_6_an_unsent_value_comes_from_an_older_change_of_the_row() -> None:
    changes = net([insert(id=1, doc="long"), update(id=1, n=2, unsent=("doc",))])
    assert rows_of(changes.upserts) == [(1, 2, "long", None)]
    assert changes.fills == ()


def test_invariant_6_the_newest_of_the_older_values_is_taken() -> None:
    older = [insert(id=1, doc="first"), update(id=1, doc="second")]
    changes = net([*older, *(update(id=1, n=k, unsent=("doc",)) for k in range(40))])
    assert rows_of(changes.upserts) == [(1, 39, "second", None)]
    assert changes.fills == ()


def test_invariant_6_a_null_that_was_sent_is_a_value() -> None:
    changes = net([update(id=1, doc=None), update(id=1, n=2, unsent=("img",))])
    assert rows_of(changes.upserts) == [(1, 2, None, None)]
    assert fills_of(changes) == []


def test_invariant_6_a_value_is_followed_through_key_moves() -> None:
    moves = [update({"id": k}, ("doc",), id=k + 1) for k in range(1, 4)]
    changes = net([insert(id=1, doc="mine"), insert(id=9, doc="other"), *moves])
    assert rows_of(changes.upserts) == [(9, None, "other", None), (4, None, "mine", None)]
    assert changes.fills == ()


def test_invariant_6_swapped_rows_keep_their_own_values() -> None:
    first = [update(id=1, doc="one"), update(id=2, doc="two")]
    swap = [({"id": 1}, -1), ({"id": 2}, 1), ({"id": -1}, 2)]
    changes = net([*first, *(update(old, ("doc",), id=new) for old, new in swap)])
    assert rows_of(changes.upserts) == [(1, None, "two", None), (2, None, "one", None)]
    assert changes.fills == ()


def test_invariant_6_a_value_never_sent_comes_from_the_destination() -> None:
    changes = net(
        [insert(id=5), update(id=1, n=2, unsent=("doc",)), update(id=1, n=3, unsent=("doc",))]
    )
    assert rows_of(changes.upserts) == [(5, None, None, None), (1, 3, None, None)]
    assert fills_of(changes) == [(("doc",), [1], [(1,)])]


def test_invariant_6_a_moved_row_is_found_under_its_key_before_the_stretch() -> None:
    swap = [({"id": 1}, -1), ({"id": 2}, 1), ({"id": -1}, 2)]
    destination = Keyed([row(1, doc="one"), row(2, doc="two")])
    changes = net([update(old, ("doc",), id=new) for old, new in swap])
    assert fills_of(changes) == [(("doc",), [0, 1], [(2,), (1,)])]
    destination.apply(changes)
    assert destination.content() == Keyed([row(1, doc="two"), row(2, doc="one")]).content()


def test_invariant_6_a_row_moved_onto_a_deleted_key_takes_its_own_value() -> None:
    changes = net([delete(id=1), update({"id": 2}, ("doc",), id=1)])
    assert fills_of(changes) == [(("doc",), [0], [(2,)])]


def test_invariant_6_fills_are_grouped_by_their_set_of_columns() -> None:
    both = ("doc", "img")
    changes = net(
        [
            update(id=1, unsent=both),
            update(id=2, unsent=("img",)),
            update(id=3, doc="sent", img=b"sent"),
            update(id=4, unsent=both),
            update(id=5, img=b"sent", unsent=("doc",)),
            update(id=5, unsent=both),
        ]
    )
    assert sorted(fills_of(changes)) == [
        (("doc",), [4], [(5,)]),
        (("doc", "img"), [0, 3], [(1,), (4,)]),
        (("img",), [1], [(2,)]),
    ]


def test_a_row_inserted_anew_takes_nothing_from_its_predecessor() -> None:
    changes = net([update(id=1, doc="old"), delete(id=1), insert(id=1), update(id=1, n=1)])
    assert rows_of(changes.upserts) == [(1, 1, None, None)]
    again = net(
        [
            update(id=1, doc="old"),
            delete(id=1),
            insert(id=1, doc="new"),
            update(id=1, unsent=("doc",)),
        ]
    )
    assert rows_of(again.upserts) == [(1, None, "new", None)]
    assert changes.fills == again.fills == ()


def test_columns_sent_at_different_times_each_find_their_own_change() -> None:
    changes = net(
        [
            update(id=1, doc="d1", unsent=("img",)),
            update({"id": 1}, ("doc",), id=2, img=b"i2"),
            update(id=2, n=3, unsent=("doc", "img")),
        ]
    )
    assert rows_of(changes.upserts) == [(2, 3, "d1", b"i2")]
    assert changes.fills == ()


def test_full_identity_gives_unsent_values_from_the_old_row() -> None:
    changes = net(
        [
            update(row(1, 1, "kept", b"x"), ("doc",), id=1, n=2, img=b"y"),
            update(row(3, 1, "moved", None), ("doc",), id=4, n=2),
        ],
        FULL,
    )
    assert rows_of(changes.upserts) == [(1, 2, "kept", b"y"), (4, 2, "moved", None)]
    assert rows_of(changes.deletes) == [(3,)]
    assert changes.fills == ()


def test_a_key_that_is_itself_toasted_comes_from_the_old_key() -> None:
    schema = table_schema({"id": "text", "n": "bigint", "doc": "text"}, ["id"])
    changes = net([update({"id": "k" * 2100}, ("id", "doc"), n=1)], schema)
    assert rows_of(changes.upserts) == [("k" * 2100, 1, None)]
    assert rows_of(changes.deletes) == []
    assert fills_of(changes) == [(("doc",), [0], [("k" * 2100,)])]


@pytest.mark.parametrize(
    "changes",
    [
        [TRUNCATE, update(id=1, unsent=("doc",))],
        [delete(id=1), update(id=1, unsent=("doc",))],
        [update({"id": 1}, id=2), update(id=1, unsent=("doc",))],
        [Change("i", {"id": 1}, unsent=("doc",))],
    ],
    ids=["truncated", "deleted", "moved away", "inserted without"],
)
def test_a_value_that_nothing_holds_is_divergence(changes: list[Change]) -> None:
    with pytest.raises(DivergedError, match="column doc") as caught:
        net(changes)
    assert caught.value.hint == "headrace resync public.t"
    assert caught.value.context == {"table": "public.t", "column": "doc"}


def test_an_unsent_key_without_an_old_key_is_divergence() -> None:
    with pytest.raises(DivergedError, match="column id"):
        net([update(unsent=("id",), n=1)])


def test_a_lost_value_of_a_row_that_goes_anyway_is_no_matter() -> None:
    changes = net([TRUNCATE, update(id=1, unsent=("doc",)), delete(id=1)])
    assert rows_of(changes.deletes) == [(1,)]


def test_nested_columns_pass_through_and_are_filled() -> None:
    columns = {"id": "bigint", "tags": "text[]", "h": "hstore", "v": "vector(2)", "p": "point3"}
    schema = table_schema(columns, ["id"])
    kept = {"tags": ["a", None], "h": [("k", "v")], "v": [1.0, 2.0], "p": {"x": 1, "y": None}}
    changes = net(
        [insert(id=1, **kept), insert(id=2), update({"id": 1}, tuple(kept), id=3)], schema
    )
    assert changes.upserts.to_pylist()[1] == {"id": 3, **kept}


# -- tables without a key --------------------------------------------------------------------------


def test_keyless_rows_are_counted() -> None:
    changes = net([insert(**row(1)), insert(**row(1)), delete(**row(2)), delete(**row(2))], KEYLESS)
    assert rows_of(changes.upserts) == [(1, None, None, None)] * 2
    assert rows_of(changes.deletes) == [(2, None, None, None)] * 2


def test_keyless_rows_that_came_and_went_leave_nothing() -> None:
    changes = net([insert(**row(1)), update(row(1), **row(2)), delete(**row(2))], KEYLESS)
    assert changes.is_empty


def test_a_keyless_update_takes_unsent_values_from_the_old_row() -> None:
    changes = net([update(row(1, 1, "long"), ("doc",), id=1, n=2)], KEYLESS)
    assert rows_of(changes.deletes) == [(1, 1, "long", None)]
    assert rows_of(changes.upserts) == [(1, 2, "long", None)]


def test_keyless_nan_equals_nan_and_null_equals_null() -> None:
    columns = {"f": "double precision", "n": "bigint"}
    schema = table_schema(columns, [], ReplicaIdentity.FULL)
    changes = net([insert(f=float("nan")), delete(f=float("nan")), insert(), delete()], schema)
    assert changes.is_empty


def test_keyless_rows_keep_the_sign_of_zero() -> None:
    schema = table_schema({"f": "double precision"}, [], ReplicaIdentity.FULL)
    changes = net([update({"f": 0.0}, f=-0.0)], schema)
    assert [str(v) for (v,) in rows_of(changes.upserts)] == ["-0.0"]
    assert [str(v) for (v,) in rows_of(changes.deletes)] == ["0.0"]


def test_keyless_rows_that_differ_only_inside_a_nested_value_are_told_apart() -> None:
    columns = {"tags": "text[]", "h": "hstore", "v": "vector(2)", "p": "point3"}
    schema = table_schema(columns, [], ReplicaIdentity.FULL)
    plain = {
        "tags": ["a", "b"],
        "h": [("k", "v")],
        "v": [1.0, float("nan")],
        "p": {"x": 1, "y": 2.0},
    }
    variants = [
        {"tags": ["ab"]},
        {"tags": ["a", "b", None]},
        {"tags": []},
        {"tags": None},
        {"h": [("k", None)]},
        {"h": []},
        {"h": None},
        {"v": [float("nan"), 1.0]},
        {"v": None},
        {"p": {"x": 1, "y": None}},
        {"p": {"x": None, "y": None}},
        {"p": None},
    ]
    rows = [plain, *({**plain, **v} for v in variants)]
    assert net([*(insert(**r) for r in rows), *(delete(**r) for r in rows)], schema).is_empty
    for gone in rows:
        left = net([*(insert(**r) for r in rows), delete(**gone)], schema, batches=3)
        assert left.deletes.num_rows == 0
        kept = [r for r in rows if r is not gone]
        assert sorted(map(repr, rows_of(left.upserts))) == sorted(
            repr(tuple(rows_of(pa.Table.from_pylist([r], schema.arrow()))[0])) for r in kept
        )


def test_keyless_truncate_drops_what_came_before_it() -> None:
    changes = net([insert(**row(1)), delete(**row(3)), TRUNCATE, insert(**row(2))], KEYLESS)
    assert changes.truncate
    assert rows_of(changes.upserts) == [(2, None, None, None)]
    assert rows_of(changes.deletes) == []


def test_a_table_that_only_takes_inserts_needs_no_identity() -> None:
    schema = table_schema(COLUMNS)
    assert (
        rows_of(net([insert(**row(1)), insert(**row(1))], schema).upserts)
        == [(1,) + (None,) * 3] * 2
    )


def test_batches_cut_from_a_bigger_one_mean_the_same() -> None:
    chain = [insert(id=0, doc="d"), *(update({"id": k}, ("doc",), id=k + 1) for k in range(5))]
    whole = change_batch(DEFAULT, [delete(id=7), *chain, insert(id=8)])
    cut = [
        ChangeBatch(DEFAULT, whole.data.slice(1, 3)),
        ChangeBatch(DEFAULT, whole.data.slice(4, 3)),
    ]
    changes = collapse(DEFAULT, cut, Lsn(0))
    assert changes.upserts.equals(net(chain).upserts)
    assert changes.deletes.equals(net(chain).deletes)
