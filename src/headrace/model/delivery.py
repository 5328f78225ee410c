"""How one table is to be kept at a destination that leaves its user a choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

# When this share of a table's rows changed, building it anew is faster than merging: they are
# equally fast at 0.11 (benchmarks/reports/reverse_merge_or_rebuild.json).
REBUILD_ABOVE: Final = 0.1

# So many rows may stand in a table's quarantine before it stops.
QUARANTINE_ROWS: Final = 1000


class OnDelete(Enum):
    """What a delete at the source does to the row at the destination."""

    DELETE = "delete"
    MARK = "mark"  # the row stays, and DELETED_AT says when the source lost it
    IGNORE = "ignore"


DELETED_AT: Final = "_deleted_at"  # timestamptz; null while the source has the row


class SchemaPolicy(Enum):
    """What a schema change of the source does."""

    EVOLVE = "evolve"  # the destination follows
    FREEZE = "freeze"  # the table stops
    RESYNC = "resync"  # the table is built anew
    EXTEND = "extend"  # the destination takes added columns; any other change stops the table


@dataclass(frozen=True)
class Delivery:
    """The user's choices for one table; column names are the destination's.

    `types` overrides a column's type at the destination, by the destination's own name for it.
    `native_types` says that the schema's `source_type`s are the destination's own type names
    (Postgres to Postgres). `take_over` lets a table that holds rows of somebody else's be replaced.
    """

    on_delete: OnDelete = OnDelete.DELETE
    types: Mapping[str, str] = field(default_factory=dict)
    native_types: bool = False
    rebuild_above: float = REBUILD_ABOVE
    quarantine_rows: int = QUARANTINE_ROWS
    take_over: bool = False
    schema_policy: SchemaPolicy = SchemaPolicy.EVOLVE
    drop_columns: bool = False  # a column that the source dropped goes too; else it stays, null
