"""Pipelines from Delta tables to Postgres: what the file says, and what it cannot."""

from __future__ import annotations

import json
from typing import get_args

import fastjsonschema
import pytest
import yaml
from config_files import FILE, SYNC, edited, settings_of, sync, sync_entries

from headrace.config import (
    DeltaConnection,
    PostgresConnection,
    Route,
    SelectedTable,
    Settings,
    json_schema,
    select_tables,
)
from headrace.config.entries import ExpectationEntry, TableEntry
from headrace.config.settings import Pipeline
from headrace.errors import ConfigError
from headrace.model import (
    Delivery,
    Expectation,
    Mask,
    MaskKind,
    Metadata,
    Mode,
    OnBreach,
    OnDelete,
    RowRules,
    SchemaPolicy,
    Shape,
    TableId,
)

KEY = "p3pper-and-salt"
FOUND = [TableId("crm", name) for name in ("clicks", "orders", "profiles")]


def settings(text: str = SYNC) -> Settings:
    return settings_of(text, KEY=KEY)


def selected(*entries: str) -> dict[str, SelectedTable]:
    text = sync_entries(*entries) if entries else SYNC
    return {t.source.name: t for t in select_tables(settings(text), "lake_to_shop", FOUND)}


# -- what it becomes -------------------------------------------------------------------------------


def test_a_sync_joins_a_delta_connection_and_a_postgres_connection():
    (found,) = settings().syncs()
    assert (found.name, found.source, found.destination) == ("lake_to_shop", "lake", "shop")
    assert found.source_connection == DeltaConnection(type="delta", location="uc://main")
    assert isinstance(found.destination_connection, PostgresConnection)
    assert found.pipeline == settings().pipelines["lake_to_shop"]
    assert settings().route("lake_to_shop") is Route.SYNC
    assert settings().captures() == ()


def test_every_key_of_a_pipeline_is_read():
    pipeline = settings().pipelines["lake_to_shop"]
    assert (pipeline.schedule, pipeline.poll) == ("5m", 0.25)
    assert pipeline.throttle.max_rows_per_second == 500
    assert pipeline.throttle.max_bytes_per_second == 9000
    assert pipeline.throttle.max_latency == 0.2


def test_every_key_of_a_table_reaches_what_carries_it_out():
    tables = selected()
    assert tables["profiles"] == SelectedTable(
        source=TableId("crm", "profiles"),
        target=TableId("app", "profiles"),
        key=("customer_id",),
        shape=Shape(),
        delivery=Delivery(
            on_delete=OnDelete.MARK,
            types={"email": "citext"},
            rebuild_above=0.5,
            quarantine_rows=20,
            take_over=True,
            schema_policy=SchemaPolicy.FREEZE,
            drop_columns=True,
        ),
        rules=RowRules(
            exclude=("ssn",),
            rename={"mail": "email"},
            masks={
                "mail": Mask(MaskKind.SHA256),
                "phone": Mask(MaskKind.HMAC, key=KEY),
                "name": Mask(MaskKind.REDACT),
                "zip": Mask(MaskKind.TRUNCATE, length=3),
                "notes": Mask(MaskKind.NULL),
                "remarks": Mask(MaskKind.NULL),
            },
            where="segment <> 'internal'",
            expectations=(
                Expectation("positive", "spend >= 0", OnBreach.WARN),
                Expectation("adult", "age >= 18", OnBreach.QUARANTINE),
            ),
            newest_by="updated_at",
        ),
    )
    assert (tables["orders"].key, tables["orders"].rules) == (("id",), RowRules())
    assert tables["clicks"].shape.mode is Mode.APPEND


def test_defaults_are_those_of_the_delivery():
    head = "\n".join(line for line in SYNC.splitlines()[:8] if "lake:" not in line)
    text = head.replace("connections:", "connections:\n  lake: {type: delta, location: ./l}")
    text += "\n    tables: [{source: crm.orders, key: [id]}]\n"
    (table,) = select_tables(settings(text), "lake_to_shop", FOUND)
    assert (table.delivery, table.rules) == (Delivery(), RowRules())
    assert settings(text).pipelines["lake_to_shop"].poll == 1.0


