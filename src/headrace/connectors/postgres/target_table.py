"""What a destination table is, read from the catalogs, be it ours or made by a user."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from headrace.connectors.postgres.target_session import Cursor
from headrace.model import TableId

# A type's text without modifiers is the one for modifier -1: `bpchar` where `character` means
# character(1), a quoted "bit" where bit means bit(1). Domains are followed to what is below them.
_COLUMNS: Final = """
WITH RECURSIVE below AS (
    SELECT attnum, atttypid AS type, atttypmod AS modifier, 0 AS depth, false AS not_null
      FROM pg_catalog.pg_attribute
     WHERE attrelid = %(table)s AND attnum > 0 AND NOT attisdropped
     UNION ALL
    SELECT b.attnum, t.typbasetype, t.typtypmod, b.depth + 1, b.not_null OR t.typnotnull
      FROM below b JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype = 'd'
), base AS (
    SELECT DISTINCT ON (attnum) attnum, type, modifier, depth, not_null
      FROM below ORDER BY attnum, depth DESC
)
SELECT a.attname, a.attnum,
       pg_catalog.format_type(a.atttypid, a.atttypmod),
       pg_catalog.format_type(b.type, b.modifier),
       pg_catalog.format_type(b.type, -1),
       CASE WHEN e.oid IS NULL THEN t.typname ELSE e.typname END,
       a.attnotnull OR b.not_null,
       a.atthasdef AND a.attgenerated = '',
       a.attidentity, a.attgenerated,
       coalesce(l.collisdeterministic, true)
  FROM base b
  JOIN pg_catalog.pg_attribute a ON a.attrelid = %(table)s AND a.attnum = b.attnum
  JOIN pg_catalog.pg_type t ON t.oid = b.type
  LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
  LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
 ORDER BY a.attnum
"""

_TABLE: Final = """
SELECT c.oid, c.relkind, c.relpersistence, pg_catalog.row_security_active(c.oid),
       pg_catalog.pg_get_userbyid(c.relowner)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s
"""

# Indexes that make their plain columns unique for every row.
_KEYS: Final = """
SELECT i.indisprimary, i.indimmediate, c.relname::text,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.unnest(i.indkey[0:i.indnkeyatts - 1]) k
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k)
  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid
   AND i.indpred IS NULL AND i.indexprs IS NULL
 ORDER BY i.indisprimary DESC, i.indexrelid
"""

_CONSTRAINTS: Final = """
SELECT conname, contype, pg_catalog.pg_get_constraintdef(oid)
  FROM pg_catalog.pg_constraint
 WHERE conrelid = %s AND contype IN ('c', 'f', 'u', 'x')
 ORDER BY conname
"""

_TRIGGERS: Final = """
SELECT tgname FROM pg_catalog.pg_trigger
 WHERE tgrelid = %s AND NOT tgisinternal AND tgenabled IN ('O', 'A')
 ORDER BY tgname
"""

# Rules that put another statement in the place of ours. Views are made of one, for SELECT.
_RULES: Final = """
SELECT rulename FROM pg_catalog.pg_rewrite
 WHERE ev_class = %s AND is_instead AND ev_type IN ('2', '3', '4') AND ev_enabled IN ('O', 'A')
 ORDER BY rulename
"""

_MODIFIERS: Final = re.compile(r"\((\d+)(?:,(-?\d+))?\)")


@dataclass(frozen=True)
class TargetColumn:
    """A column. `base` is its type below any domain, `cast` that without modifiers, `family` the
    catalog's name of it (`varchar`), or of its elements where `is_array`."""

    name: str
    attnum: int
    type: str
    base: str
    cast: str
    family: str
    not_null: bool = False
    has_default: bool = False
    identity: str = ""  # a(lways) or d(efault); empty if none
    generated: str = ""  # s(tored) or v(irtual); empty if not
    deterministic: bool = True  # of its collation

    @property
    def is_array(self) -> bool:
        return self.base.endswith("[]")

    @property
    def modifiers(self) -> tuple[int, ...]:
        """The numbers in the type's brackets: (10, 2) of numeric(10,2), (3,) of timestamp(3)."""
        found = _MODIFIERS.search(self.base)
        return () if found is None else tuple(int(n) for n in found.groups() if n is not None)


@dataclass(frozen=True)
class UniqueKey:
    """A unique index over plain columns; not `immediate` is one that may be deferred."""

    columns: tuple[str, ...]
    primary: bool
    immediate: bool
    index: str


@dataclass(frozen=True)
class Constraint:
    name: str
    kind: str  # pg_constraint.contype
    definition: str


@dataclass(frozen=True)
class Target:
    """A relation that stands under a table's name."""

    oid: int
    kind: str  # pg_class.relkind
    persistence: str  # pg_class.relpersistence
    row_security: bool  # whether it holds for us
    owner: str
    columns: tuple[TargetColumn, ...]
    keys: tuple[UniqueKey, ...]
    constraints: tuple[Constraint, ...] = ()
    triggers: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()

    @property
    def is_table(self) -> bool:
        """Ordinary or partitioned."""
        return self.kind in ("r", "p")

    def column(self, name: str) -> TargetColumn | None:
        return next((column for column in self.columns if column.name == name), None)

    def unique_over(self, columns: Sequence[str]) -> UniqueKey | None:
        """The unique index over exactly these columns; the best one for ON CONFLICT."""
        fitting = [key for key in self.keys if set(key.columns) == set(columns)]
        return next((key for key in fitting if key.immediate), fitting[0] if fitting else None)


def read_target(cursor: Cursor, name: TableId) -> Target | None:
    """The relation under this name, or None."""
    found = cursor.execute(_TABLE, [name.schema, name.name]).fetchone()
    if found is None:
        return None
    oid, kind, persistence, row_security, owner = found
    columns = _rows(cursor, _COLUMNS, {"table": oid})
    keys = _rows(cursor, _KEYS, [oid])
    return Target(
        oid=oid,
        kind=kind,
        persistence=persistence,
        row_security=row_security,
        owner=owner,
        columns=tuple(TargetColumn(*row) for row in columns),
        keys=tuple(UniqueKey(tuple(c), p, i, name) for p, i, name, c in keys),
        constraints=tuple(Constraint(*row) for row in _rows(cursor, _CONSTRAINTS, [oid])),
        triggers=tuple(row[0] for row in _rows(cursor, _TRIGGERS, [oid])),
        rules=tuple(row[0] for row in _rows(cursor, _RULES, [oid])),
    )


def _rows(cursor: Cursor, query: str, parameters: Any) -> list[tuple[Any, ...]]:
    return cursor.execute(query.encode(), parameters).fetchall()
