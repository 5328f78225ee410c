"""What a failed validation means, in words of the file instead of the validator's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from headrace.config.connections import (
    FUTURE_TYPES,
    DeltaConnection,
    PostgresConnection,
)
from headrace.config.document import Document
from headrace.config.entries import ColumnSelection, ExpectationEntry, MaskRule, TableEntry
from headrace.config.names import NAME_PATTERN, SLOT_PATTERN
from headrace.config.problems import KeyPath, Problem, did_you_mean
from headrace.config.settings import Pipeline, Quarantine, Settings, Throttle

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_CONNECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "postgres": PostgresConnection,
    "delta": DeltaConnection,
}
_SECRET_KEYS: Final = frozenset({"password", "url", "storage_options", "hmac"})
_TAGS: Final = frozenset({"[word]", "[rule]", "[key]"})  # pydantic's, of MaskForm and of keys
_MASKS: Final = ("sha256", "redact", "null", '{hmac: "${KEY}"}', "{truncate: 3}")

_EXPECTED: Final = {
    "string_type": "expected text",
    "int_type": "expected a number",
    "int_parsing": "expected a number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a number",
    "int_from_float": "expected a whole number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "dict_type": "expected keys with values",
    "model_type": "expected keys with values",
    "model_attributes_type": "expected keys with values",
    "tuple_type": "expected a list",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
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
            return _bad_choice(document, path, _choices(document.data, path))
        case "union_tag_invalid":
            return _bad_choice(document, (*path, "type"), [*_CONNECTIONS, *FUTURE_TYPES])
        case "union_tag_not_found":
            if isinstance(fault["input"], dict):
                return document.problem((*path, "type"), "missing", "write type: postgres or delta")
            return document.problem(path, _found(document, path, _EXPECTED["dict_type"]))
        case "value_error":
            return document.problem(path, _found(document, path, str(fault["ctx"]["error"])))
        case "greater_than_equal" | "less_than_equal":
            return document.problem(path, _found(document, path, _range(document.data, path)))
        case "string_pattern_mismatch":
            what = _PATTERNS[str(fault["ctx"]["pattern"])]
            named = fault["loc"][-1] == "[key]"  # then it is the name that is wrong, not the value
            return document.problem(path, what if named else _found(document, path, what))
        case kind:
            what = _found(document, path, _EXPECTED.get(kind, str(fault["msg"])))
            hint = _type_hint(kind, document.written.get(path))
            return document.problem(path, what, hint)


def known_keys(data: Any, path: KeyPath) -> Iterable[str]:
    """The keys that may stand at `path`."""
    model = _model(data, path)
    return _fields(model) if model is not None else ()


def _model(data: Any, path: KeyPath) -> type[BaseModel] | None:
    """What the keys at `path` are checked by."""
    match path:
        case ():
            return Settings
        case ("connections", name):
            return _CONNECTIONS.get(data["connections"][name].get("type"))
        case ("pipelines", _):
            return Pipeline
        case ("pipelines", _, "quarantine"):
            return Quarantine
        case ("pipelines", _, "throttle"):
            return Throttle
        case ("pipelines", _, "tables", _, *inner):
            return _model_in_entry(tuple(inner))
    return None


def _model_in_entry(path: KeyPath) -> type[BaseModel] | None:
    match path:
        case ():
            return TableEntry
        case ("columns",):
            return ColumnSelection
        case ("mask", _):
            return MaskRule
        case ("expect", _):
            return ExpectationEntry
    return None


def _fields(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """A model's fields by their keys in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _field(data: Any, path: KeyPath) -> FieldInfo | None:
    model = _model(data, path[:-1])
    return _fields(model).get(str(path[-1])) if model is not None else None


def _path(loc: tuple[int | str, ...]) -> KeyPath:
    """pydantic's path without what is not in the file: the chosen kinds of union members."""
    path = loc[:2] + loc[3:] if loc[0:1] == ("connections",) and len(loc) > 2 else loc
    return tuple(part for part in path if part not in _TAGS)


def _choices(data: Any, path: KeyPath) -> list[str]:
    if path[-2:-1] == ("mask",):
        return list(_MASKS)
    field = _field(data, path)
    return _literals(field.annotation) if field is not None else []


def _literals(annotation: Any) -> list[str]:
    """The values of a Literal, also of one that may be None."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(parts)
    return [value for part in parts for value in _literals(part)]


def _range(data: Any, path: KeyPath) -> str:
    """`expected a number from 1 to 65535`, or of at least 1."""
    bounds = list(_constraints(_field(data, path)))
    low = next((bound.ge for bound in bounds if isinstance(bound, Ge)), 0)
    high = next((bound.le for bound in bounds if isinstance(bound, Le)), None)
    return f"expected a number {f'of at least {low}' if high is None else f'from {low} to {high}'}"


def _constraints(declared: Any) -> Iterator[Any]:
    """What restricts a field, or a part of its annotation such as that beside None."""
    parts = get_args(declared)
    if isinstance(declared, FieldInfo):
        yield from declared.metadata
        parts = (declared.annotation,)
    for part in (*getattr(declared, "__metadata__", ()), *parts):
        yield from _constraints(part)


def _bad_choice(document: Document, path: KeyPath, choices: list[str]) -> Problem:
    written = document.written.get(path, "this")
    return document.problem(path, f"{written} is not valid", did_you_mean(written, choices))


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
    if repr(written) in expected:  # the model's own words quote it
        return expected
    return f"{expected}, found {_shortened(written)}"


def _shortened(written: str) -> str:
    return re.sub(r"\s+", " ", written)[:60] or "nothing"
