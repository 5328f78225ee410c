"""What `headrace init` writes can be loaded, and never holds a secret."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.starter import Starter, quoted, starter_text
from headrace.config import DeltaConnection, parse
from headrace.errors import ConfigError

PARTS = Starter(host="db", database="shop", user="reader", variable="SHOP_PASSWORD")
VARIABLES = {"SHOP_PASSWORD": "p:w # \"'", "DATABASE_URL": "postgresql://a:b@c/d"}


def load(starter: Starter):
    return parse(starter_text(starter), "headrace.yaml", Path("/project"), VARIABLES)


def test_the_parts_become_a_connection_and_a_pipeline():
    settings = load(PARTS)
    source = settings.source("source_to_lake")
    assert (source.host, source.port, source.database, source.user) == (
        "db",
        5432,
        "shop",
        "reader",
    )
    assert source.password.get_secret_value() == VARIABLES["SHOP_PASSWORD"]
    assert settings.destination("source_to_lake").location == "/project/lake"
    assert [entry.source for entry in settings.pipelines["source_to_lake"].tables] == ["public.*"]


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://reader@db/shop", VARIABLES["SHOP_PASSWORD"]),
        ("postgresql://reader:${SHOP_PASSWORD}@db/shop", None),
        ("${DATABASE_URL}", None),
    ],
)
def test_a_url_stands_in_place_of_the_parts(url, password):
    source = load(Starter(url=url, variable="SHOP_PASSWORD")).source("source_to_lake")
    assert source.host is None
    found = source.password and source.password.get_secret_value()
    assert found == password


@pytest.mark.parametrize(
    "starter",
    [
        Starter(url="postgresql://reader:hunter2@db/shop"),
        Starter(url="postgresql://reader@db/shop?password=hunter2"),
        Starter(url="postgresql://reader@db/shop?sslpassword=hunter2"),
        Starter(url="host=db password=hunter2"),
        Starter(url="postgresql://reader:hunter2@[db/shop"),
        Starter(url="postgresql://reader:x${A}hunter2@db/shop"),
        Starter(host="db", database="shop", user="reader", variable="hunter2!"),
    ],
    ids=lambda starter: starter.url or "variable",
)
def test_invariant_14_a_password_is_refused_and_not_repeated(starter):
    with pytest.raises(ConfigError) as caught:
        starter_text(starter)
    error: BaseException | None = caught.value
    assert caught.value.hint
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$"), min_size=1))
def test_any_text_is_read_back_as_it_was_given(text):
    starter = Starter(host=text, database=text, user=text, location=f"s3://{text}")
    settings = load(starter)
    source = settings.source("source_to_lake")
    assert (source.host, source.database, source.user) == (text, text, text)
    assert isinstance(settings.connections["lake"], DeltaConnection)
    assert settings.connections["lake"].location == f"s3://{text}"


@pytest.mark.parametrize("text", ["true", "null", "12", "1.5", "a: b", "# no", "2024-01-01", "~"])
def test_what_yaml_would_take_for_something_else_is_quoted(text):
    assert quoted(text) == f'"{text}"'


def test_init_does_not_overwrite_unless_told(command_line):
    file = command_line.folder / "headrace.yaml"
    file.write_text("mine")
    arguments = ("init", "--host=db", "--database=shop", "--user=reader")
    refused = command_line.inside(*arguments)
    assert (refused.code, file.read_text()) == (2, "mine")
    assert "--force" in refused.err
    assert command_line.inside(*arguments, "--force").code == 0
    assert "host: db" in file.read_text()


def test_init_without_a_terminal_names_the_option_it_misses(command_line):
    done = command_line.inside("init", "--host=db")
    assert done.code == 2
    assert "--database is missing" in done.err
    assert not (command_line.folder / "headrace.yaml").exists()


def test_init_into_a_folder_that_is_not_there_is_wrong_use(command_line):
    done = command_line.inside(
        "init", "--source-url=postgresql://a@b/c", "-c", "none/headrace.yaml"
    )
    assert done.code == 2
    assert "none/headrace.yaml cannot be written" in done.err


# -- from Delta tables to Postgres -----------------------------------------------------------------

REVERSE = replace(PARTS, reverse=True, tables="crm.customers", key=("id", "Region"))


def test_in_reverse_postgres_is_the_destination_and_the_key_is_named():
    settings = load(REVERSE)
    (sync,) = settings.syncs()
    assert (sync.source_connection.location, sync.destination_connection.host) == (
        "/project/lake",
        "db",
    )
    (entry,) = sync.pipeline.tables
    assert (entry.source, entry.key) == ("crm.customers", ("id", "Region"))


def test_every_line_that_the_reverse_file_only_shows_is_valid_too():
    text = starter_text(replace(REVERSE, tables="crm.*"))
    head, pipelines = text.split("pipelines:")
    shown = re.sub(r"(?m)^( +)# ", r"\1", pipelines)
    assert shown.count("#") < pipelines.count("#") - 10
    variables = {**VARIABLES, "KEY": "pepper"}
    settings = parse(f"{head}pipelines:{shown}", "headrace.yaml", Path("/project"), variables)
    assert settings.syncs()[0].pipeline.tables[1].expect is not None


def test_in_reverse_no_password_is_written_either():
    with pytest.raises(ConfigError, match="holds a password"):
        starter_text(replace(REVERSE, url="postgresql://a:hunter2@b/c"))
