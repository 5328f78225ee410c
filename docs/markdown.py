"""Pieces of Markdown that generated pages are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def joined(parts: Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"


def table(columns: Sequence[str], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
