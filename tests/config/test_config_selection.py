"""Which tables a pipeline carries, and where they go."""

from __future__ import annotations

import pytest
from config_files import edited, settings_of, with_entries

from headrace.config import Route, SelectedTable, select_tables
from headrace.errors import ConfigError
from headrace.model import Delivery, OnDelete, SchemaPolicy, TableId

FOUND = [
    TableId("public", "orders"),
    TableId("public", "customers"),
    TableId("public", "audit_log"),
    TableId("public", "audit_main"),
    TableId("sales", "Orders"),
    TableId("sales", "a.b"),
    TableId("sales", "log[1]"),
]


def select(*entries: str) -> list[SelectedTable]:
    return select_tables(settings_of(with_entries(*entries)), "shop_to_lake", FOUND)


def names(*entries: str) -> list[str]:
    return [str(table.source) for table in select(*entries)]


@pytest.mark.parametrize(
    ("entry", "selected"),
    [
        ("public.orders", ["public.orders"]),
        ("sales.Orders", ["sales.Orders"]),
        ("public.audit_*", ["public.audit_log", "public.audit_main"]),
        ("public.?????s", ["public.orders"]),
        ("public.[oc]*", ["public.customers", "public.orders"]),
        ("'*.[!a]rders'", ["public.orders", "sales.Orders"]),
        ("sales.a.b", ["sales.a.b"]),
        ("sales.log[1]", ["sales.log[1]"]),  # its own name before its meaning as a glob
        ("s*.*", ["sales.Orders", "sales.a.b", "sales.log[1]"]),
    ],
)
def test_an_entry_selects_by_name_or_glob(entry, selected):
    assert names(entry) == selected


def test_no_wildcard_reaches_across_the_dot():
    with pytest.raises(ConfigError, match="matches no table"):
        select("s*.b")


def test_tables_keep_their_names_unless_told_otherwise():
    assert select("public.[oc]*", "{source: public.customers, name: crm.people}") == [
        SelectedTable(TableId("public", "customers"), TableId("crm", "people")),
        SelectedTable(TableId("public", "orders"), TableId("public", "orders")),
    ]


def test_later_entries_refine_earlier_ones():
    (table,) = select(
        "{source: public.orders, key: [a, b], name: x.y}",
        "{source: public.ord*, key: [c]}",
        "public.orders",
    )
    assert (table.target, table.key) == (TableId("x", "y"), ("c",))


def test_how_columns_are_read_is_refined_column_by_column():
    (table,) = select(
        "{source: public.ord*, columns: {as: {at: text, price: text}}}",
        "{source: public.orders, columns: {as: {price: 'decimal(10, 2)'}}}",
    )
    assert table.read_as == {"at": "text", "price": "decimal(10, 2)"}


def test_excluded_tables_are_left_out_until_an_entry_takes_them_in_again():
    out = "{source: public.audit_*, exclude: true}"
    assert names("public.*", out) == ["public.customers", "public.orders"]
    assert names("public.audit_*", out, "public.audit_main") == ["public.audit_main"]


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("public.order", "did you mean public.orders?"),
        ("sales.orders", "did you mean sales.Orders?"),
        ("publik.*", "did you mean public.*?"),
        ("warehouse.*", "check the schema, and that the role may see it"),
        ("{source: public.audit_logs, exclude: true}", "did you mean public.audit_log?"),
    ],
)
def test_an_entry_that_matches_nothing_is_told_with_its_line(entry, hint):
    with pytest.raises(ConfigError, match=r"line 16: .*tables\[1\]\.source: .* matches") as caught:
        select("public.*", entry)
    assert caught.value.hint == hint


def test_a_glob_that_only_excludes_may_match_nothing():
    assert names("public.orders", "{source: public.tmp_*, exclude: true}") == ["public.orders"]


def test_two_tables_cannot_share_a_place():
    with pytest.raises(ConfigError, match=r"line 16: .* would both become public.orders"):
        select("public.*", "{source: sales.Orders, name: public.orders}")


def test_all_entries_that_match_nothing_are_told():
    with pytest.raises(ConfigError) as caught:
        select("public.a", "public.orders", "public.b")
    assert [problem.line for problem in caught.value.context["problems"]] == [15, 17]


def test_postgres_to_postgres_keeps_the_types_of_its_source():
    other = "  b: {type: postgres, host: h, database: d, user: u}\npipelines:"
    text = edited("destination: lake", "destination: b").replace("pipelines:", other)
    text = text.replace("- public.*", "- {source: public.*, on_delete: ignore, take_over: true}")
    settings = settings_of(text)
    (table,) = select_tables(settings, "shop_to_lake", [TableId("public", "a")])
    assert table.delivery == Delivery(
        native_types=True,
        on_delete=OnDelete.IGNORE,
        take_over=True,
        schema_policy=SchemaPolicy.EXTEND,
        drop_columns=True,
    )
    assert settings.route("shop_to_lake") is Route.TRANSFER
    assert [c.pipelines for c in settings.captures()] == [("shop_to_lake",)]
    assert settings.syncs() == ()
