"""A small valid headrace.yaml, and files that differ from it in one place."""

from __future__ import annotations

from pathlib import Path

from headrace.config import Settings, parse

FOLDER = Path("/projects/shop")
SECRET = "tr0ub4dor&3"
FILE = """\
version: 1
connections:
  shop:
    type: postgres
    host: db.example.com
    database: shop
    user: headrace
    password: ${SHOP_PASSWORD}
  lake: {type: delta, location: ./lake}
pipelines:
  shop_to_lake:
    source: shop
    destination: lake
    tables:
      - public.*
"""

# Each key that this version can serve.
EVERYTHING = """\
version: 1
state: s3://bucket/state
connections:
  shop:
    type: postgres
    url: postgresql://headrace@db/shop
    password: ${PW}
    sslmode: verify-full
    sslrootcert: certs/ca.pem
    sslcert: /etc/client.pem
    sslkey: ~/client.key
  lake:
    type: delta
    location: s3://bucket/lake
    storage_options: {aws_secret_access_key: "${KEY}", aws_region: eu-central-1}
pipelines:
  main:
    source: shop
    destination: lake
    schedule: continuous
    slot: headrace_main
    publication: Head Race
    tables:
      - source: public.*
      - source: public.customers
        name: crm.customers
        mode: scd1
        key: [id]
      - source: public.audit_log
        exclude: true
"""


def edited(old: str, new: str) -> str:
    """The file with `old`, which it holds once, replaced."""
    assert FILE.count(old) == 1, old
    return FILE.replace(old, new)


def with_entries(*entries: str) -> str:
    """The file with these entries under `tables:`."""
    return edited("      - public.*\n", "".join(f"      - {entry}\n" for entry in entries))


def settings_of(text: str = FILE, **environment: str) -> Settings:
    variables = {"SHOP_PASSWORD": SECRET, **environment}
    return parse(text, "headrace.yaml", FOLDER, variables)
