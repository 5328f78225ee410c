"""A shell that types what a page shows, and compares what comes back with what the page says.

`…` stands for what varies: within a line for any text, alone for any number of lines. Runs of
spaces count as one, because the width of a table's column follows its widest value. A command
without lines below it must succeed; what it prints is not compared.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import select
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 30.0  # seconds of silence until a job counts as stuck


@dataclass(frozen=True)
class Step:
    """A command, and the lines that the page shows below it."""

    command: str
    shown: tuple[str, ...]

    @property
    def in_background(self) -> bool:
        return self.command.endswith(" &")


def steps(text: str) -> list[Step]:
    """What a console block types: `$ ` begins a command, `> ` goes on with it."""
    found: list[Step] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], ()))
        elif line.startswith("> ") and not found[-1].shown:
            found[-1] = Step(f"{found[-1].command}\n{line[2:]}", ())
        else:
            found[-1] = Step(found[-1].command, (*found[-1].shown, line))
    return found


def difference(shown: tuple[str, ...], printed: str) -> str:
    """A diff of what the page shows and what was printed; empty where they agree."""
    expected = _normal("\n".join(shown))
    actual = _normal(printed)
    pattern = "".join(
        "(?:.*\n)*?" if line == "…" else ".*?".join(map(re.escape, line.split("…"))) + "\n"
        for line in expected
    )
    if re.fullmatch(pattern, "".join(f"{line}\n" for line in actual)):
        return ""
    return "\n".join(difflib.unified_diff(expected, actual, "the page", "what came", lineterm=""))


def _normal(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip().splitlines()]


class Terminal:
    """One bash in `folder`; variables and jobs live from command to command."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)

    def __enter__(self) -> Self:
        self._jobs_output, self._jobs_input = os.pipe()
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env=self._environment,
            text=True,
            pass_fds=[self._jobs_input],
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._type("jobs -p | xargs -r kill; wait")
        self._shell.communicate()
        os.close(self._jobs_output)
        os.close(self._jobs_input)

    def run(self, step: Step) -> str:
        """Run one step; what is wrong with it, or nothing."""
        if step.in_background:
            return self._start(step)
        printed, code = self._foreground(step.command)
        if code:
            return f"exit code {code}\n{printed}"
        return difference(step.shown, printed) if step.shown else ""

    def _foreground(self, command: str) -> tuple[str, int]:
        end = f"end-{secrets.token_hex(8)}"
        self._type(f"{{ {command}\n}} </dev/null 2>&1\nprintf '\\n{end} %d\\n' $?")
        assert self._shell.stdout is not None
        lines: list[str] = []
        for line in self._shell.stdout:
            if line.startswith(end):
                return "".join(lines), int(line.split()[1])
            lines.append(line)
        raise AssertionError(f"the shell ended in {command!r}")

    def _start(self, step: Step) -> str:
        """Start a job, and wait until it has printed what the page shows."""
        job = step.command.removesuffix("&")
        self._type(f"{job} </dev/null >&{self._jobs_input} 2>&1 &")
        printed = b""
        while missing := difference(step.shown, printed.decode()):
            ready, _, _ = select.select([self._jobs_output], [], [], PATIENCE)
            if not ready:
                return f"ended or fell silent before it had printed what the page shows\n{missing}"
            printed += os.read(self._jobs_output, 65536)
        return ""

    def _type(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{text}\n")
        self._shell.stdin.flush()
