"""Where a command prints: tables for people, JSON lines for programs, errors with their hints."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.cli.plain import json_line, prose
from headrace.errors import HeadraceError, UnexpectedError

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
# A pipe has no width: whatever reads it wants whole lines.
PIPE_WIDTH: Final = 100_000


class Output:
    """What one invocation prints to. `verbose` adds what only a developer wants to see."""

    def __init__(self, *, as_json: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.verbose = verbose
        self.console = _console(stderr=False)
        self.errors = _console(stderr=True)

    @property
    def live(self) -> bool:
        """Whether a person watches."""
        return self.console.is_terminal and not self.as_json

    def show(self, records: Iterable[Any], shown: RenderableType) -> None:
        """Print the records as JSON lines, or what is shown in their place to a person."""
        if self.as_json:
            for record in records:
                print(json_line(record))
        else:
            self.console.print(shown)

    def say(self, text: str, style: str = "") -> None:
        """A sentence to a person; a program is not told."""
        if not self.as_json:
            self.console.print(Text(prose(text), style=style), soft_wrap=True)

    def warn(self, text: str) -> None:
        self._complain("warning: ", "yellow", text)

    def fail(self, error: HeadraceError) -> None:
        """Print an error: with `as_json` as an object on stdout, else in words on stderr."""
        if self.verbose:
            traceback.print_exception(error, file=sys.stderr)
        if self.as_json:
            print(json_line({"error": error.message, "hint": error.hint}))
            return
        self._complain("error: ", "bold red", error.message)
        if error.hint:
            self._complain("hint: ", "cyan", error.hint)

    def _complain(self, prefix: str, style: str, text: str) -> None:
        """Unwrapped: hints are commands and SQL, to be copied whole."""
        self.errors.print(Text.assemble((prefix, style), prose(text)), soft_wrap=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Collection[str] = ()
) -> Table:
    """A table without lines, so that it can be copied and grepped."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            Text(column), justify="right" if column in right else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(part if isinstance(part, Text) else Text(part) for part in row))
    return made


@contextmanager
def reporting(*, as_json: bool = False, verbose: bool = False) -> Iterator[Output]:
    """Give a command its output, and turn whatever it raises into words and an exit code."""
    _log_to_stderr(logging.DEBUG if verbose else logging.INFO)
    output = Output(as_json=as_json, verbose=verbose)
    try:
        yield output
    except HeadraceError as error:
        output.fail(error)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:  # the process's edge: a person gets words, -v the traceback
        wrapped = UnexpectedError.wrap("headrace", error)
        output.fail(wrapped)
        raise typer.Exit(wrapped.exit_code) from error


def _log_to_stderr(level: int) -> None:
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logger = logging.getLogger("headrace")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
