"""Tables of a Unity Catalog: where they lie, and credentials for them that last an hour or so.

Unity Catalog REST API 2.1: `GET /schemas`, `GET /tables`, `GET /tables/{full_name}`,
`POST /temporary-table-credentials`. Asked for reading only.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from headrace.connectors.delta.places import Locator, Place
from headrace.errors import ConfigError, SourceError, SourceUnavailableError, TableNotFoundError
from headrace.model import TableId

SCHEME: Final = "uc://"
API: Final = "/api/2.1/unity-catalog"
TIMEOUT: Final = 30.0  # seconds; catalogs of thousands of tables take some to list
EARLY: Final = 300.0  # seconds before credentials expire: a part of a table is read in less
_OURS: Final = ("databricks_host", "databricks_token", "unity_allow_http_url")


def is_unity(location: str) -> bool:
    return location.startswith(SCHEME)


@dataclass(frozen=True)
class UnityCatalog:
    """One catalog of a server; `options` are those that the tables' own storage takes."""

    name: str
    host: str
    token: str = field(repr=False)
    options: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, location: str, options: Mapping[str, str]) -> UnityCatalog:
        """The catalog `uc://name`, by deltalake's options.

        Raises:
            ConfigError: an option is missing, or the host is not safe to send a token to.
        """
        name = location.removeprefix(SCHEME).strip("/")
        given = {key.lower(): value for key, value in options.items()}
        if not name or "/" in name or "." in name:
            raise ConfigError(f"{location} names no catalog", hint="location: uc://catalog")
        host = given.get("databricks_host", "").rstrip("/")
        if not host:
            raise ConfigError(
                f"{location}: storage_options has no databricks_host",
                hint="storage_options: {databricks_host: https://…, databricks_token: ${TOKEN}}",
            )
        host = host if "://" in host else f"https://{host}"
        allowed = given.get("unity_allow_http_url", "").lower() == "true"
        if not host.startswith("https://") and not (allowed and host.startswith("http://")):
            raise ConfigError(
                f"{location}: databricks_host is not an https:// address",
                hint="for a server of your own without TLS: unity_allow_http_url: 'true'",
            )
        rest = {key: value for key, value in options.items() if key.lower() not in _OURS}
        return cls(name, host, given.get("databricks_token", ""), rest)

    def tables(self) -> list[TableId]:
        """The catalog's Delta tables.

        Raises:
            SourceUnavailableError: the server does not answer.
            SourceError: it refuses.
        """
        return sorted(
            TableId(schema["name"], table["name"])
            for schema in self._listed("schemas", catalog_name=self.name)
            for table in self._listed("tables", catalog_name=self.name, schema_name=schema["name"])
            if table.get("data_source_format") == "DELTA"
        )

    def locator(self, table: TableId) -> Locator:
        return _Leased(lambda: self._lease(table))

    def _lease(self, table: TableId) -> tuple[Place, float]:
        """The table's place, and when its credentials expire, in seconds since the epoch."""
        full = urllib.parse.quote(f"{self.name}.{table.schema}.{table.name}", safe="")
        found = self._ask("GET", f"/tables/{full}", None, f"table {self.name}.{table}")
        url = found.get("storage_location")
        if not url:
            raise SourceError(
                f"{self.name}.{table} has no storage location that can be read from outside",
                hint="views and materialized tables have none: copy it into a Delta table",
            )
        if url.startswith("file:"):
            return Place(url.replace("file:///", "file:/").replace("file:/", "file:///")), _NEVER
        wanted = {"table_id": found["table_id"], "operation": "READ"}
        lent = self._ask("POST", "/temporary-table-credentials", wanted, f"credentials of {table}")
        expires = float(lent.get("expiration_time") or 0) / 1000 or _NEVER
        return Place(url, {**self.options, **_storage_options(lent, table)}), expires

    def _listed(self, kind: str, **query: str) -> Iterator[dict[str, Any]]:
        while True:
            path = f"/{kind}?{urllib.parse.urlencode(query)}"
            page = self._ask("GET", path, None, f"the {kind} of {self.name}")
            yield from page.get(kind) or ()
            if not page.get("next_page_token"):
                return
            query["page_token"] = page["next_page_token"]

    def _ask(
        self, method: str, path: str, body: Mapping[str, str] | None, what: str
    ) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - `of` admits http and https only
            f"{self.host}{API}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error, what, self.host) from None
        except (OSError, ValueError) as error:
            raise SourceUnavailableError(
                f"Unity Catalog at {self.host} does not answer for {what}: {error}",
                hint="check databricks_host and the network; Headrace goes on trying",
            ) from error


_NEVER: Final = float("inf")


def _refused(error: urllib.error.HTTPError, what: str, host: str) -> SourceError:
    if error.code == 429 or error.code >= 500:
        return SourceUnavailableError(
            f"Unity Catalog at {host} cannot give {what} now: {error.code} {error.reason}",
            hint="Headrace goes on trying",
        )
    if error.code == 404:
        return TableNotFoundError(
            f"Unity Catalog at {host} has no {what}", hint="check the catalog, schema and name"
        )
    return SourceError(
        f"Unity Catalog at {host} refuses {what}: {error.code} {error.reason}",
        hint="check databricks_token, and that its owner has USE CATALOG, USE SCHEMA, SELECT and "
        "EXTERNAL USE SCHEMA",
    )


def _storage_options(lent: Mapping[str, Any], table: TableId) -> dict[str, str]:
    """Temporary credentials in the names of storage options."""
    for kind in ("aws_temp_credentials", "r2_temp_credentials"):
        if lent.get(kind):
            return {
                "aws_access_key_id": lent[kind]["access_key_id"],
                "aws_secret_access_key": lent[kind]["secret_access_key"],
                "aws_session_token": lent[kind]["session_token"],
            }
    if lent.get("gcp_oauth_token"):
        return {"google_bearer_token": lent["gcp_oauth_token"]["oauth_token"]}
    if lent.get("azure_user_delegation_sas"):
        return {"azure_storage_sas_token": lent["azure_user_delegation_sas"]["sas_token"]}
    raise SourceError(
        f"Unity Catalog lends no credentials for {table} that Headrace can use: "
        f"{', '.join(sorted(key for key, value in lent.items() if isinstance(value, dict)))}",
        hint="give the bucket's own credentials and its URL as the location instead of uc://",
    )


class _Leased:
    """A place whose credentials are renewed before they expire."""

    def __init__(self, lease: Callable[[], tuple[Place, float]]) -> None:
        self._lease = lease
        self._lock = threading.Lock()
        self._held: tuple[Place, float] | None = None

    def __call__(self) -> Place:
        with self._lock:
            if self._held is None or time.time() > self._held[1] - EARLY:
                self._held = self._lease()
            return self._held[0]
