"""What a pipeline may say, by the kinds of its source and destination.

A key that would be ignored is refused instead, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from headrace.config.connections import Connection, DeltaConnection
from headrace.config.problems import KeyPath, Problem
from headrace.config.routes import Route, route
from headrace.config.settings import Pipeline, Settings

LATER: Final = "is not yet supported"
_FOR_DELTA_SOURCE: Final = "is for a Delta source: Postgres tells of each change by itself"
_FOR_POSTGRES_SOURCE: Final = "is for a Postgres source: Delta tables are read without"
_FOR_POSTGRES_DESTINATION: Final = "is for a Postgres destination"
_FOR_DELTA_DESTINATION: Final = "is for a Delta destination"
_LAYOUT: Final = ("deletion_vectors", "change_data_feed", "index_memory")
_TABLE_LAYOUT: Final = ("track", "metadata", "cluster_by", "partition_by")

# By the keys of the file.
_PIPELINE_KEYS: Final[Mapping[Route, Mapping[str, str]]] = {
    Route.CAPTURE: {
        "poll": _FOR_DELTA_SOURCE,
        "rebuild_above": _FOR_POSTGRES_DESTINATION,
        "quarantine": _FOR_POSTGRES_DESTINATION,
        "throttle": _FOR_POSTGRES_DESTINATION,
    },
    Route.TRANSFER: {
        "poll": _FOR_DELTA_SOURCE,
        "schema": LATER,
        "drop_columns": LATER,
        **dict.fromkeys(_LAYOUT, _FOR_DELTA_DESTINATION),
        "auto_refresh": LATER,
        "verify": LATER,
        "rebuild_above": LATER,
        "throttle": LATER,
    },
    Route.SYNC: {
        "slot": _FOR_POSTGRES_SOURCE,
        "publication": _FOR_POSTGRES_SOURCE,
        **dict.fromkeys(_LAYOUT, _FOR_DELTA_DESTINATION),
        "auto_refresh": _FOR_POSTGRES_SOURCE,
        "verify": LATER,
    },
}
_NEWEST_BY: Final = "is for a Delta source: a key of Postgres has one row"
_ENTRY_KEYS: Final[Mapping[Route, Mapping[str, str]]] = {
    Route.CAPTURE: {
        "where": LATER,
        "mask": LATER,
        "expect": LATER,
        "newest_by": _NEWEST_BY,
        "take_over": _FOR_POSTGRES_DESTINATION,
    },
    Route.TRANSFER: {
        "where": LATER,
        "mask": LATER,
        "expect": LATER,
        **dict.fromkeys(_TABLE_LAYOUT, _FOR_DELTA_DESTINATION),
        "newest_by": _NEWEST_BY,
    },
    Route.SYNC: dict.fromkeys(_TABLE_LAYOUT, _FOR_DELTA_DESTINATION),
}
_READ_AS: Final = "as"
_COLUMN_KEYS: Final[Mapping[Route, Mapping[str, str]]] = {
    **dict.fromkeys(
        (Route.CAPTURE, Route.TRANSFER),
        dict.fromkeys(("include", "exclude", "rename", "types"), LATER),
    ),
    Route.SYNC: {_READ_AS: "is for a Postgres source: a Delta table's types hold what it has"},
}
_MODES: Final[Mapping[Route, frozenset[str]]] = {
    Route.CAPTURE: frozenset({"scd1", "scd2", "append"}),
    Route.TRANSFER: frozenset({"scd1"}),
    Route.SYNC: frozenset({"scd1", "append"}),
}


def unsuitable(settings: Settings) -> Iterator[Problem]:
    """Whatever a pipeline says that its route has no use for, or not yet."""
    for name, pipeline in settings.pipelines.items():
        source = settings.connections.get(pipeline.source)
        destination = settings.connections.get(pipeline.destination)
        if source is not None and destination is not None:
            yield from _of_pipeline(settings, name, pipeline, source, destination)


def _of_pipeline(
    settings: Settings,
    name: str,
    pipeline: Pipeline,
    source: Connection,
    destination: Connection,
) -> Iterator[Problem]:
    path = ("pipelines", name)
    problem = settings.origin.problem
    leads = route(source, destination)
    if pipeline.source == pipeline.destination:
        what = "source and destination are one connection"
        yield problem((*path, "destination"), what, "name another connection")
    elif leads is None:
        if isinstance(source, DeltaConnection) and isinstance(destination, DeltaConnection):
            what = "a delta connection as destination of a delta source is not yet supported"
            yield problem((*path, "destination"), what, "name a connection of type postgres")
    else:
        yield from _places(settings, path, pipeline, destination)
        yield from _keys(settings, path, pipeline, leads)


def _places(
    settings: Settings, path: KeyPath, pipeline: Pipeline, destination: Connection
) -> Iterator[Problem]:
    """What a Unity Catalog as destination cannot be together with."""
    if not (isinstance(destination, DeltaConnection) and destination.is_catalog):
        return
    if "://" in settings.state and not settings.state.startswith("file://"):
        what = f"{destination.location} as destination {LATER} with state on an object store"
        hint = "state: a folder; the credentials that a catalog lends are for its tables alone"
        yield settings.origin.problem((*path, "destination"), what, hint)
    schema = destination.only_schema
    for number, entry in enumerate(pipeline.tables):
        if schema and entry.name is not None and entry.name.partition(".")[0] != schema:
            what = f"{entry.name} is not in {schema}, which is all of {destination.location}"
            hint = f"name: {schema}.{entry.name.partition('.')[2]}, or a location without a schema"
            yield settings.origin.problem((*path, "tables", number, "name"), what, hint)


def _keys(settings: Settings, path: KeyPath, pipeline: Pipeline, leads: Route) -> Iterator[Problem]:
    if pipeline.schedule != "continuous" and leads is not Route.SYNC:
        what = f"the schedule {pipeline.schedule} {LATER} {leads.value}"
        yield settings.origin.problem((*path, "schedule"), what, "remove it for now")
    given = {"schema" if key == "schema_policy" else key for key in pipeline.model_fields_set}
    yield from _refused(settings, path, given, _PIPELINE_KEYS[leads], leads)
    for number, entry in enumerate(pipeline.tables):
        inner = (*path, "tables", number)
        if entry.mode is not None and entry.mode not in _MODES[leads]:
            what = f"the mode {entry.mode} {LATER} {leads.value}"
            yield settings.origin.problem((*inner, "mode"), what, "remove it for now")
        yield from _refused(settings, inner, entry.model_fields_set, _ENTRY_KEYS[leads], leads)
        if entry.columns is not None:
            fields = entry.columns.model_fields_set
            chosen = {_READ_AS if key == "read_as" else key for key in fields}
            where = (*inner, "columns")
            yield from _refused(settings, where, chosen, _COLUMN_KEYS[leads], leads)


def _refused(
    settings: Settings, path: KeyPath, given: set[str], refused: Mapping[str, str], leads: Route
) -> Iterator[Problem]:
    for key in sorted(given & refused.keys()):
        why = refused[key]
        later = why == LATER
        what = f"{key} {why} {leads.value}" if later else f"{key} {why}"
        yield settings.origin.problem(
            (*path, key), what, "remove it for now" if later else "remove it"
        )
