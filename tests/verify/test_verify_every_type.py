"""Every type that Delta has: no value looks different, and one that is changed is found."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from headrace.verify import TableVerification
from lakeside import Lakeside

TABLE = "crm.everything"
NAIVE = datetime(2024, 2, 29, 12, 30, 1, 500)  # noqa: DTZ001
AWARE = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
STRUCT = pa.struct(
    [
        ("i", pa.int64()),
        ("d", pa.decimal128(38, 10)),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("t", pa.timestamp("us", "UTC")),
        ("l", pa.list_(pa.struct([("x", pa.bool_())]))),
    ]
)
VALUES: dict[str, tuple[pa.DataType, list[Any], str]] = {
    "flag": (pa.bool_(), [True, False], "false"),
    "tiny": (pa.int8(), [-128, 127], "0"),
    "small": (pa.int16(), [-(1 << 15), (1 << 15) - 1], "0"),
    "whole": (pa.int32(), [-(1 << 31), (1 << 31) - 1], "0"),
    "large": (pa.int64(), [-(1 << 63), (1 << 63) - 1], "large + 1"),
    "single": (pa.float32(), [math.nan, -0.0, 3.4028234663852886e38], "0"),
    "double": (pa.float64(), [math.nan, -math.inf, 5e-324], "'Infinity'"),
    "price": (pa.decimal128(10, 2), [Decimal("-12345678.90"), Decimal("0.00")], "price + 0.01"),
    "digits": (pa.decimal128(38, 0), [Decimal(10**38 - 1)], "digits - 1"),
    "words": (pa.string(), ["", "e\u0301 \U0001f980", "a\nb", "NULL"], "' '"),
    "raw": (pa.binary(), [b"", b"\x00\xff"], r"'\x00'"),
    "day": (pa.date32(), [date(1, 1, 1), date(9999, 12, 31)], "day + 1"),
    "naive": (pa.timestamp("us"), [NAIVE], "naive + '1 us'"),
    "aware": (pa.timestamp("us", "UTC"), [AWARE], "aware - '1 us'::interval"),
    "tags": (pa.list_(pa.string()), [["a", None, "", 'q"\\', "NULL"], []], "'{a}'"),
    "flags": (pa.list_(pa.float64()), [[0.1, math.inf], [math.nan]], "'{0.1}'"),
    "nested": (pa.list_(pa.list_(pa.int32())), [[[1], [], None, [2, 3]]], "'[[1], [], [2, 3]]'"),
    "record": (
        STRUCT,
        [{"i": 1 << 60, "d": Decimal("0.0000000001"), "f": 0.1, "s": "x", "t": AWARE, "l": [None]}],
        """jsonb_set(record, '{f}', '0.2')""",
    ),
    "pairs": (pa.map_(pa.string(), pa.int64()), [[("b", 1), ("a", None)], []], """'{"b": 1}'"""),
}


def everything(rows: int) -> pa.Table:
    """Each value in turn, and a null after the last."""
    columns = {
        name: pa.array([[*values, None][i % (len(values) + 1)] for i in range(rows)], kind)
        for name, (kind, values, _) in VALUES.items()
    }
    return pa.table({"id": pa.array(range(rows), pa.int64()), **columns})


def verify(shop: Lakeside) -> TableVerification:
    (found,) = shop.project.verify()
    assert found.problem is None
    return found


def test_4_every_type_is_equal_after_a_load_and_after_changes(shop: Lakeside) -> None:
    """Invariant 4."""
    shop.source(TABLE).write(everything(60))
    shop.carry(TABLE)
    assert verify(shop).equal
    shop.source(TABLE).merge(everything(90).slice(30))
    found = verify(shop)
    assert (found.equal, found.rows) == (True, 90)


def test_4_a_changed_value_of_every_type_is_found(shop: Lakeside) -> None:
    """Invariant 4. Another row is changed for each column, one that has its first value there."""
    shop.source(TABLE).write(everything(240))
    shop.carry(TABLE)
    shop.catch_up()
    changed: set[int] = set()
    for name, (_, values, forged) in VALUES.items():
        period = len(values) + 1
        row = next(n for n in range(0, 240, period) if n not in changed)
        shop.sql(f"update crm.everything set {name} = {forged} where id = {row}")
        changed.add(row)
    found = verify(shop)
    assert (found.missing, found.extra) == (len(VALUES), len(VALUES))
    assert {f"id={row}" for row in changed}.issuperset(found.samples)
