"""headrace.yaml as typed, frozen settings (DESIGN: "One file")."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from headrace.config.connections import Connection, DeltaConnection, Frozen, PostgresConnection
from headrace.config.names import NAME_PATTERN, SLOT_PATTERN, default_slot
from headrace.config.problems import KeyPath, Problem, config_error, dotted
from headrace.errors import ConfigError

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Text = Annotated[str, StringConstraints(min_length=1)]
Mode = Literal["scd1", "scd2", "append"]

_INTERVAL = re.compile(r"[1-9]\d*[smhd]\Z")
_CRON = re.compile(r"(?:[\d*/,A-Za-z-]+ +){4}[\d*/,A-Za-z-]+\Z")


class ColumnSelection(Frozen):
    """Which columns reach the destination."""

    include: tuple[Text, ...] | None = Field(default=None, description="Only these columns.")
    exclude: tuple[Text, ...] | None = Field(default=None, description="All but these columns.")


class TableEntry(Frozen):
    """Tables of the source, by name or glob, and what is special about them."""

    source: Text = Field(description="schema.table at the source; * ? and [ ] are globs.")
    name: Text | None = Field(default=None, description="schema.table at the destination.")
    mode: Mode | None = Field(
        default=None,
        description="scd1: current state (default); scd2: history; append: every change as a row.",
    )
    columns: ColumnSelection | None = Field(
        default=None, description="Columns to include or exclude."
    )
    mask: dict[str, Text] | None = Field(
        default=None, description="Per column, how its values are masked, such as sha256."
    )
    where: Text | None = Field(default=None, description="Only rows for which this SQL is true.")
    key: tuple[Text, ...] | None = Field(
        default=None,
        min_length=1,
        description="Columns that identify a row; default: the primary key, else the replica "
        "identity's index.",
    )
    exclude: bool = Field(default=False, description="Leave these tables out.")

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_name(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("source", "name")
    @classmethod
    def _has_a_schema(cls, value: str | None) -> str | None:
        if value is not None and not all(value.partition(".")):
            raise ValueError("expected schema.table, such as public.customers or public.*")
        return value

    @model_validator(mode="after")
    def _name_is_for_one_table(self) -> Self:
        if self.name is not None and self.is_glob:
            raise ValueError("name is for one table, but source is a glob")
        return self

    @property
    def is_glob(self) -> bool:
        return any(character in self.source for character in "*?[")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        bare = {"type": "string", "description": "schema.table at the source, or a glob."}
        return {"anyOf": [bare, handler.resolve_ref_schema(handler(core_schema))]}


class Pipeline(Frozen):
    """Tables that are carried from one connection to another."""

    source: str = Field(description="The connection to read from.")
    destination: str = Field(description="The connection to write to.")
    schedule: str = Field(
        default="continuous",
        description="continuous, an interval such as 5m or 1h, or a cron line.",
    )
    slot: Annotated[str, StringConstraints(pattern=SLOT_PATTERN)] | None = Field(
        default=None,
        description="Replication slot; created if missing, adopted if it exists. "
        "Default: headrace_<connection>.",
    )
    publication: Text | None = Field(
        default=None,
        max_length=63,
        description="Publication; created or extended if allowed. Default: headrace_<connection>.",
    )
    tables: tuple[TableEntry, ...] = Field(
        min_length=1, description="Names or globs; later entries refine earlier ones."
    )

    @field_validator("schedule")
    @classmethod
    def _is_a_schedule(cls, value: str) -> str:
        if value != "continuous" and not _INTERVAL.match(value) and not _CRON.match(value):
            raise ValueError("expected continuous, an interval such as 5m or 1h, or a cron line")
        return value


@dataclass(frozen=True)
class Capture:
    """One slot of one source connection, and the pipelines that read its change log.

    `name` is the folder of the log: the connection's name, with the slot's where it is not default.
    """

    name: str
    source: str
    connection: PostgresConnection
    slot: str
    publication: str
    pipelines: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """Where settings came from, for errors that are found later."""

    file: str = "headrace.yaml"
    key_lines: tuple[tuple[KeyPath, int], ...] = ()

    def problem(self, path: KeyPath, what: str, hint: str = "") -> Problem:
        """A problem with the value at `path`, with its line."""
        lines = dict(self.key_lines)
        near = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 1)
        return Problem(near, dotted(path), what, hint)

    def error(self, path: KeyPath, what: str, hint: str = "") -> ConfigError:
        """An error about the value at `path`, with its file and line."""
        return config_error(self.file, [self.problem(path, what, hint)])


class Settings(Frozen):
    """The whole file; paths are absolute and environment variables filled in."""

    version: Literal[1] = Field(description="The format of this file.")
    state: Text = Field(
        default="./.headrace",
        description="Where change logs live: a folder (relative to this file), or s3://, gs://, "
        "az://.",
    )
    connections: dict[Name, Connection] = Field(
        min_length=1, description="Endpoints and their credentials, by name."
    )
    pipelines: dict[Name, Pipeline] = Field(
        min_length=1, description="What is carried where, by name."
    )

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        return self._origin

    def source(self, pipeline: str) -> PostgresConnection:
        """The pipeline's source; loading has refused every other type."""
        connection = self.connections[self.pipelines[pipeline].source]
        if not isinstance(connection, PostgresConnection):
            raise self.origin.error(("pipelines", pipeline, "source"), "expected type postgres")
        return connection

    def destination(self, pipeline: str) -> DeltaConnection:
        """The pipeline's destination; loading has refused every other type."""
        connection = self.connections[self.pipelines[pipeline].destination]
        if not isinstance(connection, DeltaConnection):
            raise self.origin.error(("pipelines", pipeline, "destination"), "expected type delta")
        return connection

    def captures(self) -> tuple[Capture, ...]:
        """One capture per source connection and slot, in the order of the pipelines."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, pipeline in self.pipelines.items():
            slot = pipeline.slot or default_slot(pipeline.source)
            groups.setdefault((pipeline.source, slot), []).append(name)
        return tuple(self._capture(*key, tuple(names)) for key, names in groups.items())

    def _capture(self, source: str, slot: str, names: tuple[str, ...]) -> Capture:
        default = default_slot(source)
        publications = [self.pipelines[name].publication or default for name in names]
        for name, publication in zip(names, publications, strict=True):
            if publication != publications[0]:
                raise self.origin.error(
                    ("pipelines", name, "publication"),
                    f"{publication} differs from {publications[0]} of pipeline {names[0]}, "
                    f"with which it shares slot {slot}",
                    "use the same publication, or give this pipeline a slot of its own",
                )
        folder = source if slot == default else f"{source}.{slot}"
        return Capture(folder, source, self.source(names[0]), slot, publications[0], names)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of headrace.yaml, for editors."""
    schema = Settings.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "headrace.yaml",
    }
