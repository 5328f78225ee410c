"""Whatever a server sends or never would, the kernel and the reference give one and the same."""

from __future__ import annotations

import struct

import pyarrow as pa
import pytest
from copy_bytes import HEADER, TRAILER, numeric, row, same_rows, wanted
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ProtocolError
from headrace.pgcopy import KERNEL, CopiedRows, Decoder, Kind, ReferenceDecoder, Wanted
from headrace.pgcopy.texts import LAST, LATEST_DATE

pytestmark = pytest.mark.skipif(not KERNEL, reason="installed without a compiler")


def integers(layout: str) -> st.SearchStrategy[bytes]:
    bits = 8 * struct.calcsize(layout) - 1
    corner = st.sampled_from([-(1 << bits), (1 << bits) - 1, (1 << bits) - 2, 0])
    return (corner | st.integers(-(1 << bits), (1 << bits) - 1)).map(
        lambda value: struct.pack(layout, value)
    )


NUMERICS = st.builds(
    numeric,
    st.integers(-6, 12),
    st.sampled_from([0, 0x4000, 0x4000, 0, 0xC000, 0xD000, 0xF000]),
    st.integers(0, 45),
    st.lists(st.integers(1, 9999) | st.just(10), max_size=12),
)
NO_DATES = range(LATEST_DATE + 1, LAST[Kind.DATE])  # behind them is infinity
RAW = {
    Kind.BOOL: st.sampled_from([b"\0", b"\1"]),
    Kind.INT2: integers(">h"),
    Kind.INT4: integers(">i"),
    Kind.INT8: integers(">q"),
    Kind.FLOAT4: st.binary(min_size=4, max_size=4),
    Kind.FLOAT8: st.binary(min_size=8, max_size=8) | st.just(b"\xff\xf8" + bytes(6)),
    Kind.DATE: integers(">i").filter(lambda raw: struct.unpack(">i", raw)[0] not in NO_DATES),
    Kind.TIMESTAMP: integers(">q"),
    Kind.TEXT: st.binary(max_size=40),
    Kind.BYTES: st.binary(max_size=40),
    Kind.JSONB: st.binary(max_size=9).map(lambda text: b"\1" + text),
    Kind.UUID: st.binary(min_size=16, max_size=16),
    Kind.NUMERIC: NUMERICS,
}
DECIMALS = st.integers(1, 38).flatmap(
    lambda precision: st.builds(pa.decimal128, st.just(precision), st.integers(0, precision))
)
ZONES = st.sampled_from([pa.timestamp("us"), pa.timestamp("us", "UTC")])
COLUMNS = st.one_of(
    st.sampled_from(list(Kind)).map(wanted),
    st.builds(wanted, st.just(Kind.NUMERIC), DECIMALS),
    st.builds(wanted, st.just(Kind.TIMESTAMP), ZONES),
)


@st.composite
def copies(draw: st.DrawFn, malformed: bool = False) -> tuple[list[Wanted], list[bytes]]:
    columns = draw(st.lists(COLUMNS, max_size=6))
    raw = {kind: values | st.binary(max_size=18) if malformed else values
           for kind, values in RAW.items()}  # fmt: skip
    rows = draw(st.lists(st.tuples(*(st.none() | raw[c.kind] for c in columns)), max_size=20))
    messages = [row(*values) for values in rows]
    return columns, [HEADER + (messages[0] if messages else b""), *messages[1:], TRAILER]


def decoded(kind: type[ReferenceDecoder], columns: list[Wanted], data: list[bytes]) -> CopiedRows:
    decoder = kind(columns)
    decoder.push(data)
    assert decoder.ended
    return decoder.take()


@settings(max_examples=60, deadline=None)
@given(copy=copies())
def test_every_value_comes_the_same_from_both(copy: tuple[list[Wanted], list[bytes]]) -> None:
    columns, data = copy
    assert same_rows(decoded(Decoder, columns, data), decoded(ReferenceDecoder, columns, data))


@settings(max_examples=60, deadline=None)
@given(copy=copies(malformed=True), cut=st.integers(0, 40), at=st.integers(0, 30))
def test_damaged_bytes_are_refused_by_both_in_the_same_words(
    copy: tuple[list[Wanted], list[bytes]], cut: int, at: int
) -> None:
    columns, data = copy
    data[at % len(data)] = data[at % len(data)][: -cut or None]
    found = [_outcome(kind, columns, data) for kind in (Decoder, ReferenceDecoder)]
    if isinstance(found[0], str) or isinstance(found[1], str):
        assert found[0] == found[1]
    else:
        assert same_rows(*found)


def _outcome(
    kind: type[ReferenceDecoder], columns: list[Wanted], data: list[bytes]
) -> CopiedRows | str:
    decoder = kind(columns)
    try:
        decoder.push(data)
    except ProtocolError as error:
        return str(error)
    return decoder.take()


@pytest.mark.parametrize("kind", [Decoder, ReferenceDecoder])
def test_a_date_behind_all_dates_is_refused(kind: type[ReferenceDecoder]) -> None:
    decoder = kind([wanted(Kind.DATE)])
    with pytest.raises(ProtocolError, match="column 1"):
        decoder.push([HEADER, row(struct.pack(">i", NO_DATES[-1]))])


def test_a_decoder_goes_on_after_each_take() -> None:
    columns = [wanted(Kind.INT4), wanted(Kind.TEXT), wanted(Kind.BOOL)]
    rows = [row(struct.pack(">i", n), b"x" * n, b"\1" if n % 3 else None) for n in range(3000)]
    one, other = Decoder(columns), ReferenceDecoder(columns)
    for decoder in (one, other):
        decoder.push([HEADER, *rows[:2500]])
    assert one.rows == other.rows == 2500
    assert one.size == other.size
    assert same_rows(one.take(), other.take())
    for decoder in (one, other):
        decoder.push([*rows[2500:], TRAILER])
    assert same_rows(one.take(), other.take())
    assert one.size == other.size == 0
