"""Older schema versions in one stretch with the newest: invariant 8."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from change_samples import (
    TRUNCATE,
    Change,
    bitmap,
    change_batch,
    delete,
    insert,
    rows_of,
    table_schema,
    update,
)

from headrace.engine.collapse import collapse
from headrace.engine.conform import conform, with_common_identity
from headrace.errors import UnsupportedSchemaChangeError
from headrace.model import (
    BEFORE,
    UNCHANGED,
    Lsn,
    ReplicaIdentity,
    TableSchema,
    change_schema,
)

FULL = ReplicaIdentity.FULL
V1 = table_schema({"id": "bigint", "doc": "text"}, ["id"])
V2 = table_schema(
    {"id": "bigint", "doc": "text", "lang": "text", "tags": "text[]"},
    ["id"],
    version=2,
    missing={"lang": pa.scalar("en")},
)


def identified(schema: TableSchema, identity: ReplicaIdentity) -> TableSchema:
    return replace(schema, identity=identity)


def keyless(schema: TableSchema) -> TableSchema:
    return replace(schema, key=(), identity=FULL)


def moved_last(schema: TableSchema, name: str) -> TableSchema:
    """As a publication's column list may order them: `name` last, its number kept."""
    columns = sorted(schema.columns, key=lambda c: c.name == name)
    return replace(schema, columns=tuple(columns))


def test_a_batch_of_the_same_shape_is_handed_through() -> None:
    batch = change_batch(V1, [insert(id=1)])
    assert conform(batch, replace(V1, version=7)) is batch


def test_invariant_8_an_added_column_holds_its_constant_in_older_rows() -> None:
    batch = change_batch(V1, [insert(id=1, doc="a"), update(id=1, doc="b")])
    conformed = conform(batch, V2)
    assert conformed.schema is V2
    assert conformed.data.schema == change_schema(V2)
    rows = pa.Table.from_batches([conformed.data]).select(V2.names)
    assert rows_of(rows) == [(1, "a", "en", None), (1, "b", "en", None)]


def test_deletes_and_truncates_get_no_constant() -> None:
    batch = change_batch(V1, [delete(id=1), TRUNCATE])
    assert conform(batch, V2).data["lang"].to_pylist() == [None, None]


def test_whole_old_rows_get_the_constant_too() -> None:
    batch = change_batch(
        identified(V1, FULL), [insert(id=1), update({"id": 1, "doc": "a"}, id=1), delete(id=1)]
    )
    assert conform(batch, identified(V2, FULL)).data[BEFORE].to_pylist() == [
        None,
        {"id": 1, "doc": "a", "lang": "en", "tags": None},
        {"id": 1, "doc": None, "lang": "en", "tags": None},
    ]


def test_old_keys_stay_keys() -> None:
    batch = change_batch(V1, [insert(id=1), update({"id": 1}, id=2), delete(id=2)])
    assert conform(batch, V2).data[BEFORE].to_pylist() == [None, {"id": 1}, {"id": 2}]


def test_a_constant_may_be_of_a_nested_type() -> None:
    tags = pa.scalar(["x", None], pa.list_(pa.string()))
    batch = change_batch(V1, [insert(id=1), delete(id=1)])
    conformed = conform(batch, replace(V2, missing={"tags": tags}))
    assert conformed.data["tags"].to_pylist() == [["x", None], None]


def test_unsent_marks_follow_their_columns_to_new_places() -> None:
    newest = moved_last(V2, "doc")
    changes = [
        insert(id=1),
        update(id=1, unsent=("doc",)),
        update(id=1),
        update(id=1, unsent=("id",)),
    ]
    marks = conform(change_batch(V1, changes), newest).data[UNCHANGED].to_pylist()
    assert marks == [None, bitmap(newest, ["doc"]), None, bitmap(newest, ["id"])]


def test_marks_move_across_bytes() -> None:
    few = {f"c{i}": "text" for i in range(9)}
    old = table_schema({"id": "bigint", **few}, ["id"])
    columns = [old.columns[0], *reversed(old.columns[1:])]
    added = table_schema({"id": "bigint", **few, "z": "text"}, ["id"]).columns[-1]
    newest = replace(old, columns=(*columns[:1], added, *columns[1:]))
    batch = change_batch(old, [update(id=1, unsent=("c0", "c8"))])
    assert conform(batch, newest).data[UNCHANGED].to_pylist() == [bitmap(newest, ["c0", "c8"])]


