"""Where the blocks of a page run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace.testing.database import Database


@dataclass(frozen=True)
class Place:
    """A folder of its own; `environment` has the URL of `database` as DATABASE_URL."""

    folder: Path
    database: Database
    environment: dict[str, str]
