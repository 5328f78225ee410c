"""Numbers and durations as headrace.yaml writes them; each may come from the environment."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)\Z")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(kB|MB|GB|KiB|MiB|GiB)\Z")
_BYTES: Final = {
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
_REFERENCE_SCHEMA: Final = {"type": "string", "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$"}


def _not_a_bool(value: object) -> object:
    if isinstance(value, bool):  # Python counts True as 1
        raise ValueError("expected a number")
    return value


def _seconds(value: object) -> object:
    found = _DURATION.match(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("expected a duration such as 200ms, 1s or 5m")
    return float(found[1]) * _SECONDS[found[2]]


def _bytes(value: object) -> object:
    found = _SIZE.match(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("expected a size such as 500MB or 1GiB")
    return int(float(found[1]) * _BYTES[found[2]])


def _or_reference(**schema: Any) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [schema, _REFERENCE_SCHEMA]})


Port = Annotated[
    int,
    Field(ge=1, le=65535),
    BeforeValidator(_not_a_bool),
    _or_reference(type="integer", minimum=1, maximum=65535),
]
Count = Annotated[
    int, Field(ge=0), BeforeValidator(_not_a_bool), _or_reference(type="integer", minimum=0)
]
Positive = Annotated[
    int, Field(ge=1), BeforeValidator(_not_a_bool), _or_reference(type="integer", minimum=1)
]
Share = Annotated[
    float,
    Field(ge=0, le=1),
    BeforeValidator(_not_a_bool),
    _or_reference(type="number", minimum=0, maximum=1),
]
# In seconds; written with its unit.
Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    _or_reference(type="string", pattern=r"^\d+(\.\d+)?(ms|s|m|h|d)$"),
]
# In bytes; written with its unit.
Size = Annotated[
    int,
    BeforeValidator(_bytes),
    _or_reference(type="string", pattern=r"^\d+(\.\d+)?\s*(kB|MB|GB|KiB|MiB|GiB)$"),
]
