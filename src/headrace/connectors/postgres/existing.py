"""Whether a table that stands can take a source's rows, judged before anything is written.

A blocker is what would lose or change a value, or stop every batch; a warning is what may refuse
single rows, which then stand in quarantine, or what the user should know. Each tells the SQL that
cures it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from headrace.connectors.postgres.compatibility import EXACT, JSON, Fit, fit
from headrace.connectors.postgres.identifiers import qualified, quoted
from headrace.connectors.postgres.target_table import Target, TargetColumn
from headrace.connectors.postgres.target_types import VARIANT, default_type
from headrace.errors import UnsuitableTableError
from headrace.model import DELETED_AT, Column, Delivery, OnDelete, TableId, TableSchema
from headrace.model.finding import Finding, Severity

# NAMEDATALEN - 1 of every build that is out there; a longer name would be cut silently.
MAX_NAME_BYTES: Final = 63

# PostgreSQL documentation, "System Columns".
_SYSTEM_COLUMNS: Final = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})

_TYPE_CHARACTERS: Final = frozenset(' _."(),[]')

_KINDS: Final = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "i": "an index",
    "S": "a sequence",
    "c": "a composite type",
}

_CONSTRAINTS: Final = {"c": "CHECK", "f": "FOREIGN KEY", "u": "UNIQUE", "x": "EXCLUDE"}


def judge(schema: TableSchema, target: Target, delivery: Delivery) -> list[Finding]:
    """What keeps `target` from holding `schema`, and what its user should know."""
    found = [*name_findings(schema, delivery), *_relation_findings(schema.table, target)]
    if not target.is_table:
        return found
    return [
        *found,
        *_column_findings(schema, target, delivery),
        *key_findings(schema, target, delivery),
        *_own_column_findings(schema, target, delivery),
        *_constraint_findings(schema, target),
    ]


def name_findings(schema: TableSchema, delivery: Delivery) -> Iterator[Finding]:
    """Names that Postgres cannot give as they are."""
    table = schema.table
    for name in (table.schema, table.name, *schema.names):
        if len(name.encode()) > MAX_NAME_BYTES:
            why = f"Postgres would cut the name {name!r}: it is longer than {MAX_NAME_BYTES} bytes"
            yield _blocker(table, "target-name", why, "give it a shorter name: columns: rename:")
    for name in schema.names:
        if name in _SYSTEM_COLUMNS or (name == DELETED_AT and _marks(delivery)):
            why = f"the name of column {name} is taken by the system"
            yield _blocker(table, "target-name", why, "give it another name: columns: rename:")


def column_type(column: Column, delivery: Delivery) -> str:
    """The type that a column gets where it is made, as SQL.

    Raises:
        UnsuitableTableError: what the user asks for is no type's text.
    """
    wanted = delivery.types.get(column.name)
    if wanted is not None:
        return _checked(wanted)
    return column.source_type if delivery.native_types else default_type(column)


def _checked(text: str) -> str:
    """A type's text of headrace.yaml, which becomes a part of statements."""
    if not text or not all(c.isalnum() or c in _TYPE_CHARACTERS for c in text):
        raise UnsuitableTableError(
            f"{text!r} is no type of Postgres",
            hint="name a type as CREATE TABLE takes it, such as varchar(40): columns: types:",
        )
    return text


def holds(column: Column, target: TargetColumn, delivery: Delivery) -> Fit:
    """Whether a column of the table takes every value of the source's."""
    if delivery.native_types and column.source_type == target.type:
        return EXACT
    if column.source_type == VARIANT and target.family in JSON and not target.is_array:
        return EXACT
    return fit(column.type, target)


# -- the table -------------------------------------------------------------------------------------


def _relation_findings(table: TableId, target: Target) -> Iterator[Finding]:
    if not target.is_table:
        kind = _KINDS.get(target.kind, "no table")
        yield _blocker(table, "target-kind", f"it is {kind}", "name another table: name:")
    if target.persistence == "u":
        why = "it is unlogged: a crash of the server would empty it, but not its checkpoint"
        yield _blocker(table, "target-unlogged", why, "", _alter(table, "SET LOGGED"))
    if target.row_security:
        why = "row security holds for this role: it would hide rows from updates and deletes"
        fix = f"write as {target.owner}, or as a role with BYPASSRLS"
        yield _blocker(table, "target-row-security", why, fix)
    if target.rules:
        why = f"rules put other statements in the place of ours: {', '.join(target.rules)}"
        drops = (f"DROP RULE {quoted(rule)} ON {qualified(table)}" for rule in target.rules)
        yield _blocker(table, "target-rules", why, "", *drops)
    if target.triggers:
        why = f"its triggers run for every row that is written: {', '.join(target.triggers)}"
        yield _warning(table, "target-triggers", why)


# -- its columns -----------------------------------------------------------------------------------


def _column_findings(schema: TableSchema, target: Target, delivery: Delivery) -> Iterator[Finding]:
    for column in schema.columns:
        there = target.column(column.name)
        if there is None:
            kind = column_type(column, delivery)
            add = _alter(schema.table, f"ADD COLUMN {quoted(column.name)} {kind}")
            why = f"it has no column {column.name}"
            yield _blocker(schema.table, "target-column", why, "or leave it out: columns:", add)
        else:
            yield from _one_column(schema, column, there, delivery)


