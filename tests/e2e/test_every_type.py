"""Every type that an ordinary application has: snapshot, stream and Delta show one value."""

from __future__ import annotations

import sys

import pytest

from every_type import COLUMNS, TYPES, column_names, rows


@pytest.fixture
def everything(shop):
    kinds = ", ".join(f"{n} {kind}" for n, kind in zip(column_names(), COLUMNS, strict=True))
    shop.sql(TYPES)
    shop.sql(f"create table everything (id int primary key, {kinds})")
    shop.carry("public.everything")
    return shop


@pytest.mark.since(14)  # which has infinite numerics
def test_4_and_7_every_value_is_the_same_by_snapshot_by_stream_and_for_each_reader(everything):
    """Invariants 4 and 7. The same rows come once by the snapshot and once by the stream."""
    everything.sql(rows(1))
    everything.catch_up()
    everything.assert_equal("public.everything")
    everything.sql(rows(1001))
    everything.sql("update everything set id = id + 2000 where id < 1000")  # rows of the snapshot
    everything.catch_up()
    everything.assert_equal("public.everything")
    (verified,) = everything.project.verify()
    assert verified.equal


def test_4_and_7_all_of_unicode_and_five_megabytes_arrive_by_snapshot_and_by_stream(shop):
    """Invariants 4 and 7."""
    every = "".join(chr(c) for c in range(1, sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    megabytes = bytes(range(256)) * (5 << 12)
    shop.sql("create table big (id int primary key, txt text, raw bytea)")
    insert = "insert into big values (%s, %s, %s)"
    shop.sql(insert, (1, every, megabytes))
    shop.carry("public.big")
    shop.catch_up()
    shop.sql(insert, (2, every, megabytes))
    shop.sql("update big set id = 3 where id = 1")  # both values stay in TOAST, unsent
    shop.catch_up()
    shop.assert_equal("public.big")


@pytest.mark.parametrize(
    ("kind", "value"),
    [("numeric(5,2)", "NaN"), ("date", "infinity"), ("timestamptz", "-infinity")],
)
@pytest.mark.parametrize("way", ["snapshot", "stream"])
def test_12_a_value_that_cannot_be_held_stops_its_table_and_is_named(shop, kind, value, way):
    """Invariant 12: it never becomes NULL or a sentinel, and the other table goes on."""
    shop.sql(f"create table odd (id int primary key, v {kind})")
    shop.sql("create table even (id int primary key)")
    shop.carry("public.odd", "public.even")
    if way == "stream":
        shop.catch_up()
    shop.sql("insert into odd values (1, %s)", (value,))
    shop.sql("insert into even values (1)")
    (failure,) = shop.run()
    assert value in failure.error.message
    assert "public.odd" in str(failure.error)
    assert shop.status("public.odd").phase.value == "failed"
    shop.assert_equal("public.even")
