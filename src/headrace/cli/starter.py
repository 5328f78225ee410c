"""The headrace.yaml that `headrace init` writes: complete, commented, and without any secret."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

import psycopg
import yaml
from psycopg.conninfo import conninfo_to_dict

from headrace.errors import ConfigError

_REFERENCE: Final = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}\Z")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

_TEMPLATE: Final = """\
# Headrace: from Postgres into Delta tables. `headrace check` looks at all of it before a run.
# An editor completes this file from its schema: headrace schema > headrace.schema.json
# yaml-language-server: $schema=headrace.schema.json
version: 1

# Change logs and positions live here: a folder (relative to this file), or s3://, gs://, az://.
state: ./.headrace

connections:
  {source}:
    type: postgres
{address}
{password}
    # sslmode: verify-full         # every libpq sslmode; with sslrootcert, sslcert, sslkey

  {destination}:
    type: delta
    location: {location}    # a table lands at <location>/<schema>/<table>
    # storage_options:             # for s3://, gs://, abfss://
    #   AWS_ACCESS_KEY_ID: ${{AWS_ACCESS_KEY_ID}}

pipelines:
  {source}_to_{destination}:
    source: {source}
    destination: {destination}
    # slot: headrace_{source}          # created if missing, adopted if it exists
    # publication: headrace_{source}   # created or extended if allowed
    tables:
      - {tables}
      # - source: public.audit_log   # later entries refine earlier ones
      #   exclude: true
      # - source: public.customers
      #   name: crm.customers        # schema and table at the destination
"""

_REVERSE_TEMPLATE: Final = """\
# Headrace: from Delta tables into Postgres. `headrace check` looks at all of it before a run.
# An editor completes this file from its schema: headrace schema > headrace.schema.json
# yaml-language-server: $schema=headrace.schema.json
version: 1

# What a run records for `headrace status`: a folder (relative to this file), or s3://, gs://, az://.
state: ./.headrace

connections:
  {lake}:
    type: delta
    location: {location}    # tables lie at <location>/<schema>/<table>; or uc://catalog
    # storage_options:             # for s3://, gs://, abfss://
    #   AWS_ACCESS_KEY_ID: ${{AWS_ACCESS_KEY_ID}}

  {postgres}:
    type: postgres
{address}
{password}
    # sslmode: verify-full         # every libpq sslmode; with sslrootcert, sslcert, sslkey

pipelines:
  {lake}_to_{postgres}:
    source: {lake}
    destination: {postgres}
    schedule: continuous           # or 5m, or a cron line such as "0 6 * * *"
    # poll: 1s                     # how often a new version is looked for
    # schema: evolve               # or freeze, or resync, when columns change
    # quarantine: {{max_rows: 1000}} # rows that Postgres refuses; with more the table stops
    # throttle: {{max_rows_per_second: 50000, max_latency: 200ms}}
    tables:
      - source: {tables}
        key: {key}                # columns that identify a row: a Delta table declares none
      # - source: crm.customers    # later entries refine earlier ones
      #   name: app.customers      # schema and table in Postgres
      #   mode: scd1               # or append: every change as a row
      #   on_delete: delete        # or mark, or ignore
      #   columns: {{exclude: [ssn], rename: {{mail: email}}, types: {{email: citext}}}}
      #   where: "segment <> 'internal'"
      #   mask: {{phone: sha256}}    # or redact, "null", {{hmac: "${{KEY}}"}}, {{truncate: 3}}
      #   expect: {{adult: {{sql: "age >= 18", on_breach: quarantine}}}}
"""

_PARTS: Final = """\
    host: {host}
    port: {port}
    database: {database}
    user: {user}                 # {needs}"""

_NEEDS_AS_SOURCE: Final = "needs REPLICATION and SELECT on the tables"
_NEEDS_AS_DESTINATION: Final = "needs CREATE on the database"
_REFERRING: Final = "    password: ${{{variable}}}     # ${{NAME}} reads the environment"
_REFERRING_TO_NONE: Final = (
    "    # password: ${NAME}          # reads the environment; none: as libpq does"
)


@dataclass(frozen=True)
class Starter:
    """What `init` was told. `url` stands in place of host, port, database and user.

    With `reverse`, Postgres is the destination and the Delta tables, with `key`, are the source.
    `variable` names the environment variable with the password; empty where none is needed.
    """

    url: str = ""
    host: str = ""
    port: int = 5432
    database: str = ""
    user: str = ""
    variable: str = ""
    location: str = "./lake"
    tables: str = "public.*"
    source: str = "source"
    destination: str = "lake"
    reverse: bool = False
    key: tuple[str, ...] = ("id",)


def starter_text(starter: Starter) -> str:
    """The file's text.

    Raises:
        ConfigError: a password stands where only the name of a variable may.
    """
    text = {
        "address": _address(starter),
        "password": _password(starter),
        "location": quoted(starter.location),
        "tables": quoted(starter.tables),
    }
    if not starter.reverse:
        return _TEMPLATE.format(source=starter.source, destination=starter.destination, **text)
    key = f"[{', '.join(map(quoted, starter.key))}]"
    return _REVERSE_TEMPLATE.format(lake="lake", postgres="postgres", key=key, **text)


def _address(starter: Starter) -> str:
    if starter.url:
        _refuse_a_password(starter.url)
        return f"    url: {quoted(starter.url)}"
    return _PARTS.format(
        host=quoted(starter.host),
        port=starter.port,
        database=quoted(starter.database),
        user=quoted(starter.user),
        needs=_NEEDS_AS_DESTINATION if starter.reverse else _NEEDS_AS_SOURCE,
    )


def _password(starter: Starter) -> str:
    if not starter.variable or has_password(starter.url):
        return _REFERRING_TO_NONE
    if not _VARIABLE.match(starter.variable):
        raise ConfigError(  # it is not shown: someone may have given the password itself
            "--password-env takes the name of an environment variable, not the password",
            hint="headrace init --password-env SHOP_PASSWORD, and export SHOP_PASSWORD=…",
        )
    return _REFERRING.format(variable=starter.variable)


def has_password(url: str) -> bool:
    """Whether a connection URL brings its password, or a reference to it."""
    return bool(url and _passwords(url))


def _passwords(url: str) -> list[str]:
    """The secrets in a URL (libpq, "Connection URIs": also as parameters), or a reference to it."""
    if _REFERENCE.match(url):
        return [url]
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parameters = None  # its text quotes the URL, password included
    if parameters is None or not url.startswith(("postgresql://", "postgres://")):
        raise ConfigError(
            "--url is not a Postgres connection URL",
            hint="write postgresql://user@host:port/database, or '${DATABASE_URL}' in quotes",
        )
    return [str(parameters[key]) for key in ("password", "sslpassword") if parameters.get(key)]


def _refuse_a_password(url: str) -> None:
    if any(not _REFERENCE.match(password) for password in _passwords(url)):
        raise ConfigError(
            "the URL holds a password, which no file may",
            hint="write postgresql://user:${SHOP_PASSWORD}@host/database in single quotes, and "
            "export SHOP_PASSWORD=…",
        )


def quoted(text: str) -> str:
    """A YAML scalar that is read back as exactly this text."""
    bare = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text
    return text if bare else json.dumps(text, ensure_ascii=False)
