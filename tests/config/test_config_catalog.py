"""A Unity Catalog as destination: where tables lie, what they are called, what it cannot take."""

from __future__ import annotations

import pytest
from config_files import edited, settings_of

from headrace.config import select_tables
from headrace.errors import ConfigError
from headrace.model import TableId


def to_catalog(location: str, more: str = "") -> str:
    return edited("location: ./lake", f"location: {location}{more}")


def test_a_storage_root_is_a_path_beside_the_file_or_a_url():
    roots = [
        settings_of(to_catalog("uc://main.crm", f", storage_root: {root}")).destination(
            "shop_to_lake"
        )
        for root in ("tables", "s3://bucket/tables")
    ]
    assert [r.storage_root for r in roots] == ["/projects/shop/tables", "s3://bucket/tables"]


def test_a_storage_root_is_for_a_catalog_only():
    with pytest.raises(ConfigError, match="storage_root is for uc://"):
        settings_of(to_catalog("./lake", ", storage_root: tables"))


def test_a_location_that_names_a_schema_takes_all_tables():
    found = [TableId("public", "orders"), TableId("public", "people")]
    for location, schema in (("uc://main.crm", "crm"), ("uc://main", "public")):
        selected = select_tables(settings_of(to_catalog(location)), "shop_to_lake", found)
        assert [t.target for t in selected] == [
            TableId(schema, "orders"),
            TableId(schema, "people"),
        ]


def test_tables_of_one_name_cannot_share_the_one_schema():
    text = to_catalog("uc://main.crm").replace("public.*", "'*.orders'")
    found = [TableId("public", "orders"), TableId("sales", "orders")]
    with pytest.raises(ConfigError, match=r"would both become crm\.orders") as caught:
        select_tables(settings_of(text), "shop_to_lake", found)
    assert "name:" in caught.value.hint


@pytest.mark.parametrize(
    ("entry", "state", "why"),
    [
        ("{source: public.a, name: ops.a}", "", "ops.a is not in crm"),
        ("public.a", "\nstate: s3://bucket/state", "with state on an object store"),
    ],
)
def test_what_a_catalog_cannot_take_is_refused(entry, state, why):
    text = to_catalog("uc://main.crm").replace("public.*", entry) + state
    with pytest.raises(ConfigError) as caught:
        settings_of(text)
    assert why in caught.value.message
