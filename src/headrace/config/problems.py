"""What is wrong with headrace.yaml, gathered so that one run tells all of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace.errors import ConfigError

KeyPath = tuple[str | int, ...]  # the keys and list indexes that lead to a value


@dataclass(frozen=True, order=True)
class Problem:
    """One fault: its line (1 is the first), where in the tree, what, and what to do."""

    line: int
    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {self.where}: {self.what}" if self.where else self.what


def config_error(file: str, problems: Sequence[Problem]) -> ConfigError:
    """One error for all problems, in the order of their lines. Context: file, line, problems."""
    ordered = tuple(sorted(set(problems)))
    first = ordered[0]
    if len(ordered) == 1:
        message = f"{file}, {first}" if first.where else f"{file}, line {first.line}: {first.what}"
        hint = first.hint or "headrace schema prints what the file may hold"
    else:
        listed = "\n".join(f"  {_with_hint(problem)}" for problem in ordered)
        message = f"{file} has {len(ordered)} problems:\n{listed}"
        hint = "correct the lines above; headrace schema prints what the file may hold"
    return ConfigError(message, hint=hint, file=file, line=first.line, problems=ordered)


def dotted(path: KeyPath) -> str:
    """`pipelines.shop_to_lake.tables[2].mode`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """The nearest of `known` as an instruction; all of them where none is near; may be empty."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    return f"choose one of {', '.join(names)}" if names else ""


def _with_hint(problem: Problem) -> str:
    return f"{problem} ({problem.hint})" if problem.hint else str(problem)
