"""A column of a type that the user chose shows no difference that is none, and hides none."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from headrace.verify import TableVerification
from lakeside import Lakeside

TABLE = "crm.odd"
UUIDS = ["AAAAAAAA-AAAA-4AAA-8AAA-AAAAAAAAAAAA", "bbbbbbbbbbbb4bbb8bbbbbbbbbbbbbbb"]
STRUCT = pa.struct([("f", pa.float64()), ("m", pa.map_(pa.string(), pa.int32()))])
MAPS = pa.map_(pa.string(), pa.int64())

# What Delta has, values, and the type that the user asks for. Then SQL that changes a value.
OVERRIDES: dict[str, tuple[pa.DataType, list[Any], str | None, str]] = {
    "uuid": (pa.string(), UUIDS, "uuid", "'00000000-0000-4000-8000-000000000000'"),
    "jsonb": (pa.string(), ['{"b": 1,  "a": 2.50}', "[1 , 2]"], "jsonb", "'{}'"),
    "json": (pa.string(), ['{"b":  1}', "null"], "json", """'{"b": 1}'"""),
    "char": (pa.string(), ["ab", "a"], "char(5)", "'b'"),
    "varchar": (pa.string(), ["ab", ""], "varchar(5)", "' '"),
    "citext": (pa.string(), ["Ab", "aB"], "citext", "upper(v::text)"),
    "inet": (pa.string(), ["10.0.0.1", "::FFFF:1"], "inet", "'10.0.0.2'"),
    "more places": (pa.decimal128(10, 2), [Decimal("1.50"), Decimal("-2.00")], "numeric", "9"),
    "whole": (pa.int32(), [1, 2], "numeric(12, 3)", "1.001"),
    "wider": (pa.int32(), [1, 2], "bigint", "5000000000"),
    "double": (pa.float32(), [0.1, math.nan], "double precision", "0.1"),
    "stamp": (pa.date32(), [date(2026, 1, 1), date(1, 1, 1)], "timestamp", "'2026-01-01 12:00'"),
    "zoned": (pa.timestamp("us", "UTC"), [datetime(2026, 1, 1, tzinfo=UTC)] * 2, "timestamp",
              "'2026-01-01 00:00:01'"),
    "infinity": (pa.timestamp("us", "UTC"), [datetime(2026, 1, 1, tzinfo=UTC)] * 2, None,
                 "'infinity'"),
    "interval": (pa.string(), ["1 day", "25:00:00"], "interval", "'2 days'"),
    "array": (pa.string(), ["[1, 2]", "[3]"], "int4[]", "'{}'"),
    "map": (MAPS, [[("b", 1), ("a", 2)], [("z", 0), ("a", 0)]], None, """'{"a": 2, "b": 3}'"""),
    "map as json": (MAPS, [[("b", 1), ("a", 2)], []], "json", "'{}'"),
    "zeros inside": (STRUCT, [{"f": -0.0, "m": [("b", 1), ("a", 1)]}] * 2, None,
                     """'{"f": 1, "m": null}'"""),
    "zero": (pa.float64(), [-0.0, 0.0], None, "-v"),
    "what none can have": (MAPS, [[("b", 1), ("a", 2)], []], None, "'[1]'"),
    "no number": (pa.int32(), [1, 2], "text", "'1 '"),
}  # fmt: skip


def verify(shop: Lakeside) -> TableVerification:
    (found,) = shop.project.verify()
    assert found.problem is None
    return found


def carried(shop: Lakeside, kind: pa.DataType, values: list[Any], override: str | None) -> Lakeside:
    ids = pa.array(range(len(values) + 1), pa.int64())
    shop.source(TABLE).write(pa.table({"id": ids, "v": pa.array([*values, None], kind)}))
    if override == "citext":
        shop.sql("create extension citext")
    types = {"columns": {"types": {"v": override}}} if override else {}
    shop.carry({"source": TABLE, "key": ["id"], **types})
    return shop


@pytest.mark.parametrize("case", OVERRIDES)
def test_4_a_value_in_another_spelling_is_the_same_and_another_value_is_not(
    shop: Lakeside, case: str
) -> None:
    """Invariant 4."""
    kind, values, override, forged = OVERRIDES[case]
    carried(shop, kind, values, override)
    found = verify(shop)
    assert found.equal, found
    assert found.rows == len(values) + 1
    shop.sql(f"update crm.odd set v = {forged} where id = 0")
    found = verify(shop)
    assert (found.missing, found.extra, found.samples) == (1, 1, ("id=0",)), shop.sql(
        "select v::text from crm.odd"
    )
    shop.sql("update crm.odd set v = null where id = 0; delete from crm.odd where id = 1")
    found = verify(shop)
    assert (found.missing, found.extra, set(found.samples)) == (2, 1, {"id=0", "id=1"})


def test_a_key_in_another_spelling_is_the_same_key(shop: Lakeside) -> None:
    rows = pa.table({"id": pa.array(UUIDS), "v": [1, 2]})
    shop.source(TABLE).write(rows)
    shop.carry({"source": TABLE, "key": ["id"], "columns": {"types": {"id": "uuid"}}})
    assert verify(shop).equal
    shop.source(TABLE).update("v = 1", v="10")
    assert verify(shop).equal
    shop.sql("update crm.odd set v = 0 where v = 2; delete from crm.odd where v = 10")
    found = verify(shop)
    assert (found.missing, found.extra) == (2, 1)


@pytest.mark.parametrize("on_delete", ["mark", "ignore"])
def test_rows_that_the_source_lost_under_keys_of_another_spelling(
    shop: Lakeside, on_delete: str
) -> None:
    ids = [f"{n:08x}-AAAA-4AAA-8AAA-AAAAAAAAAAAA" for n in range(6)]
    shop.source(TABLE).write(pa.table({"id": ids, "v": range(6)}))
    types = {"types": {"id": "uuid"}}
    shop.carry({"source": TABLE, "key": ["id"], "columns": types, "on_delete": on_delete})
    shop.catch_up()
    shop.source(TABLE).delete("v > 3")
    assert verify(shop).equal
    shop.sql("update crm.odd set v = 100 where v = 1")
    found = verify(shop)
    assert (found.missing, found.extra) == (1, 1)


def test_columns_that_the_table_computes_itself_are_its_own(shop: Lakeside) -> None:
    shop.source(TABLE).write(pa.table({"id": [1, 2], "v": [3, 4], "twice": [60, 80]}))
    shop.sql("create schema crm")
    shop.sql(
        "create table crm.odd (id bigint primary key, v bigint,"
        " twice bigint generated always as (v * 2) stored)"
    )
    shop.carry({"source": TABLE, "key": ["id"]})
    shop.catch_up()
    assert shop.sql("select * from crm.odd order by 1") == [(1, 3, 6), (2, 4, 8)]
    assert verify(shop).equal
    shop.sql("update crm.odd set v = 5 where id = 1")
    assert (verify(shop).missing, verify(shop).extra) == (1, 1)


def test_a_partitioned_table_of_odd_types(shop: Lakeside) -> None:
    """Rows of two partitions may stand at one and the same place."""
    shop.sql("create schema crm")
    shop.sql(
        "create table crm.odd (id bigint primary key, v uuid) partition by hash (id);"
        "create table crm.odd0 partition of crm.odd for values with (modulus 2, remainder 0);"
        "create table crm.odd1 partition of crm.odd for values with (modulus 2, remainder 1)"
    )
    shop.source(TABLE).write(pa.table({"id": pa.array(range(20), pa.int64()), "v": UUIDS * 10}))
    shop.carry({"source": TABLE, "key": ["id"]})
    assert verify(shop).equal
    shop.sql("update crm.odd set v = null where id in (3, 4, 5)")
    found = verify(shop)
    assert (found.missing, found.extra) == (3, 3)
    assert set(found.samples) == {"id=3", "id=4", "id=5"}
