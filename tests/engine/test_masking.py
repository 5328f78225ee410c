"""Masks: nobody reads the value, equal values stay equal, null stays null."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.masking import masked, masked_type
from headrace.engine.sandbox import Sandbox
from headrace.errors import ConfigError
from headrace.model import Mask, MaskKind

SANDBOX = Sandbox()
SHA256 = Mask(MaskKind.SHA256)
NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def apply(mask: Mask, values: pa.Array) -> list[Any]:
    result = masked(pa.chunked_array([values]), mask, SANDBOX)
    assert result.type == masked_type(mask, values.type, "column x")
    return result.to_pylist()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@settings(deadline=None)
@given(values=st.lists(st.none() | st.text(st.characters(codec="utf-8"))))
def test_sha256_is_of_the_utf8_of_the_text(values: list[str | None]) -> None:
    expected = [None if value is None else sha256(value.encode()) for value in values]
    assert apply(SHA256, pa.array(values, pa.string())) == expected


@settings(deadline=None)
@given(
    key=st.text(st.characters(codec="utf-8"), min_size=1, max_size=100),
    values=st.lists(st.none() | st.text(st.characters(codec="utf-8"))),
)
def test_hmac_is_that_of_rfc_2104_with_keys_of_any_length(
    key: str, values: list[str | None]
) -> None:
    expected = [
        None if v is None else hmac.new(key.encode(), v.encode(), "sha256").hexdigest()
        for v in values
    ]
    assert apply(Mask(MaskKind.HMAC, key=key), pa.array(values, pa.string())) == expected


@pytest.mark.parametrize("length", [63, 64, 65])
def test_hmac_keys_around_the_block_size(length: int) -> None:
    """RFC 2104, section 2: a key longer than a block is hashed first."""
    [found] = apply(Mask(MaskKind.HMAC, key="k" * length), pa.array(["v"]))
    assert found == hmac.new(b"k" * length, b"v", "sha256").hexdigest()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pa.array([-3]), "-3"),
        (pa.array([True]), "true"),
        (pa.array([Decimal("1.50")]), "1.50"),
        (pa.array([0.1]), "0.1"),
        (pa.array([dt.date(2026, 1, 31)]), "2026-01-31"),
        (pa.array([NOON], pa.timestamp("us", "UTC")), "2026-01-31 12:00:00.000000Z"),
        (pa.array([NOON.replace(tzinfo=None)], pa.timestamp("us")), "2026-01-31 12:00:00.000000"),
        (pa.array([dt.time(12, 30)], pa.time64("us")), "12:30:00.000000"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array(["x"], pa.large_string()), "x"),
        (pa.array(["x"], pa.string_view()), "x"),
    ],
)
def test_other_types_are_hashed_and_cut_by_the_text_that_is_documented(
    values: pa.Array, text: str
) -> None:
    assert apply(SHA256, values) == [sha256(text.encode())]
    assert apply(Mask(MaskKind.TRUNCATE, length=4), values) == [text[:4]]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(2), pa.binary_view()])
def test_binary_values_are_hashed_by_their_bytes(kind: pa.DataType) -> None:
    assert apply(SHA256, pa.array([b"\xff\x00", None], kind)) == [sha256(b"\xff\x00"), None]


@pytest.mark.parametrize("mask", [SHA256, Mask(MaskKind.HMAC, key="k")])
@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.binary()])
def test_values_that_repeat_get_the_same_hashes_as_each_alone(
    mask: Mask, kind: pa.DataType
) -> None:
    few = pa.array(["1", "22", None, "333"] * 500).cast(kind)
    chunks = pa.chunked_array([few.slice(0, 700), few.slice(700)])
    alone = [apply(mask, few.slice(n, 1))[0] for n in range(4)]
    assert masked(chunks, mask, SANDBOX).to_pylist() == alone * 500


def test_truncate_counts_characters_not_bytes() -> None:
    values = pa.array(["äöüß", "\U0001f980\U0001f980\U0001f980", "a", "", None])
    mask = Mask(MaskKind.TRUNCATE, length=2)
    assert apply(mask, values) == ["äö", "\U0001f980\U0001f980", "a", "", None]


@pytest.mark.parametrize(
    "values", [pa.array(["x", None]), pa.array([1, None]), pa.array([[1], None]), pa.nulls(2)]
)
def test_redact_hides_values_of_any_type_and_leaves_null(values: pa.Array) -> None:
    shown = [None if value is None else "***" for value in values.to_pylist()]
    assert apply(Mask(MaskKind.REDACT), values) == shown


@pytest.mark.parametrize("values", [pa.array(["x"]), pa.array([1]), pa.array([[1]])])
def test_null_keeps_the_type_and_nothing_else(values: pa.Array) -> None:
    assert apply(Mask(MaskKind.NULL), values) == [None]
    assert masked_type(Mask(MaskKind.NULL), values.type, "x") == values.type


@pytest.mark.parametrize("mask", [SHA256, Mask(MaskKind.TRUNCATE, length=1)])
@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int8())]
)
def test_values_without_a_text_are_refused(mask: Mask, kind: pa.DataType) -> None:
    with pytest.raises(ConfigError, match="mask of t: c") as caught:
        masked_type(mask, kind, "mask of t: c")
    assert "redact" in caught.value.hint


def test_bytes_are_not_cut_into_text() -> None:
    with pytest.raises(ConfigError):
        masked_type(Mask(MaskKind.TRUNCATE, length=1), pa.binary(), "c")


def test_invariant_14_the_key_of_an_hmac_is_not_shown() -> None:
    assert "s3cret" not in repr(Mask(MaskKind.HMAC, key="s3cret"))
