"""What a verification tells of one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from headrace.errors import HeadraceError
from headrace.model import Lsn, TableId
from headrace.model.times import python_rows

SAMPLES: Final = 10  # keys that a difference shows


@dataclass(frozen=True)
class Differences:
    """What two readings of a table differ by; see `TableVerification`."""

    rows: int
    missing: int = 0
    extra: int = 0
    samples: tuple[str, ...] = ()
    quarantined: int = 0


@dataclass(frozen=True)
class TableVerification:
    """The outcome for one table; `missing` and `extra` count rows, a changed row in both.

    `table` is the source's; `rows` are the destination's. It was compared as of `lsn`, or as of a
    `version` of its source. `samples` are keys of rows that differ (whole rows where the table has
    no key), at most ten.

    Rows in quarantine are a known difference: `quarantined` counts them, and neither they nor what
    the destination holds under their keys is `missing` or `extra`. `problem` says why the table was
    not compared (the counts are 0 then), or has stopped and was compared where it stands.
    `repaired` says that the differences were written to the destination after they were found.
    """

    pipeline: str
    table: TableId
    lsn: Lsn | None
    rows: int
    missing: int
    extra: int
    samples: tuple[str, ...] = ()
    version: int | None = None
    quarantined: int = 0
    problem: HeadraceError | None = None
    repaired: bool = False

    @property
    def equal(self) -> bool:
        """Whether the table was compared, and holds exactly what its source had."""
        return not (self.differs or self.quarantined or self.problem)

    @property
    def differs(self) -> bool:
        """Whether there are differences that nobody accounts for."""
        return bool(self.missing or self.extra)


def described(columns: Sequence[str], keys: Iterable[Sequence[object]]) -> tuple[str, ...]:
    """Keys as `id=1`, each once."""
    texts = (
        ", ".join(f"{name}={value}" for name, value in zip(columns, key, strict=True))
        for key in keys
    )
    return tuple(dict.fromkeys(texts))[:SAMPLES]


def keys_of(parts: Iterable[pa.Table], columns: Sequence[str]) -> list[tuple[object, ...]]:
    """These columns of the first rows, as many as are shown."""
    found: list[tuple[object, ...]] = []
    for part in parts:
        if len(found) < SAMPLES:
            rows = python_rows(part.select(list(columns)).slice(0, SAMPLES - len(found)))
            found += [tuple(row.values()) for row in rows]
    return found
