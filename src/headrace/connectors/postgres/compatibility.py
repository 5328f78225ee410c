"""Which column types hold which values without loss: judged before anything is written.

Assignment in Postgres raises for a text that is too long and an integer that is too large, but it
rounds numerics, cuts microseconds and shortens names silently. Columns where that could happen are
refused; those where a value may be refused (and then stand in quarantine) are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.types as pt

from headrace.connectors.postgres.target_table import TargetColumn
from headrace.model.arrow import is_list, is_text


@dataclass(frozen=True)
class Fit:
    """Whether a column takes every value (`why` empty), takes what it can, or must not be used."""

    fits: bool
    why: str = ""  # what may be refused, or why it does not fit


EXACT: Final = Fit(True)

TEXTS: Final = frozenset({"text", "varchar", "bpchar", "citext"})
JSON: Final = frozenset({"json", "jsonb"})
_INTEGER_BITS: Final = {"int2": 16, "int4": 32, "int8": 64}
_INTEGER_DIGITS: Final = {"int2": 4, "int4": 9, "int8": 18}  # that always fit
_TIMES: Final = frozenset({"timestamp", "timestamptz", "time", "timetz", "interval"})


def fit(kind: pa.DataType, column: TargetColumn) -> Fit:
    """Whether `column` can hold every value of an Arrow type."""
    if pt.is_dictionary(kind):
        return fit(kind.value_type, column)
    if column.family in TEXTS and not column.is_array:
        return _into_text(column)
    if is_list(kind) and column.is_array:
        return _fit_scalar(kind.value_type, column)
    if is_list(kind) or pt.is_nested(kind):
        holds = column.family in JSON and not column.is_array
        return EXACT if holds else _refused(kind, column)
    if column.is_array and not is_text(kind):
        return _refused(kind, column)
    return _fit_scalar(kind, column)


def _into_text(column: TargetColumn) -> Fit:
    if not column.modifiers:
        return EXACT
    (length,) = column.modifiers
    return Fit(True, f"a text longer than {length} characters is quarantined")


def _fit_scalar(kind: pa.DataType, column: TargetColumn) -> Fit:
    if column.family in TEXTS:
        return _into_text(column)
    if is_text(kind):
        return _from_text(column)
    if pt.is_integer(kind):
        return _from_integer(kind, column)
    if pt.is_decimal(kind):
        return _from_decimal(kind.precision, kind.scale, column)
    families = _families(kind)
    if column.family not in families:
        return _refused(kind, column)
    if column.family in _TIMES and column.modifiers and column.modifiers[0] < 6:
        return Fit(False, f"{column.type} would round microseconds away")
    return EXACT


def _families(kind: pa.DataType) -> frozenset[str]:
    """Column types that hold every value of an Arrow type that is no number of exact digits."""
    if pt.is_boolean(kind):
        return frozenset({"bool"})
    if pt.is_float64(kind):
        return frozenset({"float8"})
    if pt.is_floating(kind):
        return frozenset({"float4", "float8"})
    if pt.is_date(kind):
        return frozenset({"date", "timestamp", "timestamptz"})
    if pt.is_timestamp(kind):
        return frozenset({"timestamp", "timestamptz"})  # the one is the other in UTC
    if pt.is_time(kind):
        return frozenset({"time", "timetz", "interval"})
    if pt.is_duration(kind):
        return frozenset({"interval"})
    if pt.is_null(kind):
        return frozenset({"text"})
    return frozenset({"bytea"})


def _from_integer(kind: pa.DataType, column: TargetColumn) -> Fit:
    signed = pt.is_signed_integer(kind)
    value_bits = kind.bit_width - signed
    if column.family in _INTEGER_BITS:
        room = _INTEGER_BITS[column.family]
        return EXACT if value_bits < room else _refused(kind, column)
    if column.family == "numeric":
        return _from_decimal(len(str(2**value_bits - 1)), 0, column)
    exact_bits = {"float4": 24, "float8": 53}.get(column.family, 0)
    return EXACT if value_bits <= exact_bits else _refused(kind, column)


def _from_decimal(precision: int, scale: int, column: TargetColumn) -> Fit:
    if column.family in _INTEGER_DIGITS:
        holds = scale <= 0 and precision - scale <= _INTEGER_DIGITS[column.family]
        return EXACT if holds else Fit(False, f"{column.type} has not room for its digits")
    if column.family != "numeric":
        return Fit(False, f"{column.type} cannot hold a decimal exactly")
    if not column.modifiers:
        return EXACT
    digits, places = (*column.modifiers, 0)[:2]
    if places < scale:
        return Fit(False, f"{column.type} would round {scale} decimal places to {places}")
    if digits - places < precision - scale:
        whole = digits - places
        return Fit(True, f"a number of more than {whole} digits before the point is quarantined")
    return EXACT


def _from_text(column: TargetColumn) -> Fit:
    """Any type reads texts, and refuses those that are none of its own; but some round."""
    if column.family in ("name", "char", "bytea", "float4", "float8"):
        return Fit(False, f"{column.type} would change some texts silently")
    if column.family in (*_TIMES, "numeric") and column.modifiers:
        return Fit(False, f"{column.type} would round silently")
    if column.family in ("timestamp", "timestamptz", "time", "timetz", "money"):
        return Fit(False, f"{column.type} would read some texts other than they are meant")
    return Fit(True, f"a text that is no {column.type} is quarantined")


def _refused(kind: pa.DataType, column: TargetColumn) -> Fit:
    return Fit(False, f"{column.type} cannot hold every {kind}")