def test_later_entries_refine_earlier_ones_key_by_key():
    table = selected(
        "{source: crm.*, key: [id], where: a, mask: {a: sha256, b: redact}, expect: {x: p, y: q}}",
        "{source: crm.profiles, where: b, mask: {b: sha256}, expect: {y: r}, take_over: true}",
        "{source: crm.prof*, take_over: false}",
    )["profiles"]
    assert table.rules.where == "b"
    assert table.rules.masks == {"a": Mask(MaskKind.SHA256), "b": Mask(MaskKind.SHA256)}
    assert [(e.name, e.sql) for e in table.rules.expectations] == [("x", "p"), ("y", "r")]
    assert table.delivery.take_over is False


def test_columns_are_refined_and_include_takes_the_place_of_exclude():
    table = selected(
        "{source: crm.*, key: [id], columns: {exclude: [a], rename: {b: c}}}",
        "{source: crm.profiles, columns: {include: [id, b], types: {c: citext}}}",
        "{source: crm.profiles, columns: {rename: {id: number}}}",
    )["profiles"]
    assert (table.rules.include, table.rules.exclude) == (("id", "b"), ())
    assert table.rules.rename == {"b": "c", "id": "number"}
    assert table.delivery.types == {"c": "citext"}


def test_an_entry_that_appends_leaves_behind_what_one_row_per_key_has():
    table = selected(
        "{source: crm.*, key: [id], on_delete: mark, newest_by: at}",
        "{source: crm.clicks, mode: append}",
    )["clicks"]
    assert (table.delivery.on_delete, table.rules.newest_by) == (OnDelete.DELETE, None)


def test_rows_that_stay_in_a_lake_are_kept_by_the_engine_and_in_a_database_by_itself():
    text = edited("- public.*", "- {source: public.*, on_delete: mark, metadata: [op, lsn]}")
    (table,) = select_tables(settings_of(text), "shop_to_lake", [TableId("public", "a")])
    metadata = (Metadata.OP, Metadata.LSN)
    assert table.shape == Shape(metadata=metadata, on_delete=OnDelete.MARK)
    synced = selected("{source: crm.*, key: [id], on_delete: mark}")["clicks"]
    assert (synced.shape.on_delete, synced.delivery.on_delete) == (OnDelete.DELETE, OnDelete.MARK)


def test_the_words_of_the_file_are_those_of_the_model():
    def words(model, name):
        part = model.model_fields[name].annotation
        return {w for p in (part, *get_args(part)) for w in get_args(p) if isinstance(w, str)}

    assert words(TableEntry, "on_delete") == {choice.value for choice in OnDelete}
    assert words(ExpectationEntry, "on_breach") == {choice.value for choice in OnBreach}
    policies = {choice.value for choice in SchemaPolicy}
    assert words(Pipeline, "schema_policy") == policies - {SchemaPolicy.EXTEND.value}  # a route's


@pytest.mark.parametrize(
    ("written", "seconds"), [("100ms", 0.1), ("1.5s", 1.5), ("2m", 120.0), ("1h", 3600.0)]
)
def test_a_duration_has_a_unit(written, seconds):
    assert settings(sync("poll: 250ms", f"poll: {written}")).syncs()[0].pipeline.poll == seconds


def test_the_schema_accepts_it():
    fastjsonschema.validate(json_schema(), yaml.safe_load(SYNC))


def test_14_the_key_of_a_mask_shows_nowhere():
    made = settings()
    tables = select_tables(made, "lake_to_shop", FOUND)
    shown = [repr(made), made.model_dump_json(), str(made.syncs()), str(tables)]
    assert [text for text in shown if KEY in text] == []
    assert tables[-1].rules.masks["phone"].key == KEY


# -- what it cannot say ----------------------------------------------------------------------------

PLACE = "pipelines.lake_to_shop"
ENTRY = f"{PLACE}.tables[0]"
PROFILES = f"{PLACE}.tables[1]"

