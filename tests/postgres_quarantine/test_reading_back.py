"""A target table is read back as its source has it, as of one moment, whatever its types."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from parking_lot import LOG, Kept, settings_of

from headrace.connectors.postgres import records
from headrace.connectors.postgres.reading import read_table
from headrace.connectors.postgres.target_types import arrival
from headrace.errors import DestinationError, DivergedError, UnsuitableTableError
from headrace.model import Checkpoint, Lsn
from headrace.model.fingerprint import Hasher
from headrace.testing.database import Database

MOMENTS = [datetime(1, 1, 1), datetime(2024, 2, 29, 12, 30, 1, 500), datetime(9999, 12, 31)]  # noqa: DTZ001
AWARE = [moment.replace(tzinfo=UTC) for moment in MOMENTS]
NESTED = pa.struct(
    [
        ("i", pa.int64()),
        ("d", pa.decimal128(38, 10)),
        ("f", pa.float64()),
        ("g", pa.float32()),
        ("s", pa.string()),
        ("b", pa.binary()),
        ("t", pa.timestamp("us", "UTC")),
        ("u", pa.date32()),
        ("v", pa.time64("us")),
        ("w", pa.duration("us")),
        ("l", pa.list_(pa.struct([("x", pa.bool_())]))),
        ("m", pa.map_(pa.int32(), pa.string())),
    ]
)
NESTED_VALUE = {
    "i": -(1 << 63),
    "d": Decimal("1234567890123456789012345678.0123456789"),
    "f": 0.1,
    "g": 0.5,
    "s": 'é"\\\n',
    "b": b"\x00\xff",
    "t": AWARE[1],
    "u": date(2024, 2, 29),
    "v": time(23, 59, 59, 999999),
    "w": timedelta(days=-1, microseconds=1),
    "l": [{"x": True}, None, {"x": None}],
    "m": [(1, "a")],
}

# Values of every type that Delta has, and of the others that Arrow sources may have.
VALUES: dict[pa.DataType, list[Any]] = {
    pa.bool_(): [True, False],
    pa.int8(): [-128, 127],
    pa.int16(): [-(1 << 15), (1 << 15) - 1],
    pa.int32(): [-(1 << 31), (1 << 31) - 1],
    pa.int64(): [-(1 << 63), (1 << 63) - 1],
    pa.uint8(): [0, 255],
    pa.uint32(): [0, (1 << 32) - 1],
    pa.uint64(): [0, (1 << 64) - 1],
    pa.float16(): [1.5, math.inf],
    pa.float32(): [0.5, -math.inf, 3.4028234663852886e38],
    pa.float64(): [0.1, -0.0, math.inf, 5e-324],
    pa.decimal128(10, 2): [Decimal("-12345678.90"), Decimal("0.00")],
    pa.decimal128(38, 0): [Decimal(10**38 - 1)],
    pa.decimal256(50, 5): [Decimal("1.00001")],
    pa.string(): ["", "é", "a\nb", "NULL", '"'],
    pa.large_string(): ["x"],
    pa.string_view(): ["x"],
    pa.binary(): [b"", b"\x00\xff"],
    pa.binary(2): [b"ab"],
    pa.date32(): [date(1, 1, 1), date(9999, 12, 31)],
    pa.date64(): [date(2024, 2, 29)],
    pa.timestamp("us"): MOMENTS,
    pa.timestamp("us", "UTC"): AWARE,
    pa.timestamp("ms"): [datetime(2024, 2, 29, 1, 2, 3, 4000)],  # noqa: DTZ001
    pa.timestamp("ns"): [datetime(2024, 2, 29, 1, 2, 3, 4)],  # noqa: DTZ001
    pa.time64("us"): [time(0), time(23, 59, 59, 999999)],
    pa.time32("ms"): [time(1, 2, 3, 4000)],
    pa.duration("us"): [timedelta(days=400, microseconds=1), timedelta(microseconds=-1)],
    pa.null(): [None],
    pa.dictionary(pa.int32(), pa.string()): ["a", "b", "a"],
    pa.list_(pa.int32()): [[1, None, 3], []],
    pa.list_(pa.int8()): [[1, -128]],
    pa.list_(pa.string()): [["a", None, "", 'q"\\', "NULL"]],
    pa.list_(pa.float64()): [[0.1, math.inf]],
    pa.list_(pa.decimal128(10, 2)): [[Decimal("1.50")]],
    pa.list_(pa.timestamp("us", "UTC")): [AWARE],
    pa.list_(pa.date32()): [[date(2024, 2, 29), None]],
    pa.list_(pa.time64("us")): [[time(1, 2, 3)]],
    pa.list_(pa.binary()): [[b"\x00", None]],
    pa.large_list(pa.bool_()): [[True, False]],
    pa.list_(pa.list_(pa.int32())): [[[1], [], None, [2, 3]]],
    NESTED: [NESTED_VALUE, dict.fromkeys(NESTED_VALUE)],
    pa.map_(pa.string(), pa.float64()): [[("a", 1.5), ("b", math.nan)], []],
    pa.map_(pa.date32(), pa.int32()): [[(date(2024, 2, 29), 1)]],
}


# Fingerprints are only made of what Delta has.
NEVER_IN_DELTA = {
    pa.uint64(), pa.float16(), pa.decimal256(50, 5), pa.large_string(), pa.string_view(),
    pa.binary(2), pa.date64(), pa.time64("us"), pa.time32("ms"), pa.duration("us"), pa.null(),
    pa.dictionary(pa.int32(), pa.string()),
}  # fmt: skip


def read(kept: Kept, *columns: str, only_live: bool = False) -> pa.Table:
    asked = columns or kept.schema.names
    with read_table(settings_of(kept.database), kept.schema.table) as reading:
        arrow = pa.schema([kept.schema.arrow().field(name) for name in asked])
        return pa.Table.from_batches(reading.rows(kept.schema, asked, only_live=only_live), arrow)


def columns_of(kinds: dict[str, pa.DataType]) -> str:
    return ", ".join(f"{name} {arrival(kind).type}" for name, kind in kinds.items())


@pytest.mark.parametrize("kind", VALUES, ids=str)
def test_values_come_back_exactly_as_they_were_written(
    database: Database, kind: pa.DataType
) -> None:
    kinds = {"id": pa.int64(), "v": kind}
    kept = Kept.make(database, f"create table t ({columns_of(kinds)}, primary key (id))", kinds)
    values = [*VALUES[kind], None]
    written = pa.table(
        {"id": pa.array(range(len(values)), pa.int64()), "v": pa.array(values, kind)}
    )
    assert kept.apply(written) == 0
    found = read(kept)  # in the order of its only page
    assert found.schema == written.schema
    found.validate(full=True)
    if "nan" not in str(values):
        assert found.equals(written)
    if kind not in NEVER_IN_DELTA:
        hasher = Hasher(exact=False, seeds=(1, 2))
        assert (hasher.hash(found).high == hasher.hash(written).high).all()


def test_a_nan_comes_back_as_one(database: Database) -> None:
    kept = Kept.make(
        database,
        "create table t (id int8 primary key, v float8)",
        {"id": pa.int64(), "v": pa.float64()},
    )
    kept.apply([{"id": 1, "v": math.nan}])
    assert math.isnan(read(kept).column("v")[0].as_py())


GUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
OVERRIDES = {
    "uuid": (pa.string(), GUID.upper(), GUID),
    "jsonb": (pa.string(), '{"b":1,"a":2}', '{"a": 2, "b": 1}'),
    "json": (pa.string(), '{"b":1,"a":2}', '{"b":1,"a":2}'),
    "citext": (pa.string(), "Ab", "Ab"),
    "char(4)": (pa.string(), "ab", "ab  "),
    "varchar(4)": (pa.string(), "ab", "ab"),
    "mood": (pa.string(), "ok", "ok"),
    "inet": (pa.string(), "10.0.0.1/32", "10.0.0.1"),
    "timestamptz": (pa.string(), "2024-02-29T12:00:00+02:00", "2024-02-29 10:00:00+00"),
    "bigint": (pa.int16(), 7, 7),
    "numeric": (pa.decimal128(10, 2), Decimal("1.50"), Decimal("1.50")),
    "numeric(20,6)": (pa.decimal128(10, 2), Decimal("1.50"), Decimal("1.50")),
    "double precision": (pa.float32(), 0.5, 0.5),
    "text": (pa.struct([("x", pa.int64())]), {"x": 1}, {"x": 1}),
    "text[]": (pa.list_(pa.string()), ["a"], ["a"]),
}  # fmt: skip


@pytest.mark.parametrize("column", OVERRIDES)
def test_a_column_of_another_type_comes_back_in_the_sources(
    database: Database, column: str
) -> None:
    """Perhaps in that type's own spelling, which only makes it look different."""
    kind, value, found = OVERRIDES[column]
    if column == "citext":
        database.execute("create extension citext")
    if column == "mood":
        database.execute("create type mood as enum ('ok')")
    kept = Kept.make(
        database, f"create table t (id int8 primary key, v {column})", {"id": pa.int64(), "v": kind}
    )
    assert kept.apply([{"id": 1, "v": value}]) == 0
    assert read(kept).to_pylist() == [{"id": 1, "v": found}]


