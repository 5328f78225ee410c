"""Reading headrace.yaml: every problem at once, each with its line and the nearest valid value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from headrace.config.connections import (
    DeltaConnection,
    FutureConnection,
    PostgresConnection,
)
from headrace.config.document import Document, read_document
from headrace.config.explain import explain_all
from headrace.config.problems import Problem, config_error, did_you_mean
from headrace.config.selection import contradictory
from headrace.config.settings import Origin, Settings
from headrace.config.suitability import LATER, unsuitable
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
    problems += [*document.problems, *_dangling(document)]
    if settings is not None:
        settings._origin = Origin(file, tuple({**document.lines, **document.key_lines}.items()))
        problems += [*_future(settings), *unsuitable(settings)]
    if settings is not None and not problems:
        problems += contradictory(settings)
    if problems or settings is None:
        raise config_error(file, problems)
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
        return None, explain_all(document, error.errors(include_url=False))
    return _resolved(settings, folder), []


# -- paths -----------------------------------------------------------------------------------------


def _resolved(settings: Settings, folder: Path) -> Settings:
    connections = {name: _resolve_paths(c, folder) for name, c in settings.connections.items()}
    state = _absolute(settings.state, folder)
    return settings.model_copy(update={"state": state, "connections": connections})


def _resolve_paths(connection: BaseModel, folder: Path) -> BaseModel:
    names: tuple[str, ...] = ()
    if isinstance(connection, DeltaConnection):
        names = ("location", "storage_root")
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


def _dangling(document: Document) -> Iterator[Problem]:
    """Names of connections that do not exist, told even where the rest is not valid yet."""
    data = document.data if isinstance(document.data, dict) else {}
    connections, pipelines = data.get("connections"), data.get("pipelines")
    if not isinstance(connections, dict) or not isinstance(pipelines, dict):
        return
    for name, pipeline in pipelines.items():
        for side in ("source", "destination") if isinstance(pipeline, dict) else ():
            wanted = pipeline.get(side)
            if isinstance(wanted, str) and wanted not in connections:
                hint = did_you_mean(wanted, connections)
                what = f"no connection is called {wanted}"
                yield document.problem(("pipelines", name, side), what, hint)


def _future(settings: Settings) -> Iterator[Problem]:
    for name, connection in settings.connections.items():
        if isinstance(connection, FutureConnection):
            path = ("connections", name, "type")
            what = f"{connection.type} {LATER}"
            yield settings.origin.problem(path, what, "remove it for now")
