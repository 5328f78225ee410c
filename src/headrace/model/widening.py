"""Which changes of a column's type every value survives unchanged (Delta's "Type Widening")."""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa
import pyarrow.types as pt

_DIGITS: Final = {8: 3, 16: 5, 32: 10, 64: 19}  # of the longest number of so many bits


def is_widening(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether every value of one type is one of the other."""
    if pt.is_integer(old) and pt.is_integer(new):
        return bool(old.bit_width <= new.bit_width)
    if pt.is_floating(old) and pt.is_floating(new):
        return bool(old.bit_width <= new.bit_width)
    if pt.is_integer(old) and pt.is_float64(new):
        return bool(old.bit_width <= 32)
    if pt.is_integer(old) and pt.is_decimal(new):
        return bool(new.precision - new.scale >= _DIGITS[old.bit_width])
    if pt.is_decimal(old) and pt.is_decimal(new):
        whole = new.precision - new.scale >= old.precision - old.scale
        return bool(whole and new.scale >= old.scale)
    return bool(pt.is_date(old) and pt.is_timestamp(new) and new.tz is None)


_TEXT: Final = re.compile(r"(text|character varying|varchar)(\(\d+\))?")


def carries_over(old: pa.DataType, old_source: str, new: pa.DataType, new_source: str) -> bool:
    """Whether a column's values stand as they are when it goes from one type to another.

    The same Arrow type may hold other values: what the source makes of a `time` as `text` is not
    how the `time` was told. Texts of another length are the same texts.
    """
    if old != new:
        return is_widening(old, new)
    texts = _TEXT.fullmatch(old_source) and _TEXT.fullmatch(new_source)
    return bool(texts) or old_source == new_source