def test_a_sliced_batch_conforms_like_a_whole_one() -> None:
    changes = [delete(id=9), insert(id=1, doc="a"), update({"id": 1}, ("doc",), id=2), delete(id=2)]
    for schema, newest in ((V1, V2), (identified(V1, FULL), identified(V2, FULL))):
        whole = change_batch(schema, changes)
        part = replace(whole, data=whole.data.slice(1, 2))
        expected = conform(whole, newest).data.slice(1, 2).to_pylist()
        assert conform(part, newest).data.to_pylist() == expected


def test_invariant_8_versions_collapse_into_one_table() -> None:
    old = change_batch(V1, [insert(id=1, doc="long"), insert(id=2, doc="b")])
    new = change_batch(
        V2, [update({"id": 1}, ("doc",), id=3, lang="de"), insert(id=4, tags=["t"], lang=None)]
    )
    changes = collapse(V2, [old, new], Lsn(0))
    assert rows_of(changes.upserts) == [
        (2, "b", "en", None),
        (3, "long", "de", None),
        (4, None, None, ("t",)),
    ]
    assert rows_of(changes.deletes) == [(1,)]


def test_invariant_8_a_keyless_row_from_before_an_addition_is_found_after_it() -> None:
    old = change_batch(keyless(V1), [insert(id=1, doc="a"), insert(id=2)])
    new = change_batch(keyless(V2), [delete(id=1, doc="a", lang="en"), delete(id=5, lang="en")])
    changes = collapse(keyless(V2), [old, new], Lsn(0))
    assert rows_of(changes.upserts) == [(2, None, "en", None)]
    assert rows_of(changes.deletes) == [(5, None, "en", None)]


@pytest.mark.parametrize(("first", "then"), [("d", "f"), ("f", "d"), ("f", "i")])
def test_a_changed_replica_identity_leaves_the_old_keys_to_go_by(first: str, then: str) -> None:
    older, newest = (identified(V1, ReplicaIdentity(i)) for i in (first, then))
    batches = [
        change_batch(
            s, [update({"id": k, "doc": "x"} if s.identity is FULL else None, ("doc",), id=k)]
        )
        for k, s in enumerate((older, newest))
    ]
    changes = collapse(newest, [*batches, change_batch(newest, [delete(id=8)])], Lsn(0))
    assert changes.schema is newest
    assert rows_of(changes.upserts) == [(0, None), (1, None)]
    assert rows_of(changes.deletes) == [(8,)]
    assert [(f.columns, f.rows.tolist()) for f in changes.fills] == [(("doc",), [0, 1])]


def test_the_common_identity_is_full_only_if_it_always_was() -> None:
    full = identified(V1, FULL)
    always, once = [change_batch(full, [])] * 2, [change_batch(V1, []), change_batch(full, [])]
    assert with_common_identity(full, always) is full
    assert with_common_identity(full, once).identity is ReplicaIdentity.DEFAULT
    assert with_common_identity(V1, once) is V1


RETYPED = replace(
    V1, columns=(replace(V1.columns[0], type=pa.int32(), source_type="integer"), V1.columns[1])
)
UUID = replace(V1, columns=(V1.columns[0], replace(V1.columns[1], source_type="uuid")))


@pytest.mark.parametrize(
    ("newest", "change"),
    [
        (RETYPED, "column id changed from bigint to integer"),
        (UUID, "column doc changed from text to uuid"),
        (replace(V1, key=("doc",)), r"its key changed from \(id\) to \(doc\)"),
        (keyless(V1), r"its key changed from \(id\) to none"),
        (identified(V1, FULL), "its replica identity became FULL"),
    ],
    ids=["retyped", "uuid", "key", "keyless", "full"],
)
def test_what_rows_cannot_be_laid_out_as_is_refused(newest: TableSchema, change: str) -> None:
    with pytest.raises(UnsupportedSchemaChangeError, match=rf"^public\.t .*: {change}\n") as caught:
        conform(change_batch(V1, [insert(id=1)]), newest)
    assert caught.value.hint == "headrace resync public.t"


