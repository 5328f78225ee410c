"""verify between two Postgres databases: exact for native types, whatever somebody did by hand."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from mirror import Mirror

from headrace.errors import VerificationImpossibleError
from headrace.verify import TableVerification

TYPES = """
create type mood as enum ('sad', 'glad');
create domain price as numeric(12, 2);
create type pair as (a int, b text);
"""

# Column type, a value, and SQL that changes it.
COLUMNS = {
    "bool": ("true", "false"),
    "int8": ("-9223372036854775808", "0"),
    "float4": ("'NaN'", "'-0'"),
    "float8": ("'-0'", "0"),
    "numeric": ("1.10", "1.1"),
    "numeric(20,5)": ("'1.00001'", "1.00002"),
    "text": ("'ẞ \U0001f980'", "'ẞ  \U0001f980'"),
    "varchar(10)": ("''", "' '"),
    "char(6)": ("'ab'", "'ac'"),
    "bytea": (r"'\x00ff'", r"'\x00fe'"),
    "date": ("'0001-01-01'", "'0001-01-02'"),
    "time": ("'24:00'", "'00:00'"),
    "timetz": ("'12:00+05:30'", "'06:30+00'"),
    "timestamp": ("'2020-01-01 00:00:00.000001'", "'2020-01-01'"),
    "timestamptz": ("'2038-01-19 03:14:08.000001+02'", "'2038-01-19 03:14:08+02'"),
    "interval": ("'1 day'", "'24:00:00'"),
    "uuid": ("'ffffffff-ffff-4fff-bfff-ffffffffffff'", "'ffffffff-ffff-4fff-bfff-fffffffffffe'"),
    "json": ("""'{"b" : 1,  "a":null}'""", """'{"b": 1, "a": null}'"""),
    "jsonb": ("""'{"b": 1.10}'""", """'{"b": 1.1}'"""),
    "mood": ("'sad'", "'glad'"),
    "price": ("1234567890.12", "0"),
    "pair": (r"""'(1,"a,b")'""", "'(1,a)'"),
    "inet": ("'10.0.0.1/8'", "'10.0.0.1'"),
    "int4range": ("'[1,5)'", "'[1,6)'"),
    "bit(3)": ("B'101'", "B'100'"),
    "tsvector": ("'a:1 fat:2'", "'a:1'"),
    "int4[]": ("'{1,NULL,-3}'", "'{1,-3}'"),
    "uuid[]": ("'{11111111-2222-3333-4444-555555555555}'", "'{}'"),
    "mood[]": ("'{sad,NULL}'", "'{sad}'"),
    "int4[][]": ("'{{1,2},{3,NULL}}'", "'{{1,2},{3,4}}'"),
    "timestamptz[]": ("'{2020-01-01 00:00:00.000001+00}'", "NULL"),
}


@contextmanager
def writing(mirror: Mirror) -> Iterator[list[int]]:
    """Changes from another thread, without a pause; gives the number of each that is committed."""
    stop, written = threading.Event(), list[int]()

    def write() -> None:
        for number in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
            mirror.sql("update t set v = v || '!' where id % 3 = 0 and length(v) < 50")
            mirror.sql("insert into t values (%s, 'x')", [1000 + number])
            mirror.sql("delete from t where id = %s", [990 + number])
            written.append(number)

    with ThreadPoolExecutor(1, "writing") as pool:
        ended = pool.submit(write)
        try:
            yield written
        finally:
            stop.set()
            ended.result(60)


def verify(mirror: Mirror, table: str = "public.t") -> TableVerification:
    (found,) = [v for v in mirror.project.verify() if str(v.table) == table]
    return found


def counts(found: TableVerification) -> tuple[int, int, int]:
    assert found.equal == (found.missing == found.extra == found.quarantined == 0)
    return found.rows, found.missing, found.extra


@pytest.fixture
def orders(mirror: Mirror) -> Mirror:
    mirror.sql("create table t (id int primary key, v text, price numeric)")
    mirror.sql("insert into t select g, 'v' || g, g / 7.0 from generate_series(1, 200) g")
    mirror.sql("create table bag (a int, b text); alter table bag replica identity full")
    mirror.sql("insert into bag select g % 5, null from generate_series(1, 50) g")
    mirror.carry("public.*")
    mirror.catch_up()
    return mirror


def test_4_equal_tables_are_equal_and_are_caught_up_with(orders: Mirror) -> None:
    """Invariant 4."""
    orders.sql("delete from t where id > 150; update t set v = 'new' where id = 1")
    orders.sql("insert into bag values (1, null), (1, null)")
    assert counts(verify(orders)) == (150, 0, 0)
    found = verify(orders, "public.bag")
    assert counts(found) == (52, 0, 0)
    assert found.lsn is not None
    assert found.version is None
    orders.assert_equal("t", "bag")


FORGERIES = {
    "a changed value": ("update t set v = 'x' where id = 17", 1, 1, 17),
    "a scale": ("update t set price = price::numeric(20, 3) where id = 17", 1, 1, 17),
    "a deleted row": ("delete from t where id = 17", 1, 0, 17),
    "an inserted row": ("insert into t values (999)", 0, 1, 999),
    "a key": ("update t set id = 999 where id = 17", 1, 1, 999),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_4_every_row_that_somebody_forged_is_found(orders: Mirror, forgery: str) -> None:
    """Invariant 4."""
    statement, missing, extra, key = FORGERIES[forgery]
    orders.at_target(statement)
    found = verify(orders)
    assert counts(found)[1:] == (missing, extra)
    assert f"id={key}" in found.samples
    assert verify(orders, "public.bag").equal


def test_4_rows_without_a_key_are_counted(orders: Mirror) -> None:
    """Invariant 4."""
    orders.at_target("insert into bag values (1, null), (1, null)")
    assert counts(verify(orders, "public.bag")) == (52, 0, 2)
    orders.at_target("delete from bag where a = 2")
    found = verify(orders, "public.bag")
    assert counts(found) == (42, 10, 2)
    assert set(found.samples) == {"a=1, b=None", "a=2, b=None"}


def test_4_every_native_type_is_equal_and_a_changed_value_of_each_is_found(mirror: Mirror) -> None:
    """Invariant 4."""
    mirror.sql(TYPES)
    mirror.at_target(TYPES)
    kinds = ", ".join(f"c{number} {kind}" for number, kind in enumerate(COLUMNS))
    mirror.sql(f"create table t (id int primary key, {kinds})")
    values = ", ".join(value for value, _ in COLUMNS.values())
    mirror.sql(f"insert into t select g, {values} from generate_series(1, 40) g")
    mirror.sql("insert into t values (41)")
    mirror.carry("public.t")
    assert counts(verify(mirror)) == (41, 0, 0)
    mirror.sql(f"insert into t select g, {values} from generate_series(101, 110) g")
    assert counts(verify(mirror)) == (51, 0, 0)
    for number, (_, forged) in enumerate(COLUMNS.values()):
        mirror.at_target(f"update t set c{number} = {forged} where id = {number + 1}")
    assert counts(verify(mirror)) == (51, len(COLUMNS), len(COLUMNS))


def test_parked_rows_are_a_known_difference(mirror: Mirror) -> None:
    mirror.sql("create table t (id int primary key, v text)")
    mirror.sql("insert into t values (1, 'a'), (2, 'b')")
    mirror.at_target("create table t (id int primary key, v text check (v <> 'bad'))")
    mirror.carry("public.t")
    mirror.catch_up()
    mirror.sql("update t set v = 'bad' where id = 1; insert into t values (3, 'bad')")
    found = verify(mirror)
    assert counts(found) == (2, 0, 0)
    assert found.quarantined == 2
    mirror.at_target("update t set v = 'x' where id = 2")
    assert counts(verify(mirror)) == (2, 1, 1)


@pytest.mark.parametrize("on_delete", ["mark", "ignore"])
def test_rows_that_the_source_lost_are_no_difference_where_they_stay(
    mirror: Mirror, on_delete: str
) -> None:
    mirror.sql("create table t (id int primary key, v text); insert into t values (1, 'a')")
    mirror.sql("insert into t select g, 'b' from generate_series(2, 9) g")
    mirror.carry({"source": "public.t", "on_delete": on_delete})
    mirror.catch_up()
    mirror.sql("delete from t where id > 5; update t set v = 'new' where id = 1")
    found = verify(mirror)
    assert counts(found)[1:] == (0, 0)
    assert mirror.at_target("select count(*) from t") == [(9,)]
    mirror.at_target("update t set v = 'forged' where id = 2")
    assert verify(mirror).samples == ("id=2",)


def test_a_table_of_the_users_own_types_shows_no_difference_of_spelling(mirror: Mirror) -> None:
    mirror.sql("create table t (id int primary key, v numeric(10, 2), w text)")
    mirror.sql("insert into t select g, g / 4.0, 'a' || g from generate_series(1, 30) g")
    mirror.at_target("create table t (id bigint primary key, v numeric, w varchar(20))")
    mirror.carry("public.t")
    assert counts(verify(mirror)) == (30, 0, 0)
    mirror.at_target("update t set v = 7.126 where id = 5")
    found = verify(mirror)
    assert counts(found) == (30, 1, 1)
    assert found.samples == ("id=5",)


def test_4_verify_beside_a_run_that_goes_on(orders: Mirror) -> None:
    """Invariant 4. The source is read as of one LSN, its copy of a later one."""
    with orders.running() as running, writing(orders) as written:
        running.wait(lambda _: bool(written))
        for _ in range(3):
            before = len(written)
            assert verify(orders).equal
            assert len(written) > before
        orders.at_target("update t set v = 'forged' where id = 8")
        assert verify(orders).samples == ("id=8",)


def test_a_table_that_stopped_is_told(mirror: Mirror) -> None:
    mirror.sql("create table t (id int primary key, d date); insert into t values (1, 'infinity')")
    mirror.carry("public.t")
    (found,) = mirror.project.verify()
    assert not found.equal
    assert isinstance(found.problem, VerificationImpossibleError)
    assert "infinity" in found.problem.message
