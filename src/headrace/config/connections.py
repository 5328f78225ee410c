"""The connections of headrace.yaml: endpoints with their credentials."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    field_validator,
    model_validator,
)

from headrace.config.quantities import Duration, Port, Positive, Size

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]

UNITY_CATALOG: Final = "uc://"

# Types the file may name that this version cannot serve.
FUTURE_TYPES = ("clickhouse", "duckdb", "files", "iceberg", "kafka", "mysql")


class Frozen(BaseModel):
    """Settings never change after loading, and know every key they may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Snapshots(Frozen):
    """How tables are copied: what is asked of a source at most, and what survives a restart. Its
    stream is not slowed."""

    max_connections: Positive = Field(
        default=2, description="So many sessions read at once; beside them the stream has its own."
    )
    max_rows_per_second: Positive | None = Field(
        default=None, description="Rows read a second, by all of them."
    )
    max_bytes_per_second: Positive | None = Field(
        default=None, description="Bytes read a second, as they are in memory."
    )
    ranges_above: Size = Field(
        default=4 << 30,
        json_schema_extra={"default": "4GiB"},
        description="A larger table is copied in ranges of its key, where that begins with a whole "
        "number, a UUID, a date or a time; finished ranges survive a restart.",
    )


class PostgresConnection(Frozen):
    """A Postgres server and database, as libpq names them ("Parameter Key Words")."""

    type: Literal["postgres"] = Field(description="The kind of system.")
    url: SecretStr | None = Field(
        default=None,
        description="postgresql://user:password@host:port/database, instead of host, port, "
        "database and user.",
    )
    host: str | None = Field(
        default=None, min_length=1, description="Host name, address, or folder of a Unix socket."
    )
    port: Port = Field(default=5432, description="TCP port.")
    database: str | None = Field(default=None, min_length=1, description="Database name.")
    user: str | None = Field(
        default=None,
        min_length=1,
        description="Role; as a source's it needs REPLICATION and SELECT, "
        "as a destination's CREATE on the database.",
    )
    password: SecretStr | None = Field(
        default=None, description="Its password; ${NAME} reads the environment."
    )
    sslmode: SslMode | None = Field(
        default=None,
        description="libpq's sslmode; verify-full is the one that nobody can listen to. "
        "libpq's default is prefer.",
    )
    sslrootcert: str | None = Field(
        default=None, description="File of trusted certificate authorities, or system."
    )
    sslcert: str | None = Field(default=None, description="File of the client's certificate.")
    sslkey: str | None = Field(default=None, description="File of the client's key.")
    snapshots: Snapshots = Field(
        default_factory=Snapshots,
        description="As a source: how its tables are copied.",
    )
    connection_timeout: Duration = Field(
        default=10.0,
        ge=2.0,
        json_schema_extra={"default": "10s"},
        description="How long a server, or the way to it, may be silent before a connection counts "
        "as dead and is made anew; 2s and up.",
    )

    failover: bool | None = Field(
        default=None,
        description="Whether the slot goes on at a standby that is promoted (Postgres 17 and "
        "later). By default one that Headrace creates does, and one that exists stays as it is.",
    )
    two_phase: bool = Field(
        default=False,
        description="As a source: whether a transaction is sent at PREPARE TRANSACTION already, so "
        "that little is left to do at COMMIT PREPARED (Postgres 15 and later). Either way it "
        "arrives when it has committed.",
    )

    @field_validator("url")
    @classmethod
    def _is_postgres_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(
            ("postgresql://", "postgres://")
        ):
            raise ValueError("expected postgresql://user@host:port/database")
        return url

    @model_validator(mode="after")
    def _has_one_address(self) -> Self:
        parts = [k for k in ("host", "port", "database", "user") if k in self.model_fields_set]
        if self.url is not None and parts:
            raise ValueError(f"url stands in place of {', '.join(parts)}: give one or the other")
        missing = [k for k in ("host", "database", "user") if getattr(self, k) is None]
        if self.url is None and missing:
            raise ValueError(f"missing {', '.join(missing)} (or give url)")
        return self


class DeltaConnection(Frozen):
    """A place that holds Delta tables, at `<location>/<schema>/<table>`, or a Unity Catalog that
    registers them."""

    type: Literal["delta"] = Field(description="The kind of system.")
    location: str = Field(
        min_length=1,
        description="A folder, or s3://, gs://, az:// or abfss:// and a path, or uc://catalog or "
        "uc://catalog.schema of a Unity Catalog.",
    )
    storage_options: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="Credentials and options of the object store; for uc:// also databricks_host, "
        "databricks_token and unity_allow_http_url.",
    )
    storage_root: str | None = Field(
        default=None,
        min_length=1,
        description="For uc:// as destination: the folder or URL below which tables lie that the "
        "catalog does not have yet, at <storage_root>/<schema>/<table>.",
    )

    @property
    def is_catalog(self) -> bool:
        """Whether a Unity Catalog tells where the tables lie."""
        return self.location.startswith(UNITY_CATALOG)

    @property
    def only_schema(self) -> str | None:
        """The one schema of a catalog that the location means, if it names one."""
        _, dot, schema = self.location.partition(".")
        return schema.strip("/") if self.is_catalog and dot else None

    @model_validator(mode="after")
    def _has_a_root_only_for_a_catalog(self) -> Self:
        if self.storage_root is not None and not self.is_catalog:
            raise ValueError("storage_root is for uc://: other tables lie below their location")
        return self


class FutureConnection(BaseModel):
    """A kind of system that a later version will serve."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    type: Literal["clickhouse", "duckdb", "files", "iceberg", "kafka", "mysql"] = Field(
        description="Not yet supported."
    )


def _kind(value: Any) -> str | None:
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "future" if isinstance(found, str) and found in FUTURE_TYPES else found


Connection = Annotated[
    Annotated[PostgresConnection, Tag("postgres")]
    | Annotated[DeltaConnection, Tag("delta")]
    | Annotated[FutureConnection, Tag("future")],
    Discriminator(_kind),
]
