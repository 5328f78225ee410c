"""What a preflight found: how bad it is, where, and the SQL or console step that cures it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Severity(Enum):
    """What a finding means for a run."""

    BLOCKER = "blocker"  # a run would fail or lose rows
    WARNING = "warning"  # a run works, until something else goes wrong
    OK = "ok"  # looked at, and in order

    @property
    def rank(self) -> int:
        """0 for what comes first in a listing, the blockers."""
        return _RANKS[self]


_RANKS = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True)
class Finding:
    """One thing that a preflight looked at. No field ever holds a secret.

    `name` is a stable kebab-case id; `objects` are the tables, slots or settings concerned;
    `evidence` is what the system itself said; `fix` tells a person what to do, `sql` are the
    statements that do it. `safe` says that `headrace check --fix` may run them.
    """

    severity: Severity
    name: str
    message: str
    objects: tuple[str, ...] = ()
    evidence: str = ""
    fix: str = ""
    sql: tuple[str, ...] = ()
    safe: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "severity": self.severity.value,
            "name": self.name,
            "message": self.message,
            "objects": list(self.objects),
            "evidence": self.evidence,
            "fix": self.fix,
            "sql": list(self.sql),
            "safe": self.safe,
        }


def cures(findings: Iterable[Finding]) -> str:
    """What cures all of them: the statements, and where there are none what to do."""
    return ";\n".join(filter(None, (";\n".join(f.sql) or f.fix for f in findings)))