# Exchanged names, a column that took the name of another one, and a wider key under a new name.
V0 = table_schema({"id": "integer", "a": "text", "b": "text", "gone": "text"}, ["id"])
_ID, _A, _B, _ = V0.columns
MOVED = replace(
    V0,
    version=2,
    columns=(
        replace(_ID, name="key", type=pa.int64(), source_type="bigint"),
        replace(_A, name="b"),
        replace(_B, name="a"),
        replace(_B, name="gone", attnum=5),
    ),
    key=("key",),
    missing={"gone": pa.scalar("new")},
)


def test_8_values_follow_their_columns_to_other_names_places_and_types() -> None:
    """Invariant 8: and nothing of a dropped column comes up under its name."""
    batch = change_batch(
        V0, [insert(id=1, a="x", b="y", gone="old"), update({"id": 1}, ("a", "gone"), id=2, b="z")]
    )
    moved = conform(batch, MOVED).data
    rows = pa.Table.from_batches([moved]).select(MOVED.names)
    assert rows_of(rows) == [(1, "x", "y", "new"), (2, None, "z", "new")]
    assert moved[UNCHANGED].to_pylist() == [None, bitmap(MOVED, ["b"])]
    assert moved[BEFORE].to_pylist() == [None, {"key": 1}]


def test_8_versions_collapse_across_a_rename() -> None:
    """Invariant 8: an update's unsent value is found under the name that it had before."""
    old = change_batch(V0, [insert(id=1, a="long", b="y"), insert(id=2, a="x")])
    new = change_batch(
        MOVED, [update({"key": 1}, ("b",), key=3, a="new a"), delete(key=2), delete(key=9)]
    )
    changes = collapse(MOVED, [old, new], Lsn(0))
    assert rows_of(changes.upserts) == [(3, "long", "new a", None)]
    assert sorted(rows_of(changes.deletes)) == [(1,), (2,), (9,)]


def test_8_whole_old_rows_follow_their_columns_too() -> None:
    """Invariant 8."""
    whole, newest = keyless(V0), keyless(MOVED)
    old = change_batch(whole, [insert(id=1, a="x", b="y", gone="old"), insert(id=2)])
    gone = change_batch(newest, [delete(key=1, b="x", a="y", gone="new")])
    changes = collapse(newest, [old, gone], Lsn(0))
    assert rows_of(changes.upserts) == [(2, None, None, "new")]
    assert rows_of(changes.deletes) == []


def test_a_row_that_left_only_a_dropped_column_unsent_has_sent_all() -> None:
    batch = change_batch(V0, [update(None, ("gone",), id=1, a="x")])
    assert conform(batch, MOVED).data[UNCHANGED].to_pylist() == [None]


def test_columns_without_numbers_go_by_name() -> None:
    unnumbered = replace(V1, columns=tuple(replace(c, attnum=0) for c in V1.columns))
    conformed = conform(change_batch(unnumbered, [insert(id=1, doc="a")]), V2)
    assert conformed.data["doc"].to_pylist() == ["a"]


def test_a_longer_varchar_rewrites_nothing_and_is_followed() -> None:
    short, longer = (
        replace(V1, columns=(V1.columns[0], replace(V1.columns[1], source_type=kind)))
        for kind in ("character varying(10)", "character varying(20)")
    )
    assert conform(change_batch(short, [insert(id=1, doc="a")]), longer).schema is longer


def test_marks_beyond_a_short_bitmap_mean_sent() -> None:
    wide = table_schema({"id": "bigint", **{f"c{i}": "text" for i in range(9)}}, ["id"])
    batch = change_batch(wide, [Change("u", {"id": 1, "c8": "sent"}, unsent=("c0",))])
    place = batch.data.schema.get_field_index(UNCHANGED)
    short = batch.data.set_column(place, UNCHANGED, pa.array([b"\x02"], pa.binary()))
    changes = collapse(wide, [replace(batch, data=short)], Lsn(0))
    assert [f.columns for f in changes.fills] == [("c0",)]
    assert np.array_equal(changes.fills[0].rows, [0])
