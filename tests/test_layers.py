"""Imports go down only (ARCHITECTURE.md, "Layers"): every module's imports are read and judged."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import headrace

ROOT = Path(headrace.__file__).parent
LEVELS = (
    ("errors", "failpoints"),
    ("model",),
    ("pgoutput", "pgcopy", "log", "config"),
    ("connectors",),
    ("engine",),
    ("migrate", "verify"),
    ("project",),  # and every other module beside it: the composition root
    ("cli", "server", "spark"),
)
LEVEL = {part: number for number, parts in enumerate(LEVELS) for part in parts}
DEMO = "headrace.cli.demo"
VAGUE = {"utils", "util", "common", "helpers", "misc"}
OUTSIDE_WORLD = {  # what pure code must not touch: sockets, files, processes
    *("asyncio", "io", "os", "pathlib", "psycopg", "obstore", "select", "shutil"),
    *("socket", "ssl", "subprocess", "tempfile"),
}


@dataclass(frozen=True)
class Import:
    """`module` (in `file`) imports `target` at `line`; `typing` if only type checkers do."""

    module: str
    target: str
    line: int
    typing: bool


def part_of(module: str) -> str:
    """The folder under headrace/, or `project` for what stands beside project.py."""
    names = module.split(".")
    if names[1:] == ["__main__"]:
        return "cli"
    whole = len(names) > 2 or names[-1] in LEVEL or names[-1] == "testing"
    return names[1] if whole and len(names) > 1 else "project"


def connector_of(module: str) -> str | None:
    names = module.split(".")
    return names[2] if names[1:2] == ["connectors"] and len(names) > 2 else None


def imports(module: str, source: str, modules: Mapping[str, str]) -> Iterator[Import]:
    """All imports, wherever they stand; `from headrace import x` counts for what x is."""
    tree = ast.parse(source)
    typing = {id(n) for block in ast.walk(tree) if _for_typing(block) for n in ast.walk(block)}
    for node in ast.walk(tree):
        for target in _targets(node, modules):
            yield Import(module, target, getattr(node, "lineno", 0), id(node) in typing)


def _for_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _targets(node: ast.AST, modules: Mapping[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        names = [a.name for a in node.names if (base, a.name) != ("headrace", "__version__")]
        inner = [f"{base}.{name}" for name in names]
        yield from dict.fromkeys(name if name in modules else base for name in inner)


def broken_rule(found: Import) -> str | None:
    """Which rule an import breaks, in words; None if it breaks none."""
    here, there = part_of(found.module), found.target.split(".")[0]
    if there == "":
        return "imports are absolute, so that a reader sees where they lead"
    if there != "headrace":
        pure = here in ("errors", "model", "pgoutput", "pgcopy") and there in OUTSIDE_WORLD
        return f"{here} does no I/O" if pure else None
    return _between_parts(found, here, part_of(found.target))


def _between_parts(found: Import, here: str, there: str) -> str | None:
    if there == "testing":
        allowed = here == "testing" or found.module == DEMO
        return None if allowed else "the product does not import headrace.testing, the demo aside"
    if here == "testing":
        return None
    for part in (here, there):
        if part not in LEVEL:
            return f"{part} has no level: give it one in ARCHITECTURE.md and in this test"
    if here == there:
        return _between_connectors(found) if here == "connectors" else None
    if LEVEL[here] == LEVEL[there]:
        return f"{here} and {there} stand on one level and do not know each other"
    if LEVEL[here] < LEVEL[there]:
        return f"imports go down: {here} (level {LEVEL[here]}), {there} (level {LEVEL[there]})"
    if (here, there) == ("engine", "connectors"):
        return "the engine sees Protocols, never a connector"
    if (here, there) == ("connectors", "log") and found.target != "headrace.log.storage":
        return "of the log, connectors know headrace.log.storage only"
    return None


def _between_connectors(found: Import) -> str | None:
    one, other = connector_of(found.module), connector_of(found.target)
    return None if other in (one, None) else f"connector {one} does not know connector {other}"


def judge(modules: Mapping[str, str]) -> list[str]:
    """Every breach as `module:line imports target: rule`, given each module's source."""
    breaches = []
    for module, source in modules.items():
        if VAGUE & set(module.split(".")):
            breaches.append(f"{module}: a name that says nothing about what is inside")
        breaches += [
            f"{module}:{found.line} imports {found.target}: {rule}"
            for found in imports(module, source, modules)
            if (rule := broken_rule(found))
        ]
    return breaches


