"""A Unity Catalog for the tests, made after the documented REST API.

The open-source server is not among the packages that tests can install. This stands in for it: it
answers as `api/all.yaml` of unitycatalog 0.6 describes the API (2.1), with that server's error
codes, and refuses what that server refuses in `POST /tables`. Where tables lie is up to the test.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "dapi-s3cr3t-value"
API = "/api/2.1/unity-catalog"
NAME = re.compile(r"[a-zA-Z0-9_@-]+")
TYPES = {
    *("BOOLEAN", "BYTE", "SHORT", "INT", "LONG", "FLOAT", "DOUBLE", "DATE", "TIMESTAMP"),
    *("TIMESTAMP_NTZ", "STRING", "BINARY", "DECIMAL", "ARRAY", "STRUCT", "MAP", "VARIANT"),
}
Answer = tuple[int, Any]


class RefusedError(Exception):
    """An answer that is an error: its HTTP status and `error_code`."""


@dataclass
class UnityServer:
    """What the server knows, what it was asked, and how it is to fail."""

    schemas: set[str] = field(default_factory=set)  # catalog.schema
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)  # TableInfo by full name
    credentials: dict[str, Any] = field(default_factory=dict)
    lifetime: float = 3600  # seconds that credentials last
    failure: int = 0  # the HTTP status of every answer
    message: str = "x"  # that comes with it
    token: str = TOKEN  # that it takes
    asked: list[str] = field(default_factory=list)
    lent: list[str] = field(default_factory=list)  # "READ full.name", in their order
    url: str = ""

    def options(self, **more: str) -> dict[str, str]:
        """The storage options of a client."""
        return {
            "databricks_host": self.url,
            "databricks_token": TOKEN,
            "unity_allow_http_url": "true",
            **more,
        }

    def add(self, full: str, url: str, **more: Any) -> None:
        """A table that somebody has registered."""
        catalog, schema, name = full.split(".")
        self.schemas.add(f"{catalog}.{schema}")
        now = int(time.time() * 1000)
        self.tables[full] = {
            "name": name,
            "catalog_name": catalog,
            "schema_name": schema,
            "table_type": "EXTERNAL",
            "data_source_format": "DELTA",
            "columns": [],
            "storage_location": url,
            "properties": {},
            "owner": "somebody",
            "created_at": now,
            "updated_at": now,
            "table_id": f"id-{full}",
            **more,
        }

    def answer(self, method: str, target: str, authorization: str, body: dict[str, Any]) -> Answer:
        self.asked.append(f"{method} {target}")
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        route = [unquote(part) for part in parts.path.removeprefix(API).strip("/").split("/")]
        try:
            if self.failure:
                raise RefusedError(self.failure, "FAILED", self.message)
            if authorization != f"Bearer {self.token}":
                raise RefusedError(401, "UNAUTHENTICATED", "No authorization found.")
            return 200, self._routed(method, route, query, body)
        except RefusedError as error:
            status, code, message = error.args
            return status, {"error_code": code, "message": message, "details": [{"reason": code}]}

    def _routed(
        self, method: str, route: list[str], query: dict[str, str], body: dict[str, Any]
    ) -> Any:
        match (method, *route):
            case ("GET", "schemas"):
                names = sorted(full.split(".")[1] for full in self.schemas)
                return _page("schemas", [{"name": name} for name in names], query)
            case ("GET", "schemas", full):
                return {"name": self._schema(full).split(".")[1], "full_name": full}
            case ("GET", "tables"):
                prefix = self._schema(f"{query['catalog_name']}.{query['schema_name']}") + "."
                found = [
                    info for full, info in sorted(self.tables.items()) if full.startswith(prefix)
                ]
                return _page("tables", found, query)
            case ("GET", "tables", full):
                return self._table(full)
            case ("POST", "tables"):
                return self._create(body)
            case ("DELETE", "tables", full):
                self.tables.pop(self._table(full) and full)
                return {}
            case ("POST", "temporary-table-credentials"):
                return self._lend(body)
        raise RefusedError(404, "NOT_FOUND", "no such route")

    def _schema(self, full: str) -> str:
        if full not in self.schemas:
            raise RefusedError(404, "SCHEMA_NOT_FOUND", f"Schema not found: {full}")
        return full

    def _table(self, full: str) -> dict[str, Any]:
        if full not in self.tables:
            raise RefusedError(404, "TABLE_NOT_FOUND", f"Table not found: {full}")
        return self.tables[full]

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        """As the server validates: TableRepository.createTable, ColumnUtils.validateTypeJson."""
        for key in ("name", "catalog_name", "schema_name", "table_type", "columns"):
            if key not in body:
                raise RefusedError(400, "INVALID_ARGUMENT", f"{key} is required")
        if not NAME.fullmatch(body["name"]):
            raise RefusedError(400, "INVALID_ARGUMENT", "Name cannot contain a period, …")
        schema = self._schema(f"{body['catalog_name']}.{body['schema_name']}")
        full = f"{schema}.{body['name']}"
        if full in self.tables:
            raise RefusedError(400, "TABLE_ALREADY_EXISTS", f"Table already exists: {full}")
        url = body.get("storage_location", "")
        if body["table_type"] != "EXTERNAL" or not urlsplit(url).path.strip("/"):
            what = "External table storage location must include a non-empty path prefix"
            raise RefusedError(400, "INVALID_ARGUMENT", what)
        for position, column in enumerate(body["columns"]):
            _validate(column, position)
        columns = [{**c, "type_text": c["type_text"].lower()} for c in body["columns"]]
        self.add(full, url, **{**body, "columns": columns})
        return self.tables[full]

    def _lend(self, body: dict[str, Any]) -> dict[str, Any]:
        (info,) = [t for t in self.tables.values() if t["table_id"] == body["table_id"]]
        full = ".".join(info[key] for key in ("catalog_name", "schema_name", "name"))
        if body["operation"] not in ("READ", "READ_WRITE"):
            raise RefusedError(400, "INVALID_ARGUMENT", "operation")
        self.lent.append(f"{body['operation']} {full}")
        if info["storage_location"].startswith("file:"):
            return {"url": info["storage_location"]}
        expires = int((time.time() + self.lifetime) * 1000)
        return {"expiration_time": expires, "url": info["storage_location"], **self.credentials}


def _validate(column: dict[str, Any], position: int) -> None:
    told = json.loads(column["type_json"])
    fine = (
        told.keys() >= {"name", "type", "nullable", "metadata"}
        and told["name"] == column["name"]
        and told["nullable"] is column["nullable"]
        and column["type_name"] in TYPES
        and column["position"] == position
        and (column["type_name"] != "DECIMAL" or column["type_precision"] >= column["type_scale"])
    )
    if not fine:
        raise RefusedError(
            400, "INVALID_ARGUMENT", f"Invalid type_json for column {column['name']}"
        )


def _page(kind: str, found: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """One a page, so that the pages must be followed."""
    at = int(query.get("page_token", 0))
    more = {"next_page_token": str(at + 1)} if at + 1 < len(found) else {}
    return {kind: found[at : at + 1], **more}


@contextmanager
def unity_server() -> Iterator[UnityServer]:
    """A server on this machine, with no schema and no table."""
    told = UnityServer()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            authorization = self.headers["Authorization"] or ""
            status, answer = told.answer(self.command, self.path, authorization, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        told.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()
