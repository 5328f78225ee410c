"""What a range of a change feed comes to, case by case."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from change_samples import table_schema
from feeds import FeedRow, feed, stamp

from headrace.engine.netting import append_rows, append_schema, as_feed, net
from headrace.errors import ProtocolError
from headrace.model import NetChanges, Rejected, TableVersion

SCHEMA = table_schema({"id": "bigint", "name": "text", "score": "double precision"}, ["id"])
NAN = float("nan")


def row(key: int | None, name: str | None = "a", score: float | None = 1.0) -> dict[str, Any]:
    return {"id": key, "name": name, "score": score}


def netted(*rows: FeedRow, newest_by: str | None = None) -> NetChanges:
    return net(SCHEMA, feed(SCHEMA, rows), newest_by)


def upserted(changes: NetChanges) -> list[dict[str, Any]]:
    return list(changes.upserts.to_pylist())


def deleted(changes: NetChanges) -> list[int]:
    return [key["id"] for key in changes.deletes.to_pylist()]


def only_rejected(changes: NetChanges) -> Rejected:
    (rejected,) = changes.rejected
    return rejected


def test_delete_then_insert_of_one_key_in_one_version_leaves_the_new_row() -> None:
    changes = netted(("insert", 5, row(1, "new")), ("delete", 5, row(1, "old")))
    assert (upserted(changes), deleted(changes)) == ([row(1, "new")], [])


def test_delete_then_insert_of_one_key_in_two_versions_leaves_the_new_row() -> None:
    """Bug 4 of the usual recipe: upserts first and deletes after them would end deleted."""
    changes = netted(("insert", 6, row(1, "new")), ("delete", 5, row(1, "old")))
    assert (upserted(changes), deleted(changes)) == ([row(1, "new")], [])


def test_insert_then_delete_of_one_key_in_two_versions_deletes() -> None:
    changes = netted(("delete", 6, row(1)), ("insert", 5, row(1)))
    assert (upserted(changes), deleted(changes)) == ([], [1])


def test_key_changing_update_deletes_the_old_key() -> None:
    """Bug 5 of the usual recipe: the old image is the only trace of the old key."""
    changes = netted(
        ("update_postimage", 3, row(2, "moved")), ("update_preimage", 3, row(1, "moved"))
    )
    assert (upserted(changes), deleted(changes)) == ([row(2, "moved")], [1])


def test_keys_swapped_in_one_version_delete_nothing() -> None:
    changes = netted(
        ("update_preimage", 3, row(1, "x")),
        ("update_postimage", 3, row(2, "x")),
        ("update_preimage", 3, row(2, "y")),
        ("update_postimage", 3, row(1, "y")),
    )
    assert (upserted(changes), deleted(changes)) == ([row(2, "x"), row(1, "y")], [])


def test_two_changes_of_a_key_in_one_version_as_an_overwrite_makes_them() -> None:
    changes = netted(
        ("delete", 3, row(1, "old")),
        ("delete", 3, row(2, "old")),
        ("insert", 3, row(1, "new")),
        ("insert", 3, row(3, "new")),
    )
    assert (upserted(changes), deleted(changes)) == ([row(1, "new"), row(3, "new")], [2])


def test_versions_decide_and_not_timestamps_nor_arrival() -> None:
    later = feed(SCHEMA, [("insert", 9, row(1, "newest"))])
    backwards = later.set_column(
        later.column_names.index("_commit_timestamp"),
        "_commit_timestamp",
        pa.array([stamp(0)], pa.timestamp("us", "UTC")),
    )
    earlier = feed(SCHEMA, [("update_postimage", 8, row(1, "older"))])
    changes = net(SCHEMA, pa.concat_tables([backwards, earlier]))
    assert upserted(changes) == [row(1, "newest")]


@pytest.mark.parametrize("value", [row(1), row(1, None, None), row(1, "", NAN)])
def test_no_op_merge_is_left_out(value: dict[str, Any]) -> None:
    changes = netted(("update_preimage", 4, value), ("update_postimage", 4, value))
    assert changes.is_empty


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (row(1, None), row(1, "")),
        (row(1, "a"), row(1, None)),
        (row(1, "a", 0.0), row(1, "a", -0.0)),
        (row(1, "a", None), row(1, "a", NAN)),
    ],
)
def test_a_small_difference_is_no_no_op(before: dict[str, Any], after: dict[str, Any]) -> None:
    changes = netted(("update_preimage", 4, before), ("update_postimage", 4, after))
    assert changes.upserts.num_rows == 1


def test_an_update_that_changes_nothing_does_not_hide_the_one_before_it() -> None:
    changes = netted(
        ("update_preimage", 4, row(1, "a")),
        ("update_postimage", 4, row(1, "b")),
        ("update_preimage", 5, row(1, "b")),
        ("update_postimage", 5, row(1, "b")),
    )
    assert upserted(changes) == [row(1, "b")]


def test_duplicate_key_in_source_is_rejected_and_the_others_applied() -> None:
    changes = netted(
        ("insert", 4, row(1, "x")),
        ("insert", 4, row(1, "y")),
        ("insert", 4, row(2)),
    )
    rejected = only_rejected(changes)
    assert (upserted(changes), deleted(changes)) == ([row(2)], [])
    assert (rejected.code, rejected.rows.to_pylist()) == (
        "duplicate_key",
        [row(1, "x"), row(1, "y")],
    )


def test_equal_rows_of_one_key_are_one() -> None:
    changes = netted(("insert", 4, row(1, "x", NAN)), ("insert", 4, row(1, "x", NAN)))
    assert changes.upserts.num_rows == 1
    assert not changes.rejected


@pytest.mark.parametrize("scores", [(1.0, 2.0), (None, 2.0), (2.0, 1.0, 1.0)])
def test_newest_by_decides_between_rows_of_one_key(scores: tuple[float | None, ...]) -> None:
    rows = [("insert", 4, row(1, f"r{i}", score)) for i, score in enumerate(scores)]
    changes = netted(*rows, newest_by="score")
    assert [r["score"] for r in upserted(changes)] == [2.0]
    assert not changes.rejected


def test_newest_by_that_does_not_decide_rejects() -> None:
    changes = netted(
        ("insert", 4, row(1, "x", 2.0)),
        ("insert", 4, row(1, "y", 2.0)),
        ("insert", 4, row(1, "z", 1.0)),
        newest_by="score",
    )
    assert only_rejected(changes).rows.num_rows == 3
    assert not changes.upserts.num_rows


def test_a_duplicate_that_a_later_version_cleared_is_no_matter() -> None:
    changes = netted(
        ("insert", 4, row(1, "x")),
        ("insert", 4, row(1, "y")),
        ("update_preimage", 5, row(1, "x")),
        ("update_postimage", 5, row(1, "z")),
        ("delete", 5, row(1, "y")),
    )
    assert upserted(changes) == [row(1, "z")]
    assert not changes.rejected


def test_null_key_is_rejected_as_far_as_it_stands() -> None:
    changes = netted(
        ("insert", 4, row(None, "came")),
        ("delete", 5, row(None, "came")),
        ("insert", 5, row(None, "stays")),
        ("insert", 5, row(1)),
        ("delete", 5, row(None, "of an earlier range")),
    )
    rejected = only_rejected(changes)
    assert (rejected.code, rejected.rows.to_pylist()) == ("null_key", [row(None, "stays")])
    assert (upserted(changes), deleted(changes)) == ([row(1)], [])


def test_nan_is_one_key_and_zeros_are_one_key() -> None:
    schema = table_schema({"k": "double precision", "v": "bigint"}, ["k"])
    changes = net(
        schema,
        feed(
            schema,
            [
                ("insert", 1, {"k": NAN, "v": 1}),
                ("update_preimage", 2, {"k": NAN, "v": 1}),
                ("update_postimage", 2, {"k": NAN, "v": 2}),
                ("insert", 1, {"k": 0.0, "v": 1}),
                ("delete", 2, {"k": -0.0, "v": 1}),
            ],
        ),
    )
    assert [r["v"] for r in changes.upserts.to_pylist()] == [2]
    assert changes.deletes.num_rows == 1


def test_composite_keys_are_compared_whole() -> None:
    schema = table_schema({"a": "text", "b": "text", "v": "bigint"}, ["a", "b"])
    changes = net(
        schema,
        feed(
            schema,
            [
                ("insert", 1, {"a": "x", "b": "yz", "v": 1}),
                ("insert", 1, {"a": "xy", "b": "z", "v": 2}),
                ("delete", 2, {"a": "x", "b": "yz", "v": 1}),
            ],
        ),
    )
    assert [r["v"] for r in changes.upserts.to_pylist()] == [2]
    assert changes.deletes.to_pylist() == [{"a": "x", "b": "yz"}]


def test_without_a_key_rows_balance() -> None:
    schema = table_schema({"v": "bigint"})
    changes = net(
        schema,
        feed(
            schema,
            [
                ("insert", 1, {"v": 1}),
                ("insert", 1, {"v": 1}),
                ("delete", 2, {"v": 1}),
                ("update_preimage", 2, {"v": 7}),
                ("update_postimage", 2, {"v": 8}),
            ],
        ),
    )
    assert changes.upserts["v"].to_pylist() == [1, 8]
    assert changes.deletes["v"].to_pylist() == [7]


def test_nothing_comes_to_nothing() -> None:
    changes = netted()
    assert changes.is_empty
    assert changes.commit_ts is None
    assert changes.upserts.schema == SCHEMA.arrow()


def test_the_time_is_that_of_the_newest_commit() -> None:
    changes = netted(("insert", 4, row(1)), ("insert", 7, row(2)))
    assert changes.commit_ts == stamp(7)


def test_an_unknown_type_of_change_is_told() -> None:
    with pytest.raises(ProtocolError, match="truncate"):
        netted(("truncate", 1, row(1)))


def test_append_keeps_every_change_as_a_row_in_order() -> None:
    changes = append_rows(
        SCHEMA,
        feed(
            SCHEMA,
            [
                ("delete", 6, row(1, "b")),
                ("update_postimage", 5, row(1, "b")),
                ("update_preimage", 5, row(1, "a")),
                ("insert", 4, row(1, "a")),
            ],
        ),
    )
    assert changes.schema == append_schema(SCHEMA)
    assert not changes.schema.key
    told = [(r["_commit_version"], r["_change_type"], r["name"]) for r in upserted(changes)]
    assert told == [
        (4, "insert", "a"),
        (5, "update_preimage", "a"),
        (5, "update_postimage", "b"),
        (6, "delete", "b"),
    ]
    assert not changes.deletes.num_rows
    assert changes.commit_ts == stamp(6)


def test_rows_become_a_feed_that_nets_to_them() -> None:
    at = TableVersion("log", 3, stamp(3))
    rows = pa.Table.from_pylist([row(1), row(2)], schema=SCHEMA.arrow())
    gone = pa.table({"id": pa.array([2, 9], pa.int64())})
    both = pa.concat_tables([as_feed(SCHEMA, rows, at), as_feed(SCHEMA, gone, at, gone=True)])
    changes = net(SCHEMA, both)
    assert (upserted(changes), deleted(changes)) == ([row(1), row(2)], [9])
