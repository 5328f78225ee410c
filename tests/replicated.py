"""A project for one test, and the proof that its destination equals its source.

What is read at the destination is read by the deltalake library, what is read in the change log by
`json`: not by the code that wrote them.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from deltalake import DeltaTable, QueryBuilder
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from headrace.connectors.delta.vectors import z85_encode
from headrace.model import Lsn
from headrace.testing.database import Database
from workload import TABLES

SLOT = "headrace_shop"  # the default slot and publication of a connection named shop
PUBLICATION = SLOT

Row = tuple[Any, ...]


def write_project(folder: Path, dsn: str, **connection: Any) -> Path:
    """A headrace.yaml that carries every table of schema `public` to `folder`/lake; its path.

    `connection` overrides parts of the connection: host, port, database, user, password.
    """
    given = conninfo_to_dict(dsn)
    parts = {name: given[name] for name in ("host", "port", "user", "password")}
    shop = {"type": "postgres", **parts, "database": given["dbname"], **connection}
    shop["port"] = int(shop["port"])
    pipeline = {"source": "shop", "destination": "lake", "tables": ["public.*"]}
    settings = {
        "version": 1,
        "state": "./state",
        "connections": {"shop": shop, "lake": {"type": "delta", "location": "./lake"}},
        "pipelines": {"shop_to_lake": pipeline},
    }
    path = folder / "headrace.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


# -- source and destination ------------------------------------------------------------------------


def source_rows(database: Database, table: str) -> Counter[Row]:
    """All rows of a table at the source, columns by name."""
    with database.connect() as connection:
        cursor = connection.execute(sql.SQL("select * from {}").format(sql.Identifier(table)))
        names = [column.name for column in cursor.description or ()]
        return Counter(_ordered(names, row) for row in cursor)


def destination_rows(folder: Path, table: str) -> Counter[Row]:
    """All rows of a table at the destination, columns by name."""
    delta = DeltaTable(folder / "lake" / "public" / table)
    found = pa.table(QueryBuilder().register("t", delta).execute("select * from t"))
    rows = zip(*(column.to_pylist() for column in found.columns), strict=True)
    return Counter(_ordered(found.column_names, row) for row in rows)


def _ordered(names: Iterable[str], row: Row) -> Row:
    return tuple(value for _, value in sorted(zip(names, row, strict=True), key=lambda c: c[0]))


def assert_equal(database: Database, folder: Path, tables: Iterable[str] = TABLES) -> None:
    """Invariant 4: the tables are equal, as multisets of rows with exact values."""
    for table in tables:
        source, destination = source_rows(database, table), destination_rows(folder, table)
        missing, surplus = source - destination, destination - source
        assert missing == surplus == Counter(), (
            f"{table}: {missing.total()} rows missing, {surplus.total()} too many;"
            f" first missing {_first(missing)}, first surplus {_first(surplus)}"
        )


def _first(rows: Counter[Row]) -> str:
    return str(next(iter(rows), None))[:300]


# -- what is acknowledged and what is durable ------------------------------------------------------


def manifests(folder: Path) -> list[dict[str, Any]]:
    """The commits of the change log, in order."""
    paths = sorted((folder / "state" / "log" / "shop" / "commits").glob("*.json"))
    return [json.loads(path.read_bytes()) for path in paths if not path.name.startswith(".")]


def durable_lsn(folder: Path) -> Lsn:
    """How far the change log durably holds the source; 0/0 where it holds nothing."""
    commits = manifests(folder)
    return Lsn.parse(commits[-1]["to_lsn"]) if commits else Lsn(0)


def acknowledged_lsn(database: Database) -> Lsn | None:
    """What the source was told to be durable; None where there is no slot."""
    rows = database.execute(
        "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s", [SLOT]
    )
    return Lsn.parse(rows[0][0]) if rows else None


def assert_acknowledged_is_durable(database: Database, folder: Path) -> None:
    """Invariant 1. A log without commits has acknowledged nothing: its slot stands at its birth."""
    acknowledged, durable = acknowledged_lsn(database), durable_lsn(folder)
    if durable and acknowledged is not None:
        assert acknowledged <= durable


def unnamed_in_log(folder: Path) -> set[Path]:
    """Data files of the change log that no manifest names, half-written ones too."""
    log, state = folder / "state" / "log" / "shop", folder / "state"
    named = {
        state / file["path"]
        for manifest in manifests(folder)
        for part in (manifest, *manifest["snapshots"])
        for file in part["files"]
    }
    parts = (log / "changes", log / "snapshots")
    return {path for part in parts for path in part.rglob("*") if path.is_file()} - named


def unnamed_in_lake(folder: Path) -> set[Path]:
    """Files in tables' folders that no version of the Delta log names."""
    found = set()
    for table in (folder / "lake" / "public").glob("*"):
        log = b"".join(path.read_bytes() for path in (table / "_delta_log").glob("*.json"))
        found |= {path for path in table.glob("*.*") if not _named(path, log)}
    return found


def _named(path: Path, log: bytes) -> bool:
    """A deletion vector's file is named by its UUID in Z85, others by their names."""
    vector = re.fullmatch(r"deletion_vector_(.*)\.bin", path.name)
    name = z85_encode(uuid.UUID(vector[1]).bytes) if vector else path.name
    return name.encode() in log
