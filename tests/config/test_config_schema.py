"""The JSON Schema that editors use, judged by an independent validator."""

from __future__ import annotations

import json

import fastjsonschema
import pytest
import yaml
from config_files import EVERYTHING, FILE, edited, with_entries

from headrace.config import json_schema


@pytest.mark.parametrize("text", [FILE, EVERYTHING, with_entries("{source: a.b, mode: scd2}")])
def test_the_schema_accepts_what_loading_knows(text):
    fastjsonschema.validate(json_schema(), yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        edited("host:", "hots:"),
        edited("type: delta", "type: dleta"),
        with_entries("{source: public.a, mod: scd1}"),
        with_entries("{source: public.a, mode: scd3}"),
        edited("version: 1", "version: 2"),
    ],
)
def test_the_schema_refuses_what_loading_refuses(text):
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        fastjsonschema.validate(json_schema(), yaml.safe_load(text))


def test_every_key_of_the_schema_is_described():
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    parts = [schema, *schema["$defs"].values()]
    fields = [
        (part.get("title"), name, field)
        for part in [*parts, *(p for part in parts for p in part.get("anyOf", []))]
        for name, field in part.get("properties", {}).items()
    ]
    assert {name for _, name, _ in fields} >= {"version", "host", "location", "tables", "mask"}
    assert [(part, name) for part, name, field in fields if not field.get("description")] == []
