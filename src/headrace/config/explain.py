"""What a failed validation means, in words of the file instead of the validator's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel

from headrace.config.connections import (
    FUTURE_TYPES,
    DeltaConnection,
    PostgresConnection,
)
from headrace.config.document import Document
from headrace.config.entries import ColumnSelection, TableEntry
from headrace.config.names import NAME_PATTERN, SLOT_PATTERN
from headrace.config.problems import KeyPath, Problem, did_you_mean
from headrace.config.settings import Pipeline, Settings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_CONNECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "postgres": PostgresConnection,
    "delta": DeltaConnection,
}
_SECRET_KEYS: Final = frozenset({"password", "url", "storage_options"})

_EXPECTED: Final = {
    "string_type": "expected text",
    "int_type": "expected a number",
    "int_parsing": "expected a number",
    "int_from_float": "expected a whole number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "dict_type": "expected keys with values",
    "model_type": "expected keys with values",
    "model_attributes_type": "expected keys with values",
    "tuple_type": "expected a list",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "greater_than_equal": "expected a number from 1 to 65535",
    "less_than_equal": "expected a number from 1 to 65535",
    "string_too_long": "is too long",
}
_PATTERNS: Final = {
    NAME_PATTERN: "may hold letters, digits, - and _, at most 60",
    SLOT_PATTERN: "may hold a-z, 0-9 and _ only, at most 63",
}


def explain_all(document: Document, faults: Iterable[ErrorDetails]) -> list[Problem]:
    """Each fault as a problem, without those that only follow from others.

    The document has told of missing values; a list whose entries are all wrong counts as empty.
    """
    return [explain(document, fault) for fault in faults if not _follows(fault)]


def _follows(fault: ErrorDetails) -> bool:
    return fault["input"] is None or (fault["type"] == "too_short" and bool(fault["input"]))


def explain(document: Document, fault: ErrorDetails) -> Problem:
    """One fault of pydantic's as a problem; no value that may be secret appears in it."""
    path = _path(fault["loc"])
    match fault["type"]:
        case "extra_forbidden":
            hint = did_you_mean(str(path[-1]), known_keys(document.data, path[:-1]))
            return document.problem(path, "unknown key", hint)
        case "missing":
            return document.problem(path, "missing", _missing_hint(path))
        case "literal_error":
            if path == ("version",):
                return document.problem(path, "this Headrace reads version 1", "write version: 1")
            return _bad_choice(document, path, _choices(path))
        case "union_tag_invalid":
            return _bad_choice(document, (*path, "type"), [*_CONNECTIONS, *FUTURE_TYPES])
        case "union_tag_not_found":
            if isinstance(fault["input"], dict):
                return document.problem((*path, "type"), "missing", "write type: postgres or delta")
            return document.problem(path, _found(document, path, _EXPECTED["dict_type"]))
        case "value_error":
            return document.problem(path, _found(document, path, str(fault["ctx"]["error"])))
        case "string_pattern_mismatch":
            return _bad_pattern(document, path, str(fault["ctx"]["pattern"]))
        case kind:
            what = _found(document, path, _EXPECTED.get(kind, str(fault["msg"])))
            hint = _type_hint(kind, document.written.get(path))
            return document.problem(path, what, hint)


def known_keys(data: Any, path: KeyPath) -> Iterable[str]:
    """The keys that may stand at `path`."""
    match path:
        case ():
            model: type[BaseModel] = Settings
        case ("connections", name):
            model = _CONNECTIONS[data["connections"][name]["type"]]
        case ("pipelines", _):
            model = Pipeline
        case ("pipelines", _, "tables", _):
            model = TableEntry
        case ("pipelines", _, "tables", _, "columns"):
            model = ColumnSelection
        case _:
            return ()
    return model.model_fields.keys()


def _path(loc: tuple[int | str, ...]) -> KeyPath:
    """pydantic's path without what is not in the file: the chosen connection type, [key]."""
    path = loc[:2] + loc[3:] if loc[0:1] == ("connections",) and len(loc) > 2 else loc
    return path[:-1] if path[-1:] == ("[key]",) else path


def _choices(path: KeyPath) -> list[str]:
    *parent, key = path
    match parent:
        case ["connections", _]:
            annotation = PostgresConnection.model_fields[str(key)].annotation
        case _:
            annotation = TableEntry.model_fields[str(key)].annotation
    return [str(v) for part in get_args(annotation) for v in get_args(part)]


def _bad_choice(document: Document, path: KeyPath, choices: list[str]) -> Problem:
    written = document.written.get(path, "this")
    return document.problem(path, f"{written} is not valid", did_you_mean(written, choices))


def _bad_pattern(document: Document, path: KeyPath, pattern: str) -> Problem:
    return document.problem(path, _found(document, path, _PATTERNS[pattern]))


def _missing_hint(path: KeyPath) -> str:
    examples = {
        "version": "write version: 1",
        "connections": "headrace init writes a file to start from",
        "pipelines": "headrace init writes a file to start from",
        "tables": 'write tables: ["public.*"]',
    }
    return examples.get(str(path[-1]), f"add {path[-1]}:")


def _type_hint(kind: str, written: str | None) -> str:
    """How a single word of the wrong type is written in the right one."""
    if written is None:
        return ""
    return {"string_type": "write it in quotes", "tuple_type": "write [ ] around it"}.get(kind, "")


def _found(document: Document, path: KeyPath, expected: str) -> str:
    """`expected` and, where it is no secret, what was written."""
    written = document.written.get(path)
    if written is None or not _SECRET_KEYS.isdisjoint(map(str, path)):
        return expected
    return f"{expected}, found {_shortened(written)}"


def _shortened(written: str) -> str:
    return re.sub(r"\s+", " ", written)[:60] or "nothing"