def _one_column(
    schema: TableSchema, column: Column, there: TargetColumn, delivery: Delivery
) -> Iterator[Finding]:
    table, name = schema.table, quoted(column.name)
    if there.generated:
        yield _warning(table, "target-generated", f"column {column.name} is computed by the table")
        return
    fitting = holds(column, there, delivery)
    if not fitting.fits:
        kind = column_type(column, delivery)
        change = _alter(table, f"ALTER COLUMN {name} TYPE {kind} USING {name}::{kind}")
        yield _blocker(table, "target-type", f"column {column.name}: {fitting.why}", "", change)
    elif fitting.why:
        yield _warning(table, "target-type", f"column {column.name}: {fitting.why}")
    if there.identity == "a" and column.name not in schema.key:
        why = f"column {column.name} is GENERATED ALWAYS, which nobody may change later"
        change = _alter(table, f"ALTER COLUMN {name} SET GENERATED BY DEFAULT")
        yield _blocker(table, "target-identity", why, "", change)
    if there.not_null and column.name not in schema.key:
        why = f"column {column.name} is NOT NULL: rows with null there are quarantined"
        yield _warning(table, "target-not-null", why)


def _own_column_findings(
    schema: TableSchema, target: Target, delivery: Delivery
) -> Iterator[Finding]:
    """Columns that the source does not have: left alone, where rows can come without them."""
    for column in target.columns:
        if column.name == DELETED_AT and _marks(delivery):
            if column.family != "timestamptz":
                why = f"column {DELETED_AT} is {column.type}, but on_delete: mark keeps times there"
                fix = f"rename it, or make it a timestamptz: {schema.table}"
                yield _blocker(schema.table, "target-deleted-at", why, fix)
        elif column.name not in schema.names and column.not_null and not _fills_itself(column):
            name = quoted(column.name)
            why = f"column {column.name} is NOT NULL without a default, and the source lacks it"
            relax = _alter(schema.table, f"ALTER COLUMN {name} DROP NOT NULL")
            yield _blocker(schema.table, "target-not-null", why, "or give it a default", relax)


def _fills_itself(column: TargetColumn) -> bool:
    return column.has_default or bool(column.identity) or bool(column.generated)


# -- its key and constraints -----------------------------------------------------------------------


def key_findings(schema: TableSchema, target: Target, delivery: Delivery) -> Iterator[Finding]:
    """Whether something keeps rows of one key apart, and rows of different keys from each other."""
    if not schema.key:
        return
    table, names = schema.table, ", ".join(map(quoted, schema.key))
    key = target.unique_over(schema.key)
    if key is None:
        why = f"no primary key or unique index stands over exactly its key ({names})"
        make = f"CREATE UNIQUE INDEX CONCURRENTLY ON {qualified(table)} ({names})"
        if not any(unique.primary for unique in target.keys):
            make = _alter(table, f"ADD PRIMARY KEY ({names})")
        yield _blocker(table, "target-key", why, "or name its key: key:", make)
    elif not key.immediate:
        why = f"its key may be deferred ({key.index}): upserts take two statements instead of one"
        yield _warning(table, "target-key", why)
    for column in schema.columns:
        there = target.column(column.name) if column.name in schema.key else None
        if there is not None and _is_loose(column, there, delivery):
            why = f"{there.type} of the key column {column.name} calls texts equal that differ"
            yield _blocker(table, "target-key-type", why, "make it text, with a plain collation")


def _is_loose(column: Column, there: TargetColumn, delivery: Delivery) -> bool:
    """Whether two keys of the source may be one here; a type of the source's own may do that."""
    if delivery.native_types and column.source_type == there.type:
        return False
    return there.family in ("citext", "bpchar") or not there.deterministic


def _constraint_findings(schema: TableSchema, target: Target) -> Iterator[Finding]:
    key = target.unique_over(schema.key) if schema.key else None
    for constraint in target.constraints:
        if key is not None and constraint.name == key.index:
            continue
        kind = _CONSTRAINTS[constraint.kind]
        why = f"rows that break {kind} {constraint.name} are quarantined"
        yield Finding(
            Severity.WARNING,
            "target-constraint",
            f"{schema.table}: {why}",
            (str(schema.table),),
            evidence=constraint.definition,
        )


# -- their words -----------------------------------------------------------------------------------


def _blocker(table: TableId, name: str, why: str, fix: str, *statements: str) -> Finding:
    message = f"{table}: {why}"
    return Finding(Severity.BLOCKER, name, message, (str(table),), fix=fix, sql=statements)


def _warning(table: TableId, name: str, why: str) -> Finding:
    return Finding(Severity.WARNING, name, f"{table}: {why}", (str(table),))


def _marks(delivery: Delivery) -> bool:
    return delivery.on_delete is OnDelete.MARK


def _alter(table: TableId, action: str) -> str:
    return f"ALTER TABLE {qualified(table)} {action}"
