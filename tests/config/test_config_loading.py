"""What a valid headrace.yaml becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_files import EVERYTHING, FILE, FOLDER, SECRET, edited, settings_of
from pydantic import ValidationError

from headrace.config import DeltaConnection, PostgresConnection, load
from headrace.errors import ConfigError


def test_defaults_are_those_of_the_documentation():
    settings = settings_of()
    assert settings.state == "/projects/shop/.headrace"
    assert settings.pipelines["shop_to_lake"].schedule == "continuous"
    source = settings.source("shop_to_lake")
    assert (source.host, source.port, source.sslmode) == ("db.example.com", 5432, None)
    assert source.password.get_secret_value() == SECRET
    assert settings.destination("shop_to_lake") == DeltaConnection(
        type="delta", location="/projects/shop/lake"
    )


def test_every_key_is_read():
    settings = settings_of(EVERYTHING, PW="a", KEY="b", HOME="/root")
    source, lake = settings.connections["shop"], settings.connections["lake"]
    assert isinstance(source, PostgresConnection)
    assert isinstance(lake, DeltaConnection)
    assert settings.state == "s3://bucket/state"
    assert source.sslrootcert == str(FOLDER / "certs/ca.pem")
    assert source.sslcert == "/etc/client.pem"
    assert source.sslkey == str(Path("~/client.key").expanduser())
    assert lake.location == "s3://bucket/lake"
    assert {k: v.get_secret_value() for k, v in lake.storage_options.items()} == {
        "aws_secret_access_key": "b",
        "aws_region": "eu-central-1",
    }
    first, second, third = settings.pipelines["main"].tables
    assert first.source == "public.*"
    assert (second.name, second.mode, second.key) == ("crm.customers", "scd1", ("id",))
    assert third.exclude


def test_the_system_s_authorities_are_no_path():
    settings = settings_of(edited("user: headrace", "user: headrace\n    sslrootcert: system"))
    assert settings.source("shop_to_lake").sslrootcert == "system"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${A}", "one"),
        ('"x${A}y${B}z"', "xoneytwoz"),
        ("$${A}", "${A}"),
        ("'cost: 5$'", "cost: 5$"),
        ("${DIGITS}", "0123"),
        ("${REFERENCE}", "${A}"),  # a value from the environment is not read again
    ],
)
def test_references_to_the_environment_are_filled_in(written, value):
    variables = {"A": "one", "B": "two", "DIGITS": "0123", "REFERENCE": "${A}"}
    settings = settings_of(edited("${SHOP_PASSWORD}", written), **variables)
    assert settings.source("shop_to_lake").password.get_secret_value() == value


def test_a_port_may_come_from_the_environment():
    text = edited("user: headrace", "user: headrace\n    port: ${DB_PORT}")
    assert settings_of(text, DB_PORT="6543").source("shop_to_lake").port == 6543


def test_aliases_repeat_a_value():
    text = edited("user: headrace", "user: &role headrace")
    other = text.replace(
        "  lake:", "  b: {type: postgres, host: h, database: d, user: *role}\n  lake:"
    )
    assert settings_of(other).connections["b"].user == "headrace"


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        settings_of().state = "elsewhere"


# -- captures --------------------------------------------------------------------------------------


def pipelines(*lines: str) -> str:
    body = "".join(f"  {line}\n" for line in lines)
    return FILE[: FILE.index("  shop_to_lake:")] + body


def test_pipelines_of_one_slot_share_one_capture():
    text = pipelines(
        "a: {source: shop, destination: lake, tables: [public.a]}",
        "b: {source: shop, destination: lake, tables: [public.b], slot: other, publication: p}",
        "c: {source: shop, destination: lake, tables: [public.c], slot: headrace_shop}",
    )
    captures = settings_of(text).captures()
    assert [(c.name, c.slot, c.publication, c.pipelines) for c in captures] == [
        ("shop", "headrace_shop", "headrace_shop", ("a", "c")),
        ("shop.other", "other", "p", ("b",)),
    ]


def test_one_slot_has_one_publication():
    text = pipelines(
        "a: {source: shop, destination: lake, tables: [public.a]}",
        "b: {source: shop, destination: lake, tables: [public.b], publication: p}",
    )
    with pytest.raises(ConfigError, match=r"line 12: pipelines\.b\.publication: p differs from"):
        settings_of(text)


def test_a_default_slot_s_name_is_one_that_postgres_takes():
    text = FILE.replace("shop:", "Shop-EU:").replace("source: shop", "source: Shop-EU")
    (capture,) = settings_of(text).captures()
    assert (capture.name, capture.slot) == ("Shop-EU", "headrace_shop_eu")


# -- files -----------------------------------------------------------------------------------------


def test_a_file_is_read_where_it_lies_whatever_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "headrace.yaml").write_text(f"\ufeff{FILE}", encoding="utf-8")
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    monkeypatch.chdir("/")
    from_afar = load(tmp_path / "headrace.yaml")
    assert from_afar.state == str(tmp_path / ".headrace")
    monkeypatch.chdir(tmp_path)
    assert load().model_dump() == from_afar.model_dump()


def test_a_missing_file_names_the_command_that_writes_one(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist") as caught:
        load(tmp_path / "none.yaml")
    assert caught.value.hint == "headrace init"
    assert caught.value.exit_code == 2


def test_a_folder_and_a_binary_file_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "binary.yaml")
