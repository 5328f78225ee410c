"""Array literals of Postgres (`{1,"a b",NULL}`) as Arrow lists, or as JSON where nested.

Grammar: Postgres documentation, "Array Input and Output Syntax". More dimensions nest braces;
bounds that do not begin at 1 stand in front (`[0:1]={1,2}`).
"""

from __future__ import annotations

import json
import re
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.connectors.postgres.casts import rejected, string_buffers
from headrace.connectors.postgres.literals import split

_OPEN: Final = np.uint8(ord("{"))

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
    filled = text.fill_null("{}")
    offsets, data = string_buffers(filled)
    shifted = data[offsets[:-1]] != _OPEN
    nested = data[offsets[:-1] + 1] == _OPEN
    if (shifted | nested).any():
        raise rejected(text, np.flatnonzero(shifted | nested), arrow)
    return split(filled, delimiter)


def nested_json(text: pa.StringArray, delimiter: str, category: str) -> pa.StringArray:
    """Literals of any number of dimensions as JSON texts.

    Booleans (`category` B) and finite numbers (N) are JSON's own, in Postgres' exact digits; any
    other element is a JSON string of its text. Bounds that do not begin at 1, which a JSON array
    cannot tell, stand before it as Postgres writes them: `{"[0:1]":[1,2]}`.
    """
    mark = re.escape(delimiter)
    token = re.compile(rf'[{{}}]|{mark}|"(?:[^"\\]|\\.)*"|[^{{}}"{mark}]+', re.DOTALL)

    def value(literal: str) -> str:
        bounds, _, elements = literal.partition("=") if literal[0] == "[" else ("", "", literal)
        found = token.sub(lambda match: _json_token(match[0], delimiter, category), elements)
        return f'{{"{bounds}":{found}}}' if bounds else found

    return pa.array([None if t is None else value(t) for t in text.to_pylist()], pa.string())


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