@pytest.mark.parametrize(
    ("column", "kind", "sql"),
    [
        ("int2", pa.int8(), "300"),
        ("timestamp", pa.date32(), "timestamp '2024-02-29 12:00'"),
        ("timestamp", pa.timestamp("ms"), "timestamp '2024-02-29 12:00:00.000001'"),
        ("date", pa.date32(), "date 'infinity'"),
        ("numeric", pa.decimal128(10, 2), "1.555"),
        ("numeric(10,2)", pa.decimal128(10, 2), "'NaN'"),
        ("float8", pa.float32(), "0.1::float8"),
        ("interval", pa.duration("us"), "interval '1 month'"),
        ("time", pa.time64("us"), "time '24:00'"),
        ("jsonb", pa.struct([("x", pa.int64())]), """'{"x": 1, "y": 2}'"""),
        ("jsonb", pa.struct([("x", pa.int64())]), """'{}'"""),
        ("jsonb", pa.struct([("x", pa.int64())]), """'{"x": "1"}'"""),
        ("jsonb", pa.struct([("x", pa.int64())]), """'[1]'"""),
        ("jsonb", pa.list_(pa.struct([("x", pa.int64())])), """'{"x": 1}'"""),
        ("text", pa.null(), "'x'"),
        ("int4[]", pa.list_(pa.int32()), "'{{1,2},{3,4}}'"),
    ],
)
def test_a_value_that_the_source_cannot_have_is_told(
    database: Database, column: str, kind: pa.DataType, sql: str
) -> None:
    kept = Kept.make(
        database, f"create table t (id int8 primary key, v {column})", {"id": pa.int64(), "v": kind}
    )
    database.execute(f"insert into t values (1, {sql})")
    with pytest.raises(DivergedError, match="column 'v' holds a value") as raised:
        read(kept)
    assert raised.value.hint == "headrace resync public.t"