FAULTS = {
    # text, line, where, what, hint
    "poll without unit": (sync("250ms", "1"), 10, f"{PLACE}.poll", "duration such as", ""),
    "poll too often": (sync("250ms", "50ms"), 10, f"{PLACE}.poll", "of at least 100ms", ""),
    "policy": (sync("freeze", "freez"), 11, f"{PLACE}.schema", "not valid", "mean freeze?"),
    "share": (sync("0.5", "30"), 13, f"{PLACE}.rebuild_above", "from 0 to 1, found 30", ""),
    "share is yes": (sync("0.5", "yes"), 13, f"{PLACE}.rebuild_above", "a number, found yes", ""),
    "budget": (sync("20}", "-1}"), 14, f"{PLACE}.quarantine.max_rows", "of at least 0", ""),
    "unknown in quarantine": (
        sync("{max_rows: 20}", "{max_row: 20}"),
        14,
        f"{PLACE}.quarantine.max_row",
        "unknown key",
        "mean max_rows?",
    ),
    "unknown in throttle": (
        sync("max_latency", "latency"),
        15,
        f"{PLACE}.throttle.latency",
        "unknown key",
        "mean max_latency?",
    ),
    "no rows a second": (
        sync("second: 500", "second: 0"),
        15,
        f"{PLACE}.throttle.max_rows_per_second",
        "a number of at least 1, found 0",
        "",
    ),
    "mask": (sync("mail: sha256", "mail: sha265"), 27, f"{PROFILES}.mask.mail", "sha265", "sha256"),
    "mask without its key": (
        sync('{hmac: "${KEY}"}', "hmac"),
        28,
        f"{PROFILES}.mask.phone",
        "hmac is not valid",
        '{hmac: "${KEY}"}',
    ),
    "mask without value": (
        sync("remarks: null", "remarks:"),
        32,
        f"{PROFILES}.mask.remarks",
        "no value",
        "",
    ),
    "unknown mask": (
        sync("{truncate: 3}", "{trunc: 3}"),
        30,
        f"{PROFILES}.mask.zip.trunc",
        "unknown key",
        "mean truncate?",
    ),
    "two masks in one": (
        sync("{truncate: 3}", "{truncate: 3, hmac: a}"),
        30,
        f"{PROFILES}.mask.zip",
        "expected hmac or truncate",
        "",
    ),
    "nothing left": (
        sync("{truncate: 3}", "{truncate: 0}"),
        30,
        f"{PROFILES}.mask.zip.truncate",
        "of at least 1",
        "",
    ),
    "breach": (
        sync("quarantine}\n", "quarantined}\n"),
        35,
        f"{PROFILES}.expect.adult.on_breach",
        "quarantined is not valid",
        "mean quarantine?",
    ),
    "name of a rule": (
        sync("positive:", "is positive:"),
        34,
        f"{PROFILES}.expect.is positive",
        "may hold letters, digits",
        "",
    ),
    "on_delete": (
        sync("on_delete: mark", "on_delete: flag"),
        23,
        f"{PROFILES}.on_delete",
        "flag",
        "choose one of",
    ),
    "key twice": (sync("[id]", "[id, id]"), 18, f"{ENTRY}.key", "names a column twice", ""),
    "include and exclude": (
        sync("{exclude: [ssn]", "{include: [a], exclude: [ssn]"),
        24,
        f"{PROFILES}.columns",
        "keep one",
        "",
    ),
    "a name for two": (
        sync("{mail: email}", "{mail: email, post: email}"),
        24,
        f"{PROFILES}.columns",
        "rename gives email to 2 columns",
        "",
    ),
    "slot": (sync("schema: freeze", "slot: a"), 11, f"{PLACE}.slot", "for a Postgres source", ""),
    "publication": (
        sync("schema: freeze", "publication: a"),
        11,
        f"{PLACE}.publication",
        "publication is for a Postgres source",
        "remove it",
    ),
    "history": (
        sync("mode: scd1", "mode: scd2"),
        21,
        f"{PROFILES}.mode",
        "the mode scd2 is not yet supported from Delta tables to Postgres",
        "",
    ),
    "no key": (
        sync_entries("crm.orders"),
        17,
        ENTRY,
        "crm.orders needs a key",
        "add key: [id]",
    ),
    "append and on_delete": (
        sync_entries("{source: crm.a, mode: append, on_delete: mark}"),
        17,
        f"{ENTRY}.on_delete",
        "no meaning with mode append",
        "remove on_delete",
    ),
    "key left out": (
        sync("exclude: [ssn]", "exclude: [customer_id]"),
        24,
        f"{PROFILES}.columns.exclude",
        "customer_id is part of the key",
        "",
    ),
    "key not let in": (
        sync("exclude: [ssn]", "include: [mail]"),
        24,
        f"{PROFILES}.columns.include",
        "customer_id is part of the key",
        "",
    ),
    "key made one": (
        sync("name: redact", "customer_id: redact"),
        29,
        f"{PROFILES}.mask.customer_id",
        "would make rows of different keys one",
        "sha256",
    ),
    "a mark's column": (
        sync("{mail: email}", "{mail: _deleted_at}"),
        24,
        f"{PROFILES}.columns.rename",
        "_deleted_at is a column that Headrace adds",
        "another name",
    ),
    "a feed's column": (
        sync_entries("{source: a.b, mode: append, columns: {rename: {v: _commit_version}}}"),
        17,
        f"{ENTRY}.columns.rename",
        "_commit_version is a column that Headrace adds",
        "",
    ),
    "the type of a former name": (
        sync("{email: citext}", "{mail: citext}"),
        24,
        f"{PROFILES}.columns.types.mail",
        "mail is called email at the destination",
        "write email:",
    ),
    "the type of nothing": (
        sync("{email: citext}", "{ssn: citext}"),
        24,
        f"{PROFILES}.columns.types.ssn",
        "ssn does not reach the destination",
        "",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_sync_is_told_with_its_line_and_a_remedy(name):
    text, line, where, what, hint = FAULTS[name]
    with pytest.raises(ConfigError) as caught:
        settings(text)
    first = caught.value.context["problems"][0]
    assert (first.line, first.where) == (line, where)
    assert what in first.what
    assert hint in first.hint
    assert caught.value.hint
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("poll: 1s", "poll is for a Delta source"),
        ("rebuild_above: 0.1", "rebuild_above is for a Postgres destination"),
        ("quarantine: {max_rows: 1}", "quarantine is for a Postgres destination"),
        ("throttle: {max_rows_per_second: 1}", "throttle is for a Postgres destination"),
    ],
)
def test_what_a_pipeline_has_no_use_for_is_refused_with_the_reason(key, why):
    with pytest.raises(ConfigError) as caught:
        settings_of(edited("    tables:", f"    {key}\n    tables:"))
    assert why in caught.value.message
    assert caught.value.context["line"] == 14


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("newest_by: a", "newest_by is for a Delta source"),
        ("take_over: true", "take_over is for a Postgres destination"),
        ("expect: {a: b}", "expect is not yet supported"),
    ],
)
def test_what_an_entry_has_no_use_for_is_refused_with_the_reason(entry, why):
    with pytest.raises(ConfigError) as caught:
        settings_of(edited("- public.*", f"- {{source: public.*, {entry}}}"))
    assert why in caught.value.message


