"""Tables of a Unity Catalog: where they lie, and credentials for them that last an hour or so.

Unity Catalog REST API 2.1, as `api/all.yaml` of the open-source server describes it:
`GET /schemas`, `GET /schemas/{full_name}`, `GET /tables`, `GET /tables/{full_name}`,
`POST /tables`, `POST /temporary-table-credentials`.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from headrace.connectors.delta.places import Locator, Place
from headrace.errors import ConfigError, SourceError, SourceUnavailableError, TableNotFoundError
from headrace.log.storage import with_retries
from headrace.model import TableId

SCHEME: Final = "uc://"
API: Final = "/api/2.1/unity-catalog"
TIMEOUT: Final = 30.0  # seconds; catalogs of thousands of tables take some to list
EARLY: Final = 300.0  # seconds before credentials expire: a part of a table is read in less
LONGEST: Final = 300  # characters of what a server says that an error repeats
READ: Final = "READ"
READ_WRITE: Final = "READ_WRITE"
_OURS: Final = ("databricks_host", "databricks_token", "unity_allow_http_url")
_NEVER: Final = float("inf")
_RIGHTS: Final = (
    "the token's owner needs USE CATALOG, USE SCHEMA, EXTERNAL USE SCHEMA and SELECT; to write "
    "also MODIFY, CREATE TABLE, and CREATE EXTERNAL TABLE on the external location"
)


def is_unity(location: str) -> bool:
    return location.startswith(SCHEME)


@dataclass(frozen=True)
class Registration:
    """What a catalog says of a table; `url` is empty where it has no files of its own."""

    name: str  # catalog.schema.table
    id: str
    url: str
    kind: str  # EXTERNAL, MANAGED, VIEW, …
    format: str  # DELTA, PARQUET, …

    @classmethod
    def of(cls, name: str, told: Mapping[str, Any]) -> Registration:
        url = str(told.get("storage_location") or "")
        if url.startswith("file:"):  # however many slashes the server writes
            url = "file:///" + url.removeprefix("file:").lstrip("/")
        kinds = (str(told.get(key) or "") for key in ("table_type", "data_source_format"))
        return cls(name, str(told.get("table_id") or ""), url, *kinds)


@dataclass(frozen=True)
class UnityCatalog:
    """One catalog of a server, or one schema of it; `options` are those that the tables' own
    storage takes."""

    name: str
    schema: str | None
    host: str
    token: str = field(repr=False)
    options: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, location: str, options: Mapping[str, str]) -> UnityCatalog:
        """The catalog `uc://name`, or the schema `uc://name.schema`, by deltalake's options.

        Raises:
            ConfigError: an option is missing, or the host is not safe to send a token to.
        """
        path = location.removeprefix(SCHEME).strip("/")
        name, *rest = path.split(".")
        given = {key.lower(): value for key, value in options.items()}
        if "/" in path or len(rest) > 1 or not all((name, *rest)):
            raise ConfigError(
                f"{location} names no catalog",
                hint="location: uc://catalog, or uc://catalog.schema",
            )
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
        others = {key: value for key, value in options.items() if key.lower() not in _OURS}
        token = given.get("databricks_token", "")
        return cls(name, rest[0] if rest else None, host, token, others)

    # -- what there is -----------------------------------------------------------------------------

    def tables(self) -> list[TableId]:
        """The Delta tables.

        Raises:
            SourceUnavailableError: the server does not answer.
            SourceError: it refuses.
        """
        schemas = [self.schema] if self.schema else [each["name"] for each in self._schemas()]
        return sorted(
            TableId(schema, table["name"])
            for schema in schemas
            for table in self._listed("tables", catalog_name=self.name, schema_name=schema)
            if table.get("data_source_format") == "DELTA"
        )

    def _schemas(self) -> Iterator[dict[str, Any]]:
        return self._listed("schemas", catalog_name=self.name)

    def require_schema(self, schema: str) -> None:
        """Raises TableNotFoundError where the catalog has no such schema, else as `tables`."""
        full = f"{self.name}.{schema}"
        self._ask("GET", f"/schemas/{urllib.parse.quote(full, safe='')}", None, f"schema {full}")

    def registration(self, table: TableId) -> Registration:
        """What the catalog says of a table.

        Raises:
            TableNotFoundError: it has none of that name.
            SourceError: as `tables`.
        """
        full = self.full_name(table)
        path = f"/tables/{urllib.parse.quote(full, safe='')}"
        return Registration.of(full, self._ask("GET", path, None, f"table {full}"))

    def full_name(self, table: TableId) -> str:
        return f"{self.name}.{table.schema}.{table.name}"

    def create(self, table: TableId, url: str, columns: Sequence[Mapping[str, Any]]) -> None:
        """Register an external Delta table at `url`; one that has just been is left as it is.

        Raises:
            TableNotFoundError: there is no such schema.
            SourceError: as `tables`.
        """
        wanted = {
            "name": table.name,
            "catalog_name": self.name,
            "schema_name": table.schema,
            "table_type": "EXTERNAL",
            "data_source_format": "DELTA",
            "columns": columns,
            "storage_location": url,
        }
        try:
            self._ask("POST", "/tables", wanted, f"a place for table {self.full_name(table)}")
        except SourceError as error:  # a lost answer, or another writer: the name is taken
            if not error.context.get("exists"):
                raise

    # -- where it lies -----------------------------------------------------------------------------

    def locator(self, table: TableId) -> Locator:
        """Finds a table's place, with credentials for reading."""

        def lease() -> tuple[Place, float]:
            found = self.registration(table)
            if not found.url:
                raise SourceError(
                    f"{found.name} has no storage location that can be read from outside",
                    hint="views and materialized tables have none: copy it into a Delta table",
                )
            return self.lend(found, READ)

        return Leased(lease)

    def lend(self, table: Registration, operation: str) -> tuple[Place, float]:
        """A table's place with credentials for an operation, READ or READ_WRITE; and when they
        expire, in seconds since the epoch."""
        if table.url.startswith("file:"):
            return Place(table.url), _NEVER
        wanted = {"table_id": table.id, "operation": operation}
        what = f"credentials of table {table.name}"
        lent = self._ask("POST", "/temporary-table-credentials", wanted, what)
        expires = float(lent.get("expiration_time") or 0) / 1000 or _NEVER
        options = {**self.options, **_storage_options(lent, table.name)}
        return Place(table.url, with_retries(table.url, options)), expires

    # -- asking ------------------------------------------------------------------------------------

    def _listed(self, kind: str, **query: str) -> Iterator[dict[str, Any]]:
        while True:
            path = f"/{kind}?{urllib.parse.urlencode(query)}"
            page = self._ask("GET", path, None, f"the {kind} of {self.name}")
            yield from page.get(kind) or ()
            if not page.get("next_page_token"):
                return
            query["page_token"] = page["next_page_token"]

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, what: str
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
                raise self._refused(error, what) from None
        except (OSError, ValueError) as error:
            raise SourceUnavailableError(
                f"Unity Catalog at {self.host} does not answer for {what}: {error}",
                hint="check databricks_host and the network; Headrace goes on trying",
            ) from error

    def _refused(self, error: urllib.error.HTTPError, what: str) -> SourceError:
        where = f"Unity Catalog at {self.host}"
        code, message = _answer(error)
        reason = f"{error.code} {error.reason}"
        if message:
            said = message.replace(self.token, "…") if self.token else message
            reason += f": {said[:LONGEST]}"
        if error.code == 429 or error.code >= 500:
            return SourceUnavailableError(
                f"{where} cannot give {what} now: {reason}", hint="Headrace goes on trying"
            )
        if error.code == 404:
            hint = "check the catalog, schema and name"
            return TableNotFoundError(f"{where} has no {what}: {reason}", hint=hint)
        hint = f"check databricks_token; {_RIGHTS}"
        if error.code == 401:
            hint = "databricks_token is missing, wrong or has expired: put a new one where "
            hint += "storage_options name it, and start again"
        exists = error.code == 409 or "ALREADY_EXISTS" in code
        return SourceError(f"{where} refuses {what}: {reason}", hint=hint, exists=exists)


