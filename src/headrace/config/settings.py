"""headrace.yaml as typed, frozen settings (DESIGN: "One file")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

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
from headrace.config.entries import Name, TableEntry, Text
from headrace.config.names import SLOT_PATTERN, default_slot
from headrace.config.problems import KeyPath, Problem, config_error, dotted
from headrace.config.quantities import Count, Duration, Positive, Share, Size
from headrace.config.routes import Route, route
from headrace.errors import ConfigError
from headrace.model.delivery import QUARANTINE_ROWS, REBUILD_ABOVE
from headrace.model.lake import INDEX_MEMORY
from headrace.model.schedule import Schedule

WINDOW_PATTERN: Final = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"
DAILY: Final = "0 2 * * *"  # what `verify: daily` stands for
SHORTEST_POLL: Final = 0.1  # seconds; a look at an object store takes about a third of it


class Quarantine(Frozen):
    """Where rows go that the destination refuses."""

    max_rows: Count = Field(
        default=QUARANTINE_ROWS,
        description="So many rows of a table may stand there before the table stops.",
    )


class Throttle(Frozen):
    """How much a destination is asked at most."""

    max_rows_per_second: Positive | None = Field(default=None, description="Rows sent a second.")
    max_bytes_per_second: Positive | None = Field(default=None, description="Bytes sent a second.")
    max_latency: Duration | None = Field(
        default=None,
        description="Send less while the destination answers more slowly than this, such as 200ms.",
    )


class AutoRefresh(Frozen):
    """When a table that cannot go on is copied anew by itself."""

    on: tuple[Literal["schema_change", "diverged", "log_lost"], ...] = Field(
        default=("schema_change", "diverged", "log_lost"),
        min_length=1,
        description="What is answered by a refresh: a schema change that the destination cannot "
        "follow; a destination that is not as the change log says; a change log or slot that is "
        "lost.",
    )
    min_interval: Duration = Field(
        default=86400.0,
        json_schema_extra={"default": "24h"},
        description="At least this long after a table's last refresh.",
    )
    window: Annotated[str, StringConstraints(pattern=WINDOW_PATTERN)] | None = Field(
        default=None, description='Only at these times of the day, in UTC, such as "22:00-06:00".'
    )


class VerifySchedule(Frozen):
    """When a run compares destination and source, and how much it may ask of both."""

    every: str = Field(
        description="daily (at 02:00 UTC), an interval such as 6h, or a cron line (in UTC)."
    )
    max_rows_per_second: Positive | None = Field(
        default=None, description="Rows read a second, of both sides together."
    )
    max_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="Share of the time that is spent on it while it lasts."
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_schedule(cls, value: Any) -> Any:
        return {"every": value} if isinstance(value, str) else value

    @field_validator("every")
    @classmethod
    def _is_a_schedule(cls, value: str) -> str:
        if Schedule.parse(DAILY if value == "daily" else value).is_continuous:
            raise ValueError("expected daily, an interval such as 6h, or a cron line")
        return value

    @property
    def cron_or_interval(self) -> str:
        return DAILY if self.every == "daily" else self.every

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        bare = {"type": "string", "description": "daily, an interval such as 6h, or a cron line."}
        return {"anyOf": [bare, handler.resolve_ref_schema(handler(core_schema))]}


class Pipeline(Frozen):
    """Tables that are carried from one connection to another."""

    source: str = Field(description="The connection to read from.")
    destination: str = Field(description="The connection to write to.")
    schedule: str = Field(
        default="continuous",
        description="continuous, an interval such as 5m or 1h, or a cron line (in UTC).",
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
    poll: Duration = Field(
        default=1.0,
        json_schema_extra={"default": "1s"},
        description="How often a continuous pipeline looks for a new version of a Delta table; "
        "100ms and up.",
    )
    schema_policy: Literal["evolve", "freeze", "resync"] = Field(
        default="evolve",
        alias="schema",
        description="When columns change at the source. evolve: the destination follows; "
        "freeze: the table stops; resync: it is built anew.",
    )
    drop_columns: bool = Field(
        default=False,
        description="Whether a column that the source dropped goes at the destination too; "
        "else it stays, null in new rows.",
    )
    rebuild_above: Share = Field(
        default=REBUILD_ABOVE,
        description="When more than this share of a table's rows changed it is built anew and "
        "swapped, instead of merged.",
    )
    quarantine: Quarantine = Field(
        default_factory=Quarantine, description="Room for rows that the destination refuses."
    )
    throttle: Throttle | None = Field(
        default=None, description="How much the destination is asked at most."
    )
    deletion_vectors: bool = Field(
        default=True,
        description="Whether a Delta table's changed rows are marked instead of their files being "
        "rewritten; some readers cannot read such tables.",
    )
    change_data_feed: Literal["off", "rows", "images"] = Field(
        default="off",
        description="The Change Data Feed of the Delta tables. rows: deletes and inserts, at no "
        "cost; images: updates with their pre- and post-images.",
    )
    index_memory: Size = Field(
        default=INDEX_MEMORY,
        json_schema_extra={"default": "1GiB"},
        description="Memory for one table's key index; beyond it the index stands on disk.",
    )
    auto_refresh: AutoRefresh | None = Field(
        default=None, description="When a table that cannot go on is copied anew by itself."
    )
    verify: VerifySchedule | None = Field(
        default=None,
        description="When a run compares destination and source: daily, an interval such as 6h, a "
        "cron line (in UTC), or {every, max_rows_per_second, max_share}.",
    )
    tables: tuple[TableEntry, ...] = Field(
        min_length=1, description="Names or globs; later entries refine earlier ones."
    )

    @field_validator("schedule")
    @classmethod
    def _is_a_schedule(cls, value: str) -> str:
        return Schedule.parse(value).text

    @field_validator("poll")
    @classmethod
    def _leaves_the_source_in_peace(cls, value: float) -> float:
        if value < SHORTEST_POLL:
            raise ValueError("expected a duration of at least 100ms")
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
class Sync:
    """A pipeline from Delta tables to Postgres. `source` and `destination` name connections."""

    name: str
    source: str
    source_connection: DeltaConnection
    destination: str
    destination_connection: PostgresConnection
    pipeline: Pipeline


@dataclass(frozen=True)
class Origin:
    """Where settings came from, for errors that are found later."""

    file: str = "headrace.yaml"
    key_lines: tuple[tuple[KeyPath, int], ...] = ()

    def holds(self, path: KeyPath) -> bool:
        """Whether the file has a value at exactly this path."""
        return any(known == path for known, _ in self.key_lines)

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

    def source(self, pipeline: str) -> PostgresConnection | DeltaConnection:
        """The connection that a pipeline reads from."""
        return self._side(pipeline, "source", self.pipelines[pipeline].source)

    def destination(self, pipeline: str) -> PostgresConnection | DeltaConnection:
        """The connection that a pipeline writes to."""
        return self._side(pipeline, "destination", self.pipelines[pipeline].destination)

    def _side(self, pipeline: str, side: str, name: str) -> PostgresConnection | DeltaConnection:
        connection = self.connections[name]
        if not isinstance(connection, PostgresConnection | DeltaConnection):
            path = ("pipelines", pipeline, side)
            raise self.origin.error(path, f"{connection.type} is not yet supported")
        return connection

    def route(self, pipeline: str) -> Route | None:
        """From what to what a pipeline leads."""
        return route(self.source(pipeline), self.destination(pipeline))

    def syncs(self) -> tuple[Sync, ...]:
        """The pipelines from Delta tables to Postgres, in their order."""
        found = []
        for name, pipeline in self.pipelines.items():
            source, destination = self.source(name), self.destination(name)
            if isinstance(source, DeltaConnection) and isinstance(destination, PostgresConnection):
                sides = (pipeline.source, source, pipeline.destination, destination)
                found.append(Sync(name, *sides, pipeline))
        return tuple(found)

    def captures(self) -> tuple[Capture, ...]:
        """One capture per Postgres source and slot, in the order of the pipelines."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, pipeline in self.pipelines.items():
            if isinstance(self.source(name), PostgresConnection):
                slot = pipeline.slot or default_slot(pipeline.source)
                groups.setdefault((pipeline.source, slot), []).append(name)
        return tuple(self._capture(*key, tuple(names)) for key, names in groups.items())

    def _capture(self, source: str, slot: str, names: tuple[str, ...]) -> Capture:
        connection = self.source(names[0])
        assert isinstance(connection, PostgresConnection)  # so they are grouped
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
        return Capture(folder, source, connection, slot, publications[0], names)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of headrace.yaml, for editors."""
    schema = Settings.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "headrace.yaml",
    }
