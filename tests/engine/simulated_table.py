"""A tiny Postgres table that writes changes as pgoutput would and remembers each commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from change_samples import Change, canonical, content, table_schema

from headrace.model import ReplicaIdentity, TableSchema

TOASTED = ("doc", "img")  # stored out of line, and unsent where an update leaves them alone


@dataclass(frozen=True)
class Written:
    """One change as the log holds it: with the schema of its time."""

    schema: TableSchema
    change: Change


@dataclass(frozen=True)
class Commit:
    lsn: int
    schema: TableSchema
    changes: tuple[Written, ...]
    after: Counter[Any]  # the whole table


@dataclass
class SimulatedTable:
    """Rows in order; a key is unique. `commit` closes a transaction, even an empty one."""

    schema: TableSchema
    rows: list[dict[str, Any]] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    pending: list[Written] = field(default_factory=list)

    @property
    def lsn(self) -> int:
        return 10 * (len(self.commits) + 1)

    def insert(self, row: Mapping[str, Any]) -> None:
        whole = {name: row.get(name) for name in self.schema.names}
        if self._free(whole):
            self.rows.append(whole)
            self._write(Change("i", dict(whole)))

    def update(self, pick: int, values: Mapping[str, Any]) -> None:
        """Changes the row at `pick` (modulo their number), unless its new key is taken."""
        if not self.rows:
            return
        old = self.rows[pick % len(self.rows)]
        new = {**old, **{n: v for n, v in values.items() if n in old}}
        if self._key(new) != self._key(old) and not self._free(new):
            return
        self.rows[pick % len(self.rows)] = new
        unsent = tuple(n for n in TOASTED if n not in values and old[n] is not None)
        sent = {n: v for n, v in new.items() if n not in unsent}
        told = self._whole or self._key(new) != self._key(old)
        self._write(Change("u", sent, self._before(old) if told else None, unsent))

    def delete(self, pick: int) -> None:
        if self.rows:
            old = self.rows.pop(pick % len(self.rows))
            self._write(Change("d", {}, self._before(old)))

    def truncate(self) -> None:
        self.rows.clear()
        self._write(Change("t"))

    def add_column(self, constant: str | None) -> None:
        """ALTER TABLE ADD COLUMN, in a transaction of its own; older rows have the constant."""
        self.commit()
        name = f"added{len(self.schema.columns)}"
        columns = {c.name: c.source_type for c in self.schema.columns} | {name: "text"}
        missing = dict(self.schema.missing)
        if constant is not None:
            missing[name] = pa.scalar(constant)
        s = self.schema
        self.schema = table_schema(columns, s.key, s.identity, s.version + 1, missing)
        self.rows = [{**row, name: constant} for row in self.rows]
        self.commit()

    def commit(self) -> None:
        written = tuple(replace(w, change=replace(w.change, lsn=self.lsn)) for w in self.pending)
        self.commits.append(Commit(self.lsn, self.schema, written, content(self.rows)))
        self.pending.clear()

    @property
    def _whole(self) -> bool:
        return self.schema.identity is ReplicaIdentity.FULL

    def _key(self, row: Mapping[str, Any]) -> Any:
        return canonical([row[name] for name in self.schema.key])

    def _free(self, row: Mapping[str, Any]) -> bool:
        return not self.schema.key or all(self._key(row) != self._key(r) for r in self.rows)

    def _before(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return dict(row) if self._whole else {n: row[n] for n in self.schema.key}

    def _write(self, change: Change) -> None:
        self.pending.append(Written(self.schema, change))
