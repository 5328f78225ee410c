"""What commands share: their options, the project they work on, and a question before harm is done.

What is heavy to import is imported where it is needed, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.model import Lsn
    from headrace.project import Project

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The project's file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines, for programs.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show everything, and tracebacks of errors.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
OnePipeline = Annotated[
    str | None, typer.Argument(metavar="[PIPELINE]", help="Only this pipeline.", show_default=False)
]
DEFAULT_FILE: Final = Path("headrace.yaml")


def load_project(config: Path) -> Project:
    """The project of a file. Raises ConfigError."""
    from headrace.project import load

    return load(config)


def lsn_of(text: str | None) -> Lsn | None:
    """An LSN as an option gives it. Raises ConfigError."""
    from headrace.model import Lsn

    try:
        return None if text is None else Lsn.parse(text)
    except ValueError as error:
        raise ConfigError(str(error), hint="write it as headrace lsn does: 16/B374D848") from error


def confirmed(question: str) -> bool:
    """Ask on the terminal.

    Raises:
        ConfigError: there is none.
    """
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask on", hint="--yes agrees beforehand")
    return bool(typer.confirm(question, err=True))
