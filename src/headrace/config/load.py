"""Reading headrace.yaml: every problem at once, each with its line and the nearest valid value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from headrace.config.connections import (
    DeltaConnection,
    FutureConnection,
    PostgresConnection,
)
from headrace.config.document import Document, read_document
from headrace.config.explain import explain
from headrace.config.problems import KeyPath, Problem, config_error, did_you_mean
from headrace.config.settings import Origin, Settings, TableEntry
from headrace.errors import ConfigError

DEFAULT_FILE: Final = "headrace.yaml"


def load(path: str | Path = DEFAULT_FILE, environment: Mapping[str, str] | None = None) -> Settings:
    """Read and check a file; relative paths in it are relative to its folder.

    Raises:
        ConfigError: the file cannot be read or is wrong; names file, lines and what to write.
    """
    file = Path(path)
    variables = os.environ if environment is None else environment
    return parse(_read(file), str(path), file.absolute().parent, variables)


def parse(text: str, file: str, folder: Path, environment: Mapping[str, str]) -> Settings:
    """Check the text of a file that is called `file` and stands in `folder`."""
    document = read_document(text, file, environment)
    settings, problems = _validate(document, folder)
    problems += document.problems
    if settings is not None:
        problems += [*_relation_problems(document, settings), *_not_yet(document, settings)]
    if problems or settings is None:
        raise config_error(file, problems)
    settings._origin = Origin(file, tuple(document.key_lines.items() | document.lines.items()))
    settings.captures()  # raises where pipelines of one slot contradict each other
    return settings


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except FileNotFoundError:
        what, hint = "does not exist", "headrace init"
    except IsADirectoryError:
        what, hint = "is a folder", f"name the file: {file / DEFAULT_FILE}"
    except UnicodeDecodeError:
        what, hint = "is not UTF-8 text", "save the file as UTF-8"
    except OSError as error:
        what, hint = f"cannot be read: {error.strerror}", f"ls -l {file}"
    raise ConfigError(f"{file} {what}", hint=hint, file=str(file))


def _validate(document: Document, folder: Path) -> tuple[Settings | None, list[Problem]]:
    try:
        settings = Settings.model_validate(document.data)
    except ValidationError as error:
        return None, [explain(document, fault) for fault in error.errors(include_url=False)]
    return _resolved(settings, folder), []


# -- paths -----------------------------------------------------------------------------------------


def _resolved(settings: Settings, folder: Path) -> Settings:
    connections = {name: _resolve_paths(c, folder) for name, c in settings.connections.items()}
    state = _absolute(settings.state, folder)
    return settings.model_copy(update={"state": state, "connections": connections})


def _resolve_paths(connection: BaseModel, folder: Path) -> BaseModel:
    names: tuple[str, ...] = ()
    if isinstance(connection, DeltaConnection):
        names = ("location",)
    elif isinstance(connection, PostgresConnection):
        names = ("sslrootcert", "sslcert", "sslkey")
    paths = {name: getattr(connection, name) for name in names}
    return connection.model_copy(
        update={
            name: _absolute(path, folder)
            for name, path in paths.items()
            if path is not None and (name, path) != ("sslrootcert", "system")
        }
    )


def _absolute(path: str, folder: Path) -> str:
    """A path as an absolute one; a URL as it is."""
    return path if "://" in path else os.path.normpath(folder / Path(path).expanduser())


# -- what one value alone cannot tell --------------------------------------------------------------


def _relation_problems(document: Document, settings: Settings) -> Iterator[Problem]:
    for name, pipeline in settings.pipelines.items():
        for side, kind in (("source", PostgresConnection), ("destination", DeltaConnection)):
            path = ("pipelines", name, side)
            wanted = getattr(pipeline, side)
            connection = settings.connections.get(wanted)
            if connection is None:
                hint = did_you_mean(wanted, settings.connections)
                yield document.problem(path, f"no connection is called {wanted}", hint)
            elif not isinstance(connection, kind | FutureConnection):
                yield _later(document, path, f"a {connection.type} connection as {side}")


def _not_yet(document: Document, settings: Settings) -> Iterator[Problem]:
    for name, connection in settings.connections.items():
        if isinstance(connection, FutureConnection):
            yield _later(document, ("connections", name, "type"), connection.type)
    for name, pipeline in settings.pipelines.items():
        path = ("pipelines", name)
        if pipeline.schedule != "continuous":
            yield _later(document, (*path, "schedule"), f"the schedule {pipeline.schedule}")
        for i, entry in enumerate(pipeline.tables):
            yield from _entry_not_yet(document, (*path, "tables", i), entry)


def _entry_not_yet(document: Document, path: KeyPath, entry: TableEntry) -> Iterator[Problem]:
    if entry.mode not in (None, "scd1"):
        yield _later(document, (*path, "mode"), f"the mode {entry.mode}")
    given: dict[str, Any] = {"mask": entry.mask, "where": entry.where, "columns": entry.columns}
    for key, value in given.items():
        if value is not None:
            yield _later(document, (*path, key), key)


def _later(document: Document, path: KeyPath, what: str) -> Problem:
    return document.problem(path, f"{what} is not yet supported", "remove it for now")