# -- what only the tables that are there can tell --------------------------------------------------


def test_a_key_may_come_from_a_later_glob():
    tables = selected("crm.orders", "{source: crm.*, key: [id]}")
    assert tables["orders"].key == ("id",)


def test_a_table_that_no_entry_gives_a_key_is_told_with_its_entry():
    with pytest.raises(ConfigError) as caught:
        selected("{source: crm.profiles, key: [id]}", "crm.*")
    problems = caught.value.context["problems"]
    assert [(p.line, p.what) for p in problems] == [
        (18, "crm.clicks needs a key: a Delta table declares none"),
        (18, "crm.orders needs a key: a Delta table declares none"),
    ]


def test_a_contradiction_is_told_where_it_was_written():
    with pytest.raises(ConfigError) as caught:
        selected(
            "{source: crm.*, key: [id], mask: {id: redact}}",
            "{source: crm.clicks, mask: {id: sha256}}",
            "{source: crm.*, on_delete: mark}",
        )
    problems = caught.value.context["problems"]
    assert {(p.line, p.where) for p in problems} == {(17, f"{ENTRY}.mask.id")}


def test_a_table_that_is_missing_is_looked_for_where_tables_lie():
    with pytest.raises(ConfigError, match="matches no table") as caught:
        selected("{source: warehouse.*, key: [id]}")
    assert "_delta_log is there" in caught.value.hint


def test_settings_of_both_directions_stand_in_one_file():
    back = """\
  back:
    source: lake
    destination: shop
    tables: [{source: public.scores, key: [id]}]
"""
    both = settings_of(FILE + back)
    assert [capture.pipelines for capture in both.captures()] == [("shop_to_lake",)]
    assert [found.name for found in both.syncs()] == ["back"]
    assert json.loads(both.model_dump_json())["pipelines"]["back"]["source"] == "lake"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("250ms", "1"),
        ("250ms", "often"),
        ("freeze", "freez"),
        ("0.5", "30"),
        ("max_rows: 20", "max_row: 20"),
        ("mail: sha256", "mail: sha265"),
        ("{truncate: 3}", "{truncate: 0}"),
        ("{truncate: 3}", "{trunc: 3}"),
        ("on_breach: quarantine", "on_breach: drop"),
        ("on_delete: mark", "on_delete: flag"),
    ],
)
def test_the_schema_refuses_what_loading_refuses_of_a_sync(old, new):
    text = sync(old, new)
    with pytest.raises(ConfigError):
        settings(text)
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        fastjsonschema.validate(json_schema(), yaml.safe_load(text))