def cycle(modules: Mapping[str, str]) -> list[str]:
    """The modules of one import cycle, in order; empty if there is none."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, source in modules.items():
        for found in imports(module, source, modules):
            if found.target in modules and not found.typing:
                graph[module].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as found:
        return list(found.args[1])
    return []


def product() -> dict[str, str]:
    paths = sorted(ROOT.rglob("*.py"))
    return {_name(path): path.read_text(encoding="utf-8") for path in paths}


def _name(path: Path) -> str:
    names = ("headrace", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def test_imports_go_down_only() -> None:
    modules = product()
    assert "headrace.model.batch" in modules
    breaches = judge(modules)
    assert not breaches, "\n" + "\n".join(breaches)


def test_no_import_goes_round_in_a_circle() -> None:
    found = cycle(product())
    assert not found, " -> ".join(found)


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("headrace.model.a", "import headrace.engine.collapse", "imports go down"),
        ("headrace.log.a", "from headrace.pgoutput import wire", "stand on one level"),
        ("headrace.config.a", "def f():\n    import headrace.engine", "imports go down"),
        ("headrace.errors", "from headrace.model import Lsn", "imports go down"),
        ("headrace.connectors.a.x", "import headrace.connectors.b.y", "does not know connector b"),
        ("headrace.connectors.a.x", "from headrace.engine import retry", "imports go down"),
        ("headrace.connectors.a.x", "import headrace.log.writer", "headrace.log.storage only"),
        ("headrace.engine.a", "from headrace.connectors.b import c", "sees Protocols"),
        ("headrace.engine.a", "from headrace import project", "imports go down"),
        ("headrace.server.a", "import headrace.cli.app", "stand on one level"),
        ("headrace.cli.a", "import headrace.testing.postgres", "the demo aside"),
        ("headrace.status", "import headrace.cli", "imports go down"),
        ("headrace.novel.a", "import headrace.errors", "has no level"),
        ("headrace.pgoutput.a", "import socket", "no I/O"),
        ("headrace.pgcopy.a", "import psycopg", "no I/O"),
        ("headrace.model.a", "from pathlib import Path", "no I/O"),
        ("headrace.model.a", "from . import b", "absolute"),
        ("headrace.engine.utils", "", "says nothing"),
    ],
)
def test_each_rule_is_seen_to_be_broken(module: str, source: str, rule: str) -> None:
    others = dict.fromkeys(["headrace.project", "headrace.engine.retry"], "")
    breaches = judge({**others, module: source})
    assert len(breaches) == 1
    assert breaches[0].startswith(module)
    assert rule in breaches[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headrace.connectors.a.x", "from headrace.log.storage import Storage"),
        ("headrace.connectors.a.x", "import headrace.connectors.a.y"),
        ("headrace.connectors.a.x", "from headrace import __version__"),
        (DEMO, "import headrace.testing.postgres"),
        ("headrace.testing.a", "import headrace.cli.app"),
        ("headrace.verify.a", "import headrace.connectors.a.x"),
        ("headrace.status", "from headrace import project"),
        ("headrace.__main__", "from headrace.cli import main"),
        ("headrace.log.a", "import os"),
    ],
)
def test_what_the_layers_allow_passes(module: str, source: str) -> None:
    assert judge({"headrace.project": "", module: source}) == []


def test_a_cycle_is_seen_also_through_a_package() -> None:
    modules = {
        "headrace.a": "from headrace.a import x",
        "headrace.a.x": "def f():\n    from headrace.a.y import g",
        "headrace.a.y": "from headrace.a import something",
    }
    assert set(cycle(modules)) == {*modules}
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import headrace.a"
    assert cycle({**modules, "headrace.a.y": typed}) == []
