"""Literals that enclose elements, as arrays, composites and hstore do, taken apart by columns.

An element stands in double quotes unless it is plain. Inside quotes a backslash escapes what
follows, and a doubled quote is one quote (Postgres documentation, "Array Input and Output Syntax",
"Composite Type Input and Output Syntax"). All literals of a column are parsed at once with byte
masks, so that no element is a Python object.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.postgres.casts import flags, from_buffers, string_buffers

_QUOTE, _BACKSLASH = (np.uint8(ord(c)) for c in '"\\')

NULL: Final = "NULL"
EMPTY: Final = ""  # how composites spell their nulls


def split(
    text: pa.StringArray, separators: str, *, null: str = NULL, blank: str = ""
) -> tuple[npt.NDArray[np.int32], pa.StringArray]:
    """All elements of all literals: offsets of each row's, and their texts, unquoted.

    No row is null, and each literal has one byte before its first element and one after its last.
    `separators` are the characters that end an element and `blank` those that mean nothing, both
    outside quotes. An unquoted `null` is a null; nothing at all between the outer bytes is no
    element, but one null where that is spelled as nothing.
    """
    offsets, data = string_buffers(text)
    starts, closes = offsets[:-1], offsets[1:] - 1
    quote = data == _QUOTE
    escaping = _escaping(data)
    quote[escaping + 1] = False
    inside = np.bitwise_xor.accumulate(quote) if len(quote) else quote
    ends = _any_of(data, separators) & ~inside
    dropped = quote & ~_doubled(quote, inside)
    dropped |= ends
    if blank:
        dropped |= _any_of(data, blank) & ~inside
    dropped[escaping] = True
    dropped[starts] = dropped[closes] = True
    ends[closes if null == EMPTY else closes[closes - starts > 1]] = True
    end = np.flatnonzero(ends)
    elements = _gather(data, ~dropped, end, quote, null)
    return np.searchsorted(end, offsets).astype(np.int32), elements


def _any_of(data: npt.NDArray[np.uint8], characters: str) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = data == ord(characters[0])
    for character in characters[1:]:
        found |= data == ord(character)
    return found


def _doubled(quote: npt.NDArray[np.bool_], inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The second of two quotes that stand for one: it opens where another has just closed."""
    doubled = quote & inside
    doubled[1:] &= quote[:-1]
    doubled[:1] = False
    return doubled


def _escaping(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Where a backslash escapes what follows: every other one of a run, from its first."""
    at = np.flatnonzero(data == _BACKSLASH)
    if len(at) == 0:
        return at
    begins = np.diff(at, prepend=-2) != 1
    order = np.arange(len(at))
    first: npt.NDArray[np.intp] = np.maximum.accumulate(np.where(begins, order, 0))
    escaping: npt.NDArray[np.intp] = at[(order - first) % 2 == 0]
    return escaping


def _gather(
    data: npt.NDArray[np.uint8],
    kept: npt.NDArray[np.bool_],
    end: npt.NDArray[np.intp],
    quote: npt.NDArray[np.bool_],
    null: str,
) -> pa.StringArray:
    """The kept bytes, cut at each element's end; an unquoted `null` becomes null."""
    lengths = np.cumsum(kept, dtype=np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), lengths[end]])
    raw = from_buffers(pa.string(), offsets, data[kept])
    absent = flags(pc.equal(raw, null)) & ~quote[end - 1]
    return from_buffers(pa.string(), offsets, data[kept], ~absent) if absent.any() else raw
