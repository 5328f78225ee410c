"""The project's pages as data: their fenced blocks and their links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXECUTABLE = frozenset({"console", "python", "sql"})

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_NOT_EXECUTED = "not executed: "


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is the HTML comment on the line above it."""

    page: Path
    line: int  # of its first line inside the fence
    language: str
    mark: str
    text: str

    @property
    def executed(self) -> bool:
        return self.language in EXECUTABLE and not self.mark.startswith(_NOT_EXECUTED)

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}, line {self.line}"


def pages() -> list[Path]:
    """Every page of the project, those that are generated included."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["language"],
            found["mark"] or "",
            found["text"],
        )
        for found in _FENCE.finditer(text)
    ]


def links(page: Path) -> list[str]:
    """Targets of the links of a page, code left out."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return _LINK.findall(re.sub(r"`[^`\n]*`(?!\])", "", text))
