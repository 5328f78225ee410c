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


# Each key of a pipeline from Delta tables to Postgres.
SYNC = """\
version: 1
connections:
  lake: {type: delta, location: uc://main}
  shop: {type: postgres, url: postgresql://headrace@db/shop}
pipelines:
  lake_to_shop:
    source: lake
    destination: shop
    schedule: 5m
    poll: 250ms
    schema: freeze
    drop_columns: true
    rebuild_above: 0.5
    quarantine: {max_rows: 20}
    throttle: {max_rows_per_second: 500, max_bytes_per_second: 9000, max_latency: 200ms}
    tables:
      - source: crm.*
        key: [id]
      - source: crm.profiles
        name: app.profiles
        mode: scd1
        key: [customer_id]
        on_delete: mark
        columns: {exclude: [ssn], rename: {mail: email}, types: {email: citext}}
        where: "segment <> 'internal'"
        mask:
          mail: sha256
          phone: {hmac: "${KEY}"}
          name: redact
          zip: {truncate: 3}
          notes: "null"
          remarks: null
        expect:
          positive: "spend >= 0"
          adult: {sql: "age >= 18", on_breach: quarantine}
        newest_by: updated_at
        take_over: true
      - {source: crm.clicks, mode: append}
"""


def sync(old: str, new: str) -> str:
    """SYNC with `old`, which it holds once, replaced."""
    assert SYNC.count(old) == 1, old
    return SYNC.replace(old, new)


def sync_entries(*entries: str) -> str:
    """SYNC with these entries under `tables:`, the first of them in line 17."""
    return SYNC[: SYNC.index("      - source")] + "".join(f"      - {e}\n" for e in entries)
