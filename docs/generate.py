"""Writes the pages that follow from the code and the reports: `python -m docs.generate`.

With `--check` it writes nothing, and fails with a diff where a page is not what it would write.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import typer.main
from docs.figures import with_curve, with_figures, with_limits
from docs.markdown import joined, table
from docs.types_page import types_page

from headrace import errors
from headrace.cli import app
from headrace.config import json_schema
from headrace.errors import HeadraceError
from headrace.failpoints import FAILPOINTS

ROOT: Final = Path(__file__).parents[1]
REFERENCE: Final = ROOT / "docs" / "reference"
README: Final = ROOT / "README.md"
UPKEEP: Final = ROOT / "docs" / "explanation" / "upkeep.md"
LIMITS: Final = ROOT / "docs" / "explanation" / "limits.md"

EXIT_CODES: Final = {
    0: "done",
    1: "failed",
    2: "wrong use or configuration",
    3: "a check found a blocker",
    4: "a verification found a difference",
    130: "interrupted, after a clean stop",
}
_MODELS: Final = {
    "Settings": "The file",
    "PostgresConnection": "A connection of type postgres",
    "Snapshots": "snapshots of a connection",
    "DeltaConnection": "A connection of type delta",
    "Pipeline": "A pipeline",
    "Quarantine": "quarantine of a pipeline",
    "Throttle": "throttle of a pipeline",
    "AutoRefresh": "auto_refresh of a pipeline",
    "VerifySchedule": "verify of a pipeline",
    "TableEntry": "An entry of tables",
    "ColumnSelection": "columns of an entry",
    "MaskRule": "A mask with a parameter",
    "ExpectationEntry": "A rule under expect of an entry",
}


def main() -> int:
    """Write every page, or with `--check` print how they differ; the exit code."""
    stale = {path: text for path, text in generated().items() if _current(path) != text}
    for path, text in stale.items():
        if "--check" in sys.argv[1:]:
            print(_diff(path, text))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
    return int("--check" in sys.argv[1:] and bool(stale))


def generated() -> dict[Path, str]:
    """Every page that is generated, or has a generated part, as it must be."""
    reference = {REFERENCE / name: page() for name, page in PAGES.items()}
    return {
        **reference,
        README: with_figures(README.read_text("utf-8")),
        UPKEEP: with_curve(UPKEEP.read_text("utf-8")),
        LIMITS: with_limits(LIMITS.read_text("utf-8")),
    }


def _current(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _diff(path: Path, text: str) -> str:
    name = path.relative_to(ROOT).as_posix()
    now, then = _current(path).splitlines(), text.splitlines()
    return "\n".join(difflib.unified_diff(now, then, name, "make docs", lineterm=""))


# -- the command line ------------------------------------------------------------------------------


def cli_page() -> str:
    """Every command with its arguments and options, in the order of `headrace --help`."""
    command: Any = typer.main.get_command(app)
    codes = table(("exit code", "meaning"), EXIT_CODES.items())
    parts = [
        "# Command line",
        f"{command.help} `headrace --version` prints the version, and whether the compiled decoder "
        "is in use; `headrace --install-completion` completes commands in your shell.",
        "With `--json` a command prints one JSON object a line; an error is an object with `error` "
        "and `hint`. Without it errors and hints go to stderr. `headrace run` stops cleanly at "
        "Ctrl-C or SIGTERM, and at once at the second.",
        codes,
        *(_command(name, sub) for name, sub in _commands(command)),
    ]
    return joined(parts)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, those inside of others included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(
        ["headrace", name, *(["[OPTIONS]"] if options else []), *(p.metavar for p in arguments)]
    )
    rows = [(f"`{p.metavar}`", p.help) for p in arguments]
    rows += [(f"`{_option(p)}`", _with_default(p)) for p in options]
    parts = [f"## headrace {name}", command.help, f"```\n{usage}\n```"]
    return "\n\n".join([*parts, table(("", ""), rows)] if rows else parts)


def _option(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def _with_default(option: Any) -> str:
    default = option.default
    return f"{option.help} Default: `{default}`." if default and not option.is_flag else option.help


# -- headrace.yaml ---------------------------------------------------------------------------------


def config_page() -> str:
    """Every key that headrace.yaml may hold, from its JSON Schema."""
    schema = json_schema()
    definitions = {**schema["$defs"], "Settings": schema}
    parts = [
        "# headrace.yaml",
        "`${NAME}` in any value reads the environment; `$${` stands for a literal `${`. Relative "
        "paths are relative to the file. `headrace schema` prints the JSON Schema behind this "
        "page, from which editors complete the file; `headrace init` writes a file to start from.",
        *(_keys(_MODELS[name], _properties(definitions[name])) for name in _MODELS),
    ]
    return joined(parts)


def _properties(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of an object, also of one that a bare text may stand for."""
    for choice in (definition, *definition.get("anyOf", ())):
        if "properties" in choice:
            required = set(choice.get("required", ()))
            return {k: {**v, "required": k in required} for k, v in choice["properties"].items()}
    raise LookupError(f"no properties in {definition}")


def _keys(title: str, properties: Mapping[str, Any]) -> str:
    rows = [
        (f"`{key}`", _type(value), _default(value), value.get("description", ""))
        for key, value in properties.items()
    ]
    return f"## {title}\n\n{table(('key', 'value', 'default', 'meaning'), rows)}"


def _type(value: Mapping[str, Any]) -> str:
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    choices = [_type(c) for c in value.get("anyOf", ()) if c.get("type") != "null"]
    if choices:
        return " or ".join(dict.fromkeys(choices))
    match value.get("type"):
        case "array":
            return "list"
        case "object" | None:
            return "keys"
        case "string":
            return "text"
        case "integer":
            return "number"
        case kind:
            return str(kind)


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if value["required"]:
        return "required"
    return "" if default in (None, {}, False) else f"`{default}`"


# -- errors and failpoints -------------------------------------------------------------------------


def errors_page() -> str:
    """Every exception, as the tree it is, with its exit code."""
    rows = [
        (
            f"{'&nbsp;&nbsp;' * depth}`{kind.__name__}`",
            kind.exit_code,
            "yes" if kind.transient else "",
            _first_paragraph(kind),
        )
        for depth, kind in _tree(HeadraceError, 0)
    ]
    parts = [
        "# Errors",
        "All descend from `headrace.errors.HeadraceError`, carry a `hint` (a command or SQL where "
        "there is one) and pickle. A transient one is tried again by itself, with growing pauses.",
        table(("error", "exit code", "transient", "meaning"), rows),
    ]
    return joined(parts)


def _tree(kind: type[HeadraceError], depth: int) -> Iterator[tuple[int, type[HeadraceError]]]:
    yield depth, kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child, depth + 1)


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def failpoints_page() -> str:
    """Every failpoint, and how to arm one."""
    parts = [
        "# Failpoints",
        "Places where tests make the process die or an operation fail. "
        "`HEADRACE_FAILPOINT=log.manifest_put=kill@3` has the third pass through that place send "
        "SIGKILL to the process; `log.file_written=enospc@1-5` has passes 1 to 5 raise ENOSPC.",
        table(("failpoint", "what is so when it is passed"), _code_keys(FAILPOINTS)),
    ]
    return joined(parts)


def _code_keys(rows: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"`{key}`", value) for key, value in rows.items()]


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "cli.md": cli_page,
    "config.md": config_page,
    "errors.md": errors_page,
    "failpoints.md": failpoints_page,
    "types.md": types_page,
}

if __name__ == "__main__":
    sys.exit(main())
