"""Array literals of Postgres (`{1,"a b",NULL}`) as Arrow lists, or as JSON where nested.

Grammar: Postgres documentation, "Array Input and Output Syntax". An element stands in double
quotes, with backslash escapes, unless it is plain; an unquoted NULL is a null; more dimensions nest
braces; bounds that do not begin at 1 stand in front (`[0:1]={1,2}`). One-dimensional literals are
parsed for a whole column at once with byte masks, so that no element is a Python object.
"""

from __future__ import annotations

import json
import re
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.postgres.casts import flags, from_buffers, rejected, string_buffers

_OPEN, _CLOSE, _BOUNDS, _QUOTE, _BACKSLASH = (np.uint8(ord(c)) for c in '{}["\\')

_NUMBER: Final = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


def split_literals(
    text: pa.StringArray, delimiter: str, arrow: pa.DataType
) -> tuple[npt.NDArray[np.int32], pa.StringArray]:
    """All elements of all one-dimensional literals: offsets of each row's, and their texts.

    A null row has no elements. `arrow` is the type wanted, for the error.

    Raises:
        UnrepresentableValueError: a value has more dimensions or shifted bounds.
    """
    offsets, data = string_buffers(text.fill_null("{}"))
    _require_one_dimension(text, offsets, data, arrow)
    starts, closes = offsets[:-1], offsets[1:] - 1
    quote = data == _QUOTE
    escaping = _escaping(data)
    quote[escaping + 1] = False
    inside = np.bitwise_xor.accumulate(quote) if len(quote) else quote
    ends = (data == ord(delimiter)) & ~inside
    dropped = quote | ends
    dropped[escaping] = True
    dropped[starts] = dropped[closes] = True
    ends[closes[closes - starts > 1]] = True  # the brace of an empty array ends no element
    end = np.flatnonzero(ends)
    elements = _gather(data, ~dropped, end, quote)
    return np.searchsorted(end, offsets).astype(np.int32), elements


def _require_one_dimension(
    text: pa.StringArray,
    offsets: npt.NDArray[np.int32],
    data: npt.NDArray[np.uint8],
    arrow: pa.DataType,
) -> None:
    shifted = data[offsets[:-1]] != _OPEN
    nested = data[offsets[:-1] + 1] == _OPEN
    if (shifted | nested).any():
        raise rejected(text, np.flatnonzero(shifted | nested), arrow)


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
) -> pa.StringArray:
    """The kept bytes, cut at each element's end; an unquoted NULL becomes null."""
    lengths = np.cumsum(kept, dtype=np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), lengths[end]])
    raw = from_buffers(pa.string(), offsets, data[kept])
    null = flags(pc.equal(raw, "NULL")) & ~quote[end - 1]
    return from_buffers(pa.string(), offsets, data[kept], ~null) if null.any() else raw


def nested_json(text: pa.StringArray, delimiter: str, category: str) -> pa.StringArray:
    """Literals of any number of dimensions as JSON texts.

    Booleans (`category` B) and finite numbers (N) are JSON's own, in Postgres' exact digits; any
    other element is a JSON string of its text.

    Raises:
        UnrepresentableValueError: bounds that do not begin at 1, which JSON cannot tell.
    """
    shifted = flags(pc.starts_with(text, "["))
    if shifted.any():
        raise rejected(text, np.flatnonzero(shifted), pa.string())
    mark = re.escape(delimiter)
    token = re.compile(rf'[{{}}]|{mark}|"(?:[^"\\]|\\.)*"|[^{{}}"{mark}]+', re.DOTALL)
    values = [
        value and token.sub(lambda found: _json_token(found[0], delimiter, category), value)
        for value in text.to_pylist()
    ]
    return pa.array(values, pa.string())


def _json_token(token: str, delimiter: str, category: str) -> str:
    structure = {"{": "[", "}": "]", delimiter: ",", "NULL": "null"}
    if token in structure:
        return structure[token]
    if token.startswith('"'):
        return json.dumps(_ESCAPE.sub(r"\1", token[1:-1]), ensure_ascii=False)
    if category == "B":
        return {"t": "true", "f": "false"}[token]
    if category == "N" and _NUMBER.fullmatch(token):
        return token
    return json.dumps(token, ensure_ascii=False)