def _answer(error: urllib.error.HTTPError) -> tuple[str, str]:
    """The error code of an answer, and the first line of its message; empty where it has none."""
    try:
        told = json.load(error)
        return str(told.get("error_code") or ""), str(told.get("message") or "").partition("\n")[0]
    except (OSError, ValueError, AttributeError):
        return "", ""


def _storage_options(lent: Mapping[str, Any], name: str) -> dict[str, str]:
    """Temporary credentials in the names of storage options."""
    for kind in ("aws_temp_credentials", "r2_temp_credentials"):
        if lent.get(kind):
            names = ("access_key_id", "secret_access_key", "session_token")
            return {f"aws_{each}": lent[kind][each] for each in names if lent[kind].get(each)}
    if lent.get("gcp_oauth_token"):
        return {"google_bearer_token": lent["gcp_oauth_token"]["oauth_token"]}
    if lent.get("azure_user_delegation_sas"):
        return {"azure_storage_sas_token": lent["azure_user_delegation_sas"]["sas_token"]}
    raise SourceError(
        f"Unity Catalog lends no credentials for {name} that Headrace can use: "
        f"{', '.join(sorted(key for key, value in lent.items() if isinstance(value, dict)))}",
        hint="give the bucket's own credentials and its URL as the location instead of uc://",
    )


class Leased:
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
