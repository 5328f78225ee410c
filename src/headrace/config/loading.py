"""From the file to `Settings`: everything that is wrong is told at once, with its line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from headrace.config.connections import (
    DeltaConnection,
    FutureConnection,
    PostgresConnection,
)
from headrace.config.document import Document, read_document
from headrace.config.problems import KeyPath, Problem, config_error, did_you_mean
from headrace.config.settings import Origin, Pipeline, Settings, TableEntry
from headrace.errors import ConfigError

# Keys that the file may hold but that this version does not act on yet.
_NOT_YET: Final = ("mask", "where", "columns")

_MODELS: Final[Mapping[str, Any]] = {
    "postgres": PostgresConnection,
    "delta": DeltaConnection,
}


def load(path: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """Read headrace.yaml.

    Raises:
        ConfigError: with file, line, the value and the nearest valid one; for all faults at once.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist", hint="headrace init writes one, -c FILE names another"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="save it as UTF-8 text") from error
    document = read_document(text, str(path), os.environ if environment is None else environment)
    return _settings(document, path.resolve().parent)


def _settings(document: Document, folder: Path) -> Settings:
    problems = list(document.problems)
    settings = None
    try:
        settings = Settings.model_validate(document.data)
    except ValidationError as error:
        problems += _validation_problems(document, error)
    if settings is not None:
        problems += _reference_problems(document, settings)
        problems += _not_yet(document, settings)
    if problems or settings is None:
        raise config_error(document.file, problems)
    settings = _with_absolute_paths(settings, folder)
    settings._origin = Origin(document.file, tuple(document.key_lines.items()))
    settings.captures()  # refuses pipelines that share a slot but not its publication
    return settings


def _with_absolute_paths(settings: Settings, folder: Path) -> Settings:
    def absolute(location: str) -> str:
        return location if "://" in location else str((folder / Path(location).expanduser()))

    connections = {
        name: c.model_copy(update={"location": absolute(c.location)})
        if isinstance(c, DeltaConnection)
        else c
        for name, c in settings.connections.items()
    }
    update = {"state": absolute(settings.state), "connections": connections}
    return settings.model_copy(update=update)


# -- what pydantic found ---------------------------------------------------------------------------


def _validation_problems(document: Document, error: ValidationError) -> Iterator[Problem]:
    for found in error.errors(include_url=False, include_input=False):
        path = _document_path(document, found["loc"])
        if found["type"] == "extra_forbidden":
            yield _unknown_key(document, path)
        elif found["type"] == "missing":
            yield document.problem(path[:-1], f"{path[-1]} is missing", "add it")
        else:
            yield document.problem(path, _what(document, path, found))


def _document_path(document: Document, location: tuple[int | str, ...]) -> KeyPath:
    """pydantic's location without the tags of unions, which the file does not have."""
    path: KeyPath = ()
    for number, part in enumerate(location):
        inside = (*path, part)
        last = number == len(location) - 1
        if inside in document.lines or inside in document.key_lines or (last and not _tag(part)):
            path = inside
    return path


def _tag(part: int | str) -> bool:
    return part in (*_MODELS, "future")


def _unknown_key(document: Document, path: KeyPath) -> Problem:
    known = _known_keys(document, path[:-1])
    return document.problem(path, "unknown key", did_you_mean(str(path[-1]), known))


def _known_keys(document: Document, path: KeyPath) -> list[str]:
    """The keys that may stand at `path`, from the models themselves."""
    if not path:
        return list(Settings.model_fields)
    if path[0] == "connections":
        kind = document.written.get((*path[:2], "type"), "")
        return list(_MODELS.get(kind, PostgresConnection).model_fields)
    if len(path) == 2:
        return list(Pipeline.model_fields)
    return ["include", "exclude"] if path[-1] == "columns" else list(TableEntry.model_fields)


def _what(document: Document, path: KeyPath, found: Any) -> str:
    message = str(found["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    written = document.written.get(path)
    secret = bool(path) and path[-1] in ("password", "url", "storage_options")
    if written is None or secret or "storage_options" in path:
        return message
    near = ""
    expected = found.get("ctx", {}).get("expected")
    if isinstance(expected, str):
        near = did_you_mean(written, [e.strip("' ") for e in expected.replace(" or ", ",").split(",")])
    return f"{written!r}: {message}" + (f"; {near}" if near.startswith("did") else "")


# -- what only the whole file tells ----------------------------------------------------------------


def _reference_problems(document: Document, settings: Settings) -> Iterator[Problem]:
    for name, pipeline in settings.pipelines.items():
        for role, wanted, kind in (
            ("source", pipeline.source, PostgresConnection),
            ("destination", pipeline.destination, DeltaConnection),
        ):
            path = ("pipelines", name, role)
            connection = settings.connections.get(wanted)
            if connection is None:
                hint = did_you_mean(wanted, settings.connections)
                yield document.problem(path, f"there is no connection {wanted!r}", hint)
            elif not isinstance(connection, (kind, FutureConnection)):
                what = f"{wanted!r} is of type {connection.type}, which cannot be a {role} yet"
                yield document.problem(path, what, "postgres is the source, delta the destination")


def _not_yet(document: Document, settings: Settings) -> Iterator[Problem]:
    for name, connection in settings.connections.items():
        if isinstance(connection, FutureConnection):
            path: KeyPath = ("connections", name, "type")
            yield document.problem(path, f"{connection.type} is not supported yet")
    for name, pipeline in settings.pipelines.items():
        if pipeline.schedule != "continuous":
            what = f"{pipeline.schedule!r}: schedules other than continuous are not supported yet"
            hint = "run headrace run --once from your scheduler"
            yield document.problem(("pipelines", name, "schedule"), what, hint)
        for number, entry in enumerate(pipeline.tables):
            yield from _entry_not_yet(document, ("pipelines", name, "tables", number), entry)


def _entry_not_yet(document: Document, path: KeyPath, entry: TableEntry) -> Iterator[Problem]:
    if entry.mode not in (None, "scd1"):
        what = f"mode {entry.mode} is not supported yet"
        yield document.problem((*path, "mode"), what, "scd1 is")
    for key in _NOT_YET:
        if getattr(entry, key) is not None:
            yield document.problem((*path, key), "not supported yet", "leave it out")