@pytest.fixture
def plain(database: Database) -> Kept:
    kept = Kept.make(
        database,
        'create table "T 1" (id int8 primary key, "V" text, mine text default 5)',
        {"id": pa.int64(), "V": pa.string()},
        table="T 1",
    )
    kept.apply([{"id": i, "V": str(i)} for i in range(3)])
    return kept


def test_columns_are_chosen_and_those_of_the_users_own_left_alone(plain: Kept) -> None:
    assert read(plain, "V").to_pydict() == {"V": ["0", "1", "2"]}
    assert read(plain).column_names == ["id", "V"]


def test_rows_marked_as_deleted_are_left_out(plain: Kept) -> None:
    plain.database.execute('alter table "T 1" add _deleted_at timestamptz')
    plain.database.execute('update "T 1" set _deleted_at = now() where id = 1')
    assert read(plain, "id", only_live=True).to_pydict() == {"id": [0, 2]}
    assert read(plain, "id").num_rows == 3


def test_rows_and_checkpoint_are_of_one_moment(plain: Kept) -> None:
    def stand(version: int) -> None:
        with plain.database.connect() as other, other.transaction():
            at = Checkpoint(LOG, version, Lsn(version))
            records.write(other.cursor(), plain.schema.table, "lake_to_shop", at)
            other.execute('update "T 1" set "V" = %s', [str(version)])

    stand(5)
    with read_table(settings_of(plain.database), plain.schema.table) as reading:
        stand(6)
        batches = list(reading.rows(plain.schema, ["V"]))
        rows = [value for batch in batches for value in batch.column(0).to_pylist()]
    assert reading.at == Checkpoint(LOG, 5, Lsn(5))
    assert rows == ["5"] * 3


