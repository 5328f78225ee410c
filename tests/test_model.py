"""The words of the domain: positions print and order as in Postgres, schemas survive JSON."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model import (
    BEFORE,
    META_COLUMNS,
    OP,
    Checkpoint,
    Column,
    Lsn,
    NetChanges,
    ReplicaIdentity,
    TableId,
    TableSchema,
    change_schema,
)

POSITIONS = st.integers(0, (1 << 64) - 1)

# -- Lsn -------------------------------------------------------------------------------------------


@given(POSITIONS)
def test_a_position_reads_back_as_printed(value: int) -> None:
    lsn = Lsn(value)
    assert Lsn.parse(str(lsn)) == lsn == value
    assert Lsn.parse(str(lsn).lower()) == lsn
    assert repr(lsn) == f"Lsn('{lsn}')"


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1))
def test_a_position_prints_as_postgres_prints_it(high: int, low: int) -> None:
    assert str(Lsn((high << 32) | low)) == f"{high:X}/{low:X}"


def test_the_example_of_the_design() -> None:
    lsn = Lsn.parse("16/B374D848")
    assert (lsn, f"{lsn}", f"{lsn:>14}") == (0x16B374D848, "16/B374D848", "   16/B374D848")
    assert (str(Lsn()), str(Lsn.parse("FFFFFFFF/FFFFFFFF"))) == ("0/0", "FFFFFFFF/FFFFFFFF")


@given(POSITIONS, POSITIONS)
def test_positions_order_and_hash_as_the_numbers_they_are(a: int, b: int) -> None:
    assert (Lsn(a) < Lsn(b)) == (a < b)
    assert (Lsn(a) == Lsn(b)) == (a == b)
    assert hash(Lsn(a)) == hash(a)
    assert max(Lsn(a), Lsn(b)) == max(a, b)


@given(POSITIONS)
def test_a_position_crosses_processes(value: int) -> None:
    copy = pickle.loads(pickle.dumps(Lsn(value)))
    assert (type(copy), copy) == (Lsn, value)


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_number_that_is_no_position_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="unsigned 64-bit"):
        Lsn(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "0", "1/", "/1", "1/2/3", "G/0", "0/x", "123456789/0", "0/123456789", "-1/0"),
        *("+1/0", "1/ 2", "1/0x2", "1_0/0", "1/2\n"),
    ],
)
def test_a_text_that_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"LSN|base 16|unsigned"):
        Lsn.parse(text)


# -- tables and their schemas ----------------------------------------------------------------------


@given(st.text(min_size=1).filter(lambda s: "." not in s), st.text(min_size=1))
def test_a_table_reads_back_as_printed(schema: str, name: str) -> None:
    table = TableId(schema, name)
    assert TableId.parse(str(table)) == table


@pytest.mark.parametrize("text", ["", "t", ".t", "public."])
def test_a_table_needs_a_schema_and_a_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"schema\.name"):
        TableId.parse(text)


TYPES = st.sampled_from(
    [
        *(pa.bool_(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.date32()),
        *(pa.string(), pa.binary(), pa.decimal128(38, 10), pa.timestamp("us")),
        *(pa.timestamp("us", "UTC"), pa.list_(pa.int64()), pa.map_(pa.string(), pa.string())),
        pa.struct([("x", pa.int64()), ("y", pa.list_(pa.string()))]),
    ]
)
CONSTANTS = st.sampled_from(
    [
        pa.scalar(-1, pa.int16()),
        pa.scalar("ünï\0code"),
        pa.scalar(b"\x00\xff"),
        pa.scalar(Decimal("-1.50"), pa.decimal128(10, 2)),
        pa.scalar(date(1, 1, 1)),
        pa.scalar(datetime(2024, 2, 29, 1, 2, 3, 4, UTC), pa.timestamp("us", "UTC")),
        pa.scalar([1, None], pa.list_(pa.int64())),
        pa.scalar([("k", None)], pa.map_(pa.string(), pa.string())),
        pa.scalar({"x": 1, "y": None}, pa.struct([("x", pa.int64()), ("y", pa.string())])),
        pa.scalar(None, pa.int64()),
        pa.scalar(float("inf")),
    ]
)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@st.composite
def schemas(draw: st.DrawFn) -> TableSchema:
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    columns = tuple(
        Column(name, draw(TYPES), draw(st.text(max_size=5)), draw(st.integers(0, 1600)))
        for name in names
    )
    return TableSchema(
        TableId(draw(NAMES), draw(NAMES)),
        draw(st.integers(1, 1 << 40)),
        columns,
        tuple(draw(st.lists(st.sampled_from(names), unique=True))),
        draw(st.sampled_from(ReplicaIdentity)),
        draw(st.dictionaries(st.sampled_from(names), CONSTANTS)),
    )


@given(schemas())
def test_a_schema_survives_json_exactly(schema: TableSchema) -> None:
    copy = TableSchema.from_json(json.loads(json.dumps(schema.to_json())))
    assert copy == schema
    assert {n: s.type for n, s in copy.missing.items()} == {
        n: s.type for n, s in schema.missing.items()
    }


@given(schemas())
def test_changes_hold_the_columns_and_then_the_metadata(schema: TableSchema) -> None:
    layout = change_schema(schema)
    assert tuple(layout.names) == (*schema.names, *META_COLUMNS)
    assert pa.schema(list(layout)[: len(schema.names)]) == schema.arrow()
    assert [f.name for f in layout if not f.nullable] == [OP, "_ordinal"]


@given(schemas())
def test_an_old_row_is_the_key_unless_only_the_whole_row_identifies_it(schema: TableSchema) -> None:
    held = [field.name for field in change_schema(schema).field(BEFORE).type]
    whole = schema.identity is ReplicaIdentity.FULL or not schema.key
    assert held == list(schema.names if whole else schema.key)


@given(schemas())
def test_schemas_of_one_shape_may_differ_in_version_and_constants_only(schema: TableSchema) -> None:
    assert schema.same_shape(replace(schema, version=schema.version + 1, missing={}))
    first = schema.columns[0]
    renumbered = replace(first, attnum=first.attnum + 1)
    assert not schema.same_shape(replace(schema, columns=(renumbered, *schema.columns[1:])))
    assert not schema.same_shape(replace(schema, table=TableId("other", "table")))
    assert not schema.same_shape(replace(schema, key=(*schema.key, "more")))


# -- checkpoints and net changes -------------------------------------------------------------------


def test_checkpoints_of_one_log_order_by_commit_then_position() -> None:
    points = [Checkpoint("log", c, Lsn(p)) for c in (1, 2, 10) for p in (0, 1 << 63)]
    assert all(a < b for a, b in pairwise(points))


def test_a_truncate_alone_is_a_change() -> None:
    schema = TableSchema(TableId("public", "t"), 1, (Column("id", pa.int64(), "bigint"),), ("id",))
    none = schema.arrow().empty_table()
    assert NetChanges(schema, none, none).is_empty
    assert not NetChanges(schema, none, none, truncate=True).is_empty
