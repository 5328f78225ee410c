"""headrace.yaml as plain values that remember their lines; `${NAME}` reads the environment.

YAML 1.2, chapter 3 ("Processes and Models"): this reads the representation graph (PyYAML's nodes),
because constructed values no longer know where they stood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from headrace.config.problems import KeyPath, Problem, config_error, did_you_mean, dotted

# $${ stands for a literal ${.
_REFERENCE: Final = re.compile(r"\$?\$\{([^}]*)\}?")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_STANDARD_TAG: Final = "tag:yaml.org,2002:"


@dataclass
class Document:
    """The values of a file; `lines` and `written` tell where each stood and how it was written."""

    file: str
    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    key_lines: dict[KeyPath, int] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: KeyPath) -> int:
        """The line of the value at `path`, or of the nearest thing around it."""
        while path and path not in self.key_lines and path not in self.lines:
            path = path[:-1]
        return self.key_lines.get(path, self.lines.get(path, 1))

    def problem(self, path: KeyPath, what: str, hint: str = "") -> Problem:
        return Problem(self.line(path), dotted(path), what, hint)


def read_document(text: str, file: str, environment: Mapping[str, str]) -> Document:
    """Read one YAML document; problems that leave the rest readable are gathered in it.

    Raises:
        ConfigError: the text is empty or not YAML.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        problem = _syntax_problem(error)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"the character U+{error.character:04X} is not allowed in YAML"
        problem = Problem(line, "", what, "save the file as UTF-8 text")
    else:
        if root is None or root.tag == f"{_STANDARD_TAG}null":
            raise config_error(file, [Problem(1, "", "the file is empty", "headrace init")])
        document = Document(file)
        document.data = _Reader(loader, document, environment).value(root, ())
        return document
    raise config_error(file, [problem])  # outside: the YAML error quotes the file, secrets too


@dataclass
class _Reader:
    """Walks the nodes of a document."""

    loader: yaml.SafeLoader
    document: Document
    environment: Mapping[str, str]
    inside: list[yaml.Node] = field(default_factory=list)

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.document.lines[path] = node.start_mark.line + 1
        if any(node is outer for outer in self.inside):
            return self._refuse(path, "the alias contains itself")
        self.inside.append(node)
        try:
            return self._value(node, path)
        finally:
            self.inside.pop()

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if not node.tag.startswith(_STANDARD_TAG):
            return self._refuse(path, "tags (!) are not used here", "write text in quotes")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.problems.append(Problem(line, dotted(path), "a key must be a name"))
                continue
            key = str(key_node.value)
            inner = (*path, key)
            if key in result:
                first = self.document.key_lines[inner]
                what = f"given twice, first on line {first}"
                self.document.problems.append(Problem(line, dotted(inner), what, "keep one"))
                continue
            self.document.key_lines[inner] = line
            result[key] = self.value(value_node, inner)
        return result

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        self.document.written[path] = str(node.value)
        try:
            value = self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError):  # such as a date in month 13
            return str(node.value)
        if value is None and _is_mask(path) and node.value:
            return "null"  # YAML's own null is the mask of that name, quoted or not
        if value is None:
            return self._refuse(path, "has no value", "write one, or remove the key")
        return self._interpolated(value, path) if isinstance(value, str) else value

    def _interpolated(self, text: str, path: KeyPath) -> str:
        return _REFERENCE.sub(lambda found: self._reference(found, path), text)

    def _reference(self, found: re.Match[str], path: KeyPath) -> str:
        whole, name = found.group(), found.group(1)
        if whole.startswith("$$"):
            return whole[1:]
        if not whole.endswith("}") or not _NAME.match(name):
            return str(
                self._refuse(
                    path,
                    "${ must be followed by the name of an environment variable and }",
                    "write ${NAME}, or $${ for a literal ${",
                    keep=whole,
                )
            )
        if name not in self.environment:
            near = did_you_mean(name, self.environment)
            hint = near if near.startswith("did") else f"export {name}=…"
            what = f"the environment variable {name} is not set"
            return str(self._refuse(path, what, hint, keep=whole))
        return self.environment[name]

    def _refuse(self, path: KeyPath, what: str, hint: str = "", keep: str | None = None) -> Any:
        self.document.problems.append(self.document.problem(path, what, hint))
        return keep


def _is_mask(path: KeyPath) -> bool:
    """Whether the value is `pipelines.<name>.tables[n].mask.<column>`."""
    return path[0:1] == ("pipelines",) and path[2:3] == ("tables",) and path[4:-1] == ("mask",)


def _syntax_problem(error: yaml.MarkedYAMLError) -> Problem:
    """What is no YAML, without quoting the file: the line may hold a password."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    what, context = error.problem or "", error.context or ""
    if "\\t" in what:
        return Problem(line, "", "a tab cannot indent YAML", "indent with spaces")
    if "alias" in what or "alias" in context or "anchor" in what:
        return Problem(line, "", "* and & begin an alias or anchor", "write the value in quotes")
    if isinstance(error, yaml.composer.ComposerError):
        return Problem(line, "", "the file holds more than one YAML document", "remove the ---")
    return Problem(line, "", f"not YAML: {what}", "check indentation, colons and quotes")
