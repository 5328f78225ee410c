"""The source that the fault tests replicate, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace.testing.database import Database

SEED = 1


@dataclass(frozen=True)
class Shop:
    """A source database with the workload's tables, and the project in `folder` for it."""

    database: Database
    folder: Path

    @property
    def project(self) -> Path:
        return self.folder / "headrace.yaml"
