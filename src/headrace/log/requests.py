"""What somebody asks of the run that holds a log, or of the next one: files beside the commits.

A request is put whole and removed by the run once what it asks is recorded elsewhere, so that
neither side needs the other to be alive.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.errors import ObjectMissingError
from headrace.log.layout import Layout
from headrace.log.manifest import FORMAT, parse_document
from headrace.log.storage import Storage
from headrace.model import TableId


@dataclass(frozen=True)
class RefreshRequest:
    """Copy these tables of the source anew; `why` is told in notices."""

    path: str
    tables: tuple[TableId, ...]
    why: str


def put_request(
    storage: Storage, layout: Layout, tables: Collection[TableId], why: str
) -> RefreshRequest:
    """Ask for a refresh; durable when this returns."""
    path = f"{layout.requests}/{uuid.uuid4()}.json"
    named = [[table.schema, table.name] for table in tables]
    data = {"format": FORMAT, "tables": named, "why": why}
    storage.put(path, json.dumps(data, ensure_ascii=False).encode(), create=True)
    return RefreshRequest(path, tuple(tables), why)


def pending_requests(storage: Storage, layout: Layout) -> list[RefreshRequest]:
    """What is asked and not yet taken up."""
    found = []
    for entry in storage.list(layout.requests):
        try:
            data = storage.get(entry.path)
        except ObjectMissingError:  # just taken back
            continue
        build = partial(_request, entry.path)
        found.append(parse_document(data, storage.location(entry.path), build))
    return found


def _request(path: str, data: dict[str, Any]) -> RefreshRequest:
    tables = tuple(TableId(schema, name) for schema, name in data["tables"])
    return RefreshRequest(path, tables, str(data["why"]))
