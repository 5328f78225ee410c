"""Invariant 14: secrets of headrace.yaml appear in no error, no repr and no dump."""

from __future__ import annotations

import traceback

import pytest
from config_files import SECRET, edited, settings_of

from headrace.errors import ConfigError

PASSWORD = "password: ${SHOP_PASSWORD}"


def test_14_settings_show_no_secret():
    text = edited(PASSWORD, f"password: {SECRET}").replace(
        "location: ./lake", f'location: ./lake, storage_options: {{key: "{SECRET}"}}'
    )
    url = edited(
        "    host: db.example.com\n    database: shop\n    user: headrace\n",
        f"    url: postgresql://u:{SECRET}@h/d\n",
    )
    for settings in (settings_of(text), settings_of(url)):
        shown = [
            repr(settings),
            str(settings),
            settings.model_dump_json(),
            str(settings.captures()),
        ]
        assert [text for text in shown if SECRET in text] == []


@pytest.mark.parametrize(
    "text",
    [
        edited(PASSWORD, f"passwrd: {SECRET}"),
        edited(PASSWORD, f"password: [{SECRET}]"),
        edited(PASSWORD, f"password: {{{SECRET}: 1}}"),
        edited(PASSWORD, f'password: "{SECRET}'),
        edited(PASSWORD, f"password: {SECRET}: x"),
        edited(PASSWORD, f"password: *{SECRET}"),
        edited(PASSWORD, f"password: !{SECRET}"),
        edited(PASSWORD, f"url: mysql://u:{SECRET}@h/d"),
        edited(PASSWORD, f"url: postgresql://u:{SECRET}@h/d"),
        edited(PASSWORD, f"password: {SECRET}\n    port: x"),
        edited(PASSWORD, "password: 1234567890123"),
        edited("location: ./lake", f"location: ./lake, storage_options: {{key: [{SECRET}]}}"),
        edited("location: ./lake", f"location: ./lake, storage_option: {{key: {SECRET}}}"),
        edited("database: shop", "databas: ${SHOP_PASSWORD}"),
        edited("database: shop", "port: ${SHOP_PASSWORD}"),
    ],
)
def test_14_no_fault_shows_a_secret(text):
    with pytest.raises(ConfigError) as caught:
        settings_of(text)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.context)
    assert SECRET not in shown
    assert "1234567890123" not in shown
    assert caught.value.__context__ is None  # a foreign error would carry the value in its fields
