"""What the parts of a batch came to that is not committed: new files, and rows that left.

A batch that memory does not hold comes in parts. Each finds the rows of those before it, through
the key index, and one commit names what all of them came to: nobody sees a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pyroaring import BitMap

from headrace.connectors.delta.actions import File
from headrace.connectors.delta.state import TableState

# The vector of a file that lost rows to a part: none that a log names, so that an index which has
# to go back to a version finds that it is at another.
UNNAMED: Final[Mapping[str, Any]] = {"storageType": "-", "pathOrInlineDv": "pending"}


@dataclass
class Pending:
    """`files`: what add actions are to say of new files, by path. `gone`: by path, all rows that a
    file lacks by now. `emptied`: of the files that the table has, none stays. `by_files`: there was
    a truncate, of which a feed tells without images."""

    files: dict[str, File] = field(default_factory=dict)
    gone: dict[str, BitMap] = field(default_factory=dict)
    emptied: bool = False
    by_files: bool = False
    upserted: int = 0
    deleted: int = 0

    def __bool__(self) -> bool:
        return bool(self.files or self.gone or self.emptied)

    def replace_all(self) -> None:
        """Every file goes: the table's, and those that came since."""
        self.files.clear()
        self.gone.clear()
        self.emptied = self.by_files = True

    def over(self, state: TableState) -> TableState:
        """The table with these files, whose vectors are those of `gone`, not of the files."""
        if not self:
            return state
        standing = {} if self.emptied else state.files
        return replace(state, files={**standing, **{p: dict(f) for p, f in self.files.items()}})