def test_a_table_cannot_be_swapped_or_truncated_while_it_is_read(plain: Kept) -> None:
    with read_table(settings_of(plain.database), plain.schema.table) as reading:
        for statement in ('truncate "T 1"', 'alter table "T 1" rename to t2'):
            with (
                plain.database.connect(options="-c lock_timeout=20ms") as other,
                pytest.raises(psycopg.errors.LockNotAvailable),
            ):
                other.execute(statement)
        assert sum(batch.num_rows for batch in reading.rows(plain.schema, ["id"])) == 3
    plain.database.execute('truncate "T 1"')


def test_a_column_that_the_table_computes_is_read_too(database: Database) -> None:
    ddl = "create table t (id int8 primary key, v int8 generated always as (id * 2) stored)"
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.int64()})
    database.execute("insert into t values (1), (2)")
    assert read(kept).to_pydict() == {"id": [1, 2], "v": [2, 4]}


def test_rows_that_cannot_be_compared_are_told_with_their_places(plain: Kept) -> None:
    kept = plain.with_columns({"id": pa.int64(), "V": pa.int32()})
    plain.database.execute("""update "T 1" set "V" = id where id <> 1""")
    plain.database.execute("""update "T 1" set "V" = 'no number' where id = 1""")
    with read_table(settings_of(plain.database), kept.schema.table) as reading:
        held = list(reading.held(kept.schema, ["id", "V"], placed=True))
        again = list(reading.held(kept.schema, ["id", "V"]))
    compared = [part.rows for part in held if part.rows is not None]
    assert pa.Table.from_batches(compared).to_pydict() == {"id": [0, 2], "V": [0, 2]}
    (odd,) = [part.places for part in held if part.rows is None and part.places is not None]
    ((place,),) = plain.database.execute('select ctid::text from "T 1" where id = 1')
    assert odd.column("place").to_pylist() == [place]
    assert [part.places for part in again] == [None] * len(again)


def test_a_partitioned_table_is_read_whole(database: Database) -> None:
    ddl = """
    create table t (id int8 primary key, v text) partition by hash (id);
    create table t0 partition of t for values with (modulus 2, remainder 0);
    create table t1 partition of t for values with (modulus 2, remainder 1)
    """
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.string()})
    kept.apply([{"id": i, "v": str(i)} for i in range(10)])
    assert sorted(read(kept).column("id").to_pylist()) == list(range(10))


def test_a_table_that_never_took_anything_stands_nowhere(plain: Kept) -> None:
    with read_table(settings_of(plain.database), plain.schema.table) as reading:
        assert reading.at is None


def test_many_rows_come_in_batches(database: Database) -> None:
    kept = Kept.make(
        database,
        "create table t (id int8 primary key, v text)",
        {"id": pa.int64(), "v": pa.string()},
    )
    database.execute("insert into t select i, repeat('x', 1000) from generate_series(1, 20000) i")
    with read_table(settings_of(database), kept.schema.table) as reading:
        sizes = [batch.num_rows for batch in reading.rows(kept.schema, ["id", "v"])]
    assert sum(sizes) == 20_000
    assert len(sizes) > 1


def test_what_is_missing_is_named(plain: Kept) -> None:
    gone = plain.with_columns({"id": pa.int64(), "nonesuch": pa.string()})
    with pytest.raises(UnsuitableTableError, match="nonesuch"):
        read(gone)
    plain.database.execute('drop table "T 1"')
    with pytest.raises(UnsuitableTableError, match="not there"):
        read(plain)


def test_a_role_that_may_not_read_is_told(plain: Kept) -> None:
    place = settings_of(plain.database)
    assert place.password is not None
    secret = place.password.get_secret_value()
    plain.database.execute(f"create role nosy login password '{secret}'")
    try:
        with (
            pytest.raises(DestinationError, match="permission denied"),
            read_table(place.model_copy(update={"user": "nosy"}), plain.schema.table),
        ):
            pass
    finally:
        plain.database.execute("drop role nosy")
