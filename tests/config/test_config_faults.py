"""A wrong headrace.yaml: every fault with its line, what was written and what to write instead."""

from __future__ import annotations

import pickle

import pytest
from config_files import FILE, edited, settings_of, with_entries

from headrace.config.contradictions import contradictions_in_lake
from headrace.config.entries import TableEntry
from headrace.errors import ConfigError

HEAD = FILE[: FILE.index("pipelines:")]
OLD_LAKE = "  old: {type: delta, location: ./old}\npipelines:"


def shop(line: str) -> str:
    return edited("user: headrace", f"user: headrace\n    {line}")


def pipeline(line: str) -> str:
    return edited("    tables:", f"    {line}\n    tables:")


FAULTS = {
    # text, line, where, what, hint
    "empty": ("", 1, "", "the file is empty", "headrace init"),
    "only a comment": ("# later\n", 1, "", "the file is empty", "headrace init"),
    "not a mapping": ("hello\n", 1, "", "expected keys with values, found hello", None),
    "tab": (edited("    host", "\thost"), 5, "", "a tab cannot indent YAML", "indent with spaces"),
    "not YAML": (edited("host: db", "host: [db"), 6, "", "not YAML: expected ',' or ']'", None),
    "two documents": (f"{FILE}---\na: 1\n", 16, "", "more than one YAML document", "remove the"),
    "bare glob": (with_entries("*.*"), 15, "", "* and & begin an alias", "value in quotes"),
    "control character": (shop("port: \0"), 8, "", "character U+0000", "UTF-8"),
    "list as key": (f"{FILE}? [a]\n: b\n", 16, "", "a key must be a name", None),
    "unknown key": (edited("host:", "hots:"), 5, "connections.shop.hots", "unknown", "mean host?"),
    "unknown at top": (f"{FILE}pipeline: 1\n", 16, "pipeline", "unknown key", "mean pipelines?"),
    "unknown in a table": (
        with_entries("public.a", "source: public.b\n        mod: scd1"),
        17,
        "pipelines.shop_to_lake.tables[1].mod",
        "unknown key",
        "did you mean mode?",
    ),
    "unknown in columns": (
        with_entries("{source: public.b, columns: {excludes: [ssn]}}"),
        15,
        "pipelines.shop_to_lake.tables[0].columns.excludes",
        "unknown key",
        "did you mean exclude?",
    ),
    "given twice": (
        shop("host: other"),
        8,
        "connections.shop.host",
        "given twice, first on line 5",
        "keep one",
    ),
    "no version": (
        edited("version: 1\n", ""),
        1,
        "version",
        "missing",
        "write version: 1",
    ),
    "later version": (edited("version: 1", "version: 2"), 1, "version", "reads version 1", None),
    "no pipelines": (HEAD, 1, "pipelines", "missing", "headrace init"),
    "pipelines without value": (f"{HEAD}pipelines:\n", 10, "pipelines", "has no value", None),
    "empty pipelines": (f"{HEAD}pipelines: {{}}\n", 10, "pipelines", "must not be empty", None),
    "type misspelt": (
        edited("type: postgres", "type: postgers"),
        4,
        "connections.shop.type",
        "postgers is not valid",
        "did you mean postgres?",
    ),
    "type missing": (
        edited("    type: postgres\n", ""),
        3,
        "connections.shop.type",
        "missing",
        "write type: postgres or delta",
    ),
    "connection name": (
        edited("  lake:", "  my/lake:").replace("destination: lake", "destination: my/lake"),
        9,
        "connections.my/lake",
        "may hold letters, digits",
        None,
    ),
    "no host": (
        edited("    host: db.example.com\n", ""),
        3,
        "connections.shop",
        "missing host (or give url)",
        None,
    ),
    "host and url": (shop("url: postgresql://h/d"), 3, "connections.shop", "url stands in", None),
    "port is a word": (shop("port: x"), 8, "connections.shop.port", "a number, found x", None),
    "port is yes": (shop("port: yes"), 8, "connections.shop.port", "a number, found yes", None),
    "port too high": (shop("port: 70000"), 8, "connections.shop.port", "from 1 to 65535", None),
    "text is a number": (
        edited("host: db.example.com", "host: 5"),
        5,
        "connections.shop.host",
        "expected text, found 5",
        "write it in quotes",
    ),
    "sslmode": (
        shop("sslmode: verify_full"),
        8,
        "connections.shop.sslmode",
        "verify_full is not valid",
        "did you mean verify-full?",
    ),
    "sslmode by YAML's rules": (
        shop("sslmode: off"),
        8,
        "connections.shop.sslmode",
        "off is not valid",
        "choose one of allow, disable, prefer",
    ),
    "variable not set": (
        edited("${SHOP_PASSWORD}", "${SHOP_PASWORD}"),
        8,
        "connections.shop.password",
        "the environment variable SHOP_PASWORD is not set",
        "did you mean SHOP_PASSWORD?",
    ),
    "reference without name": (
        edited("${SHOP_PASSWORD}", "${SHOP PASSWORD}"),
        8,
        "connections.shop.password",
        "${ must be followed by the name",
        "write ${NAME}",
    ),
    "tag": (
        edited("${SHOP_PASSWORD}", "!env SHOP"),
        8,
        "connections.shop.password",
        "tags (!) are not used",
        None,
    ),
    "no value": (
        edited("${SHOP_PASSWORD}", ""),
        8,
        "connections.shop.password",
        "has no value",
        "write one, or remove the key",
    ),
    "unknown source": (
        edited("source: shop", "source: shpo"),
        12,
        "pipelines.shop_to_lake.source",
        "no connection is called shpo",
        "did you mean shop?",
    ),
    "one connection": (
        edited("destination: lake", "destination: shop"),
        13,
        "pipelines.shop_to_lake.destination",
        "source and destination are one connection",
        "name another connection",
    ),
    "schedule": (
        pipeline("schedule: often"),
        14,
        "pipelines.shop_to_lake.schedule",
        "expected continuous, an interval such as 5m or 1h, or a cron line such as 0 3 * * *, "
        "not 'often'",
        None,
    ),
    "cron line": (
        pipeline('schedule: "61 * * * *"'),
        14,
        "pipelines.shop_to_lake.schedule",
        "'61 * * * *' is not a cron line",
        None,
    ),
    "slot": (
        pipeline("slot: My-Slot"),
        14,
        "pipelines.shop_to_lake.slot",
        "may hold a-z, 0-9 and _ only, at most 63, found My-Slot",
        None,
    ),
    "tables are text": (
        edited("\n      - public.*", " public.*"),
        14,
        "pipelines.shop_to_lake.tables",
        "expected a list, found public.*",
        "write [ ] around it",
    ),
    "table without schema": (
        with_entries("source: customers"),
        15,
        "pipelines.shop_to_lake.tables[0].source",
        "expected schema.table, such as public.customers or public.*, found customers",
        None,
    ),
    "name for a glob": (
        with_entries("{source: public.*, name: a.b}"),
        15,
        "pipelines.shop_to_lake.tables[0]",
        "name is for one table, but source is a glob",
        None,
    ),
    "mode": (
        with_entries("{source: public.*, mode: scd3}"),
        15,
        "pipelines.shop_to_lake.tables[0].mode",
        "scd3 is not valid",
        "did you mean scd2?",
    ),
    "alias of itself": (with_entries("&a [*a]"), 15, "pipelines.shop_to_lake.tables[0]", "", None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_its_line_and_a_remedy(name):
    text, line, where, what, hint = FAULTS[name]
    with pytest.raises(ConfigError) as caught:
        settings_of(text)
    first = caught.value.context["problems"][0]
    assert (first.line, first.where) == (line, where)
    assert what in first.what
    assert (hint or "") in first.hint
    assert caught.value.hint
    assert caught.value.context["file"] == "headrace.yaml"
    assert caught.value.context["line"] == line
    assert f"line {line}" in str(caught.value)


CONTRADICTIONS = {
    "track": ({"track": ["b"]}, "track", "no meaning with mode scd1"),
    "track of changes": ({"mode": "append", "track": ["b"]}, "track", "which makes no versions"),
    "a mark of changes": ({"mode": "append", "on_delete": "mark"}, "on_delete", "mode append"),
    "a mark of versions": ({"mode": "scd2", "on_delete": "ignore"}, "on_delete", "mode scd2"),
    "a key of changes": ({"mode": "append", "key": ["b"]}, "key", "every change as a row"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_contradicts_itself_in_a_lake_is_found(name):
    values, key, what = CONTRADICTIONS[name]
    (found,) = contradictions_in_lake(TableEntry(source="public.a", **values))
    assert found.keys == (key,)
    assert what in found.what


def test_a_contradiction_in_a_lake_is_told_with_its_line():
    with pytest.raises(ConfigError, match="line 15") as caught:
        settings_of(with_entries("{source: public.a, mode: append, on_delete: mark}"))
    (problem,) = caught.value.context["problems"]
    assert problem.where == "pipelines.shop_to_lake.tables[0].on_delete"


@pytest.mark.parametrize("word", ["json", "decimal(39,0)", "decimal(0,0)", "decimal(3,4)", "''"])
def test_a_column_is_read_as_text_or_as_a_decimal_that_there_is(word):
    with pytest.raises(ConfigError, match="expected text or decimal"):
        settings_of(with_entries(f"{{source: public.b, columns: {{as: {{c: {word!r}}}}}}}"))


NOT_YET = {
    "mask": (with_entries("{source: public.*, mask: {a: sha256}}"), "tables[0].mask", "mask"),
    "where": (with_entries("{source: public.*, where: a > 1}"), "tables[0].where", "where"),
    "columns": (
        with_entries("{source: public.*, columns: {exclude: [a]}}"),
        "tables[0].columns.exclude",
        "exclude",
    ),
    "interval": (pipeline("schedule: 5m"), "schedule", "5m"),
    "cron": (pipeline('schedule: "*/5 * * * *"'), "schedule", "*/5 * * * *"),
    "Delta to Delta": (
        edited("source: shop", "source: old").replace("pipelines:", OLD_LAKE),
        "destination",
        "a delta connection as destination of a delta source",
    ),
}


@pytest.mark.parametrize("name", NOT_YET)
def test_what_is_not_built_yet_is_refused_instead_of_ignored(name):
    text, where, what = NOT_YET[name]
    with pytest.raises(ConfigError, match="not yet supported") as caught:
        settings_of(text)
    (problem,) = caught.value.context["problems"]
    assert problem.where == f"pipelines.shop_to_lake.{where}"
    assert what in problem.what


def test_a_connection_of_a_later_version_is_refused():
    text = edited("{type: delta, location: ./lake}", "{type: kafka, brokers: [a]}")
    with pytest.raises(ConfigError, match=r"line 9: connections\.lake\.type: kafka is not yet"):
        settings_of(text)


def test_all_problems_are_told_at_once_in_the_order_of_their_lines():
    text = edited("host:", "hots:").replace("source: shop", "source: shpo")
    text = text.replace("${SHOP_PASSWORD}", "${NOT_SET}") + "x: &a [*a]\n"
    with pytest.raises(ConfigError) as caught:
        settings_of(text)
    assert [problem.line for problem in caught.value.context["problems"]] == [5, 8, 12, 16, 16]
    assert (
        "headrace.yaml has 5 problems:\n  line 5: connections.shop.hots: unknown key (did you"
        in (caught.value.message)
    )


def test_a_fault_s_error_crosses_processes():
    with pytest.raises(ConfigError) as caught:
        settings_of(edited("host:", "hots:"))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.context) == (str(caught.value), caught.value.context)
