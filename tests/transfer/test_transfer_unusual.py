"""From Postgres to Postgres: values that Arrow's types cannot hold, and types that others lack."""

from __future__ import annotations

import pytest

COLUMNS = "at timestamptz, day date, price numeric(5,2), cells int[], period tstzrange[]"
ROWS = """
insert into odd values
    ({0}1, 'infinity', '-infinity', 'NaN', '[0:1]={{1,2}}', '{{"[2020-01-01,infinity)"}}'),
    ({0}2, '2020-01-01', '0044-03-15 BC', 1.5, '{{{{1,2}},{{3,NULL}}}}', '{{empty}}'),
    ({0}3, null, null, null, '{{}}', null)
"""
AS_TEXT = dict.fromkeys(("at", "day", "price", "cells"), "text")


def test_4_and_12_columns_that_are_read_as_text_keep_their_types_and_every_value(mirror):
    """Invariants 4 and 12: by snapshot and by stream, and what verification compares."""
    mirror.sql(f"create table odd (id int primary key, {COLUMNS})")
    mirror.carry({"source": "public.odd", "columns": {"as": AS_TEXT}})
    for way in ("1", "2"):
        mirror.sql(ROWS.format(way))
        mirror.catch_up()
        mirror.assert_equal("odd")
    mirror.sql("update odd set at = '-infinity', cells = '[5:5]={7}' where id = 12")
    mirror.catch_up()
    mirror.assert_equal("odd")
    (verified,) = mirror.project.verify()
    assert verified.equal
    mirror.at_target("update odd set at = 'infinity' where id = 12")
    (verified,) = mirror.project.verify()
    assert not verified.equal


def test_4_vectors_of_pgvector_arrive_and_are_compared(mirror):
    """Invariant 4."""
    if not mirror.sql("select from pg_available_extensions where name = 'vector'"):
        pytest.skip("this server has no pgvector")
    for each in (mirror.sql, mirror.at_target):
        each("create extension vector")
    mirror.sql("create table odd (id int primary key, v vector, w vector(3), h halfvec(2))")
    mirror.carry("public.odd")
    for number in (1, 2):
        mirror.sql(f"insert into odd values ({number}, '[1e-45,0.1,3e38]', '[1,2,3]', '[0.1,-0]')")
        mirror.sql(f"insert into odd values ({number + 10})")
        mirror.catch_up()
        mirror.assert_equal("odd")
    (verified,) = mirror.project.verify()
    assert verified.equal
