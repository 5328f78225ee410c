"""A table made for a source's rows, or one that stands taken for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import psycopg
from psycopg import sql

from headrace.connectors.postgres import records
from headrace.connectors.postgres.evolution import SchemaStep, fitting_statements
from headrace.connectors.postgres.existing import column_type, judge, name_findings
from headrace.connectors.postgres.identifiers import relation
from headrace.connectors.postgres.records import Record
from headrace.connectors.postgres.target_session import Cursor
from headrace.connectors.postgres.target_table import Target, read_target
from headrace.errors import ForeignTableError, UnsuitableTableError
from headrace.model import DELETED_AT, Delivery, OnDelete, TableId, TableSchema
from headrace.model.finding import Finding, Severity, cures

_SCHEMA: Final = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %s"


def prepare(
    cursor: Cursor, name: TableId, pipeline: str, schema: TableSchema, delivery: Delivery
) -> Record:
    """Make the table, or take the one that stands; returns its record.

    A table that is gone, or was never filled, stands nowhere: it is to be loaded.

    Raises:
        ForeignTableError: another pipeline's table, or one with somebody else's rows.
        UnsuitableTableError: a column, type, key or constraint does not fit.
    """
    records.ensure(cursor)
    record = records.read(cursor, name, lock=True)
    if record is not None and record.pipeline != pipeline:
        why, cure = (
            f"the pipeline {record.pipeline!r} writes it",
            _adoption(record.pipeline, pipeline),
        )
        raise _others(name, why, cure)
    target = read_target(cursor, name)
    if target is None:
        _make(cursor, name, schema, delivery)
        records.forget_position(cursor, name)
        records.own(cursor, name, pipeline, schema)
    elif record is None or record.at is None:
        if record is not None and not has_rows(cursor, name):
            target = _refitted(cursor, name, target, schema, delivery)
        _take(cursor, name, target, schema, delivery)
        records.own(cursor, name, pipeline, schema)
    else:
        _recognize(cursor, name, target, record.schema or schema, delivery)
    prepared = records.read(cursor, name)
    assert prepared is not None  # one of the three left it there
    return prepared


def _make(cursor: Cursor, name: TableId, schema: TableSchema, delivery: Delivery) -> None:
    refuse_blockers(name, name_findings(schema, delivery))
    records.one_at_a_time(cursor)
    # IF NOT EXISTS would ask for the right to create it even where it stands.
    if not cursor.execute(_SCHEMA, [name.schema]).fetchone():
        cursor.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name.schema)))
    try:
        cursor.execute(create_statement(name, schema, delivery))
    except (psycopg.errors.UndefinedObject, psycopg.errors.InvalidSchemaName) as error:
        raise unknown_type(name, error) from error
    made = read_target(cursor, name)
    assert made is not None
    refuse_blockers(name, judge(schema, made, delivery))  # the user may wish for odd types


def _take(
    cursor: Cursor, name: TableId, target: Target, schema: TableSchema, delivery: Delivery
) -> None:
    """A table that took nothing yet: nobody else's rows may be in it."""
    refuse_blockers(name, judge(schema, target, delivery))
    if not delivery.take_over and has_rows(cursor, name):
        raise _others(name, "it has rows that it did not write; take_over: true replaces them")
    _add_mark(cursor, name, target, delivery)


def _recognize(
    cursor: Cursor, name: TableId, target: Target, schema: TableSchema, delivery: Delivery
) -> None:
    """A table that we write, by the schema that it had then; `evolve` follows what changed."""
    refuse_blockers(name, judge(schema, target, delivery))
    _add_mark(cursor, name, target, delivery)


def _refitted(
    cursor: Cursor, name: TableId, target: Target, schema: TableSchema, delivery: Delivery
) -> Target:
    """A table that was prepared for an earlier schema, and got no rows since."""
    for statement in fitting_statements(schema, target, delivery):
        cursor.execute(statement.encode())
    return read_target(cursor, name) or target


def has_rows(cursor: Cursor, name: TableId) -> bool:
    """Whether a table, which we may read, holds any row."""
    query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(relation(name))
    found = cursor.execute(query).fetchone()
    return found is not None and bool(found[0])


def _add_mark(cursor: Cursor, name: TableId, target: Target, delivery: Delivery) -> None:
    if delivery.on_delete is OnDelete.MARK and target.column(DELETED_AT) is None:
        add = sql.SQL("ALTER TABLE {} ADD COLUMN {} timestamptz")
        cursor.execute(add.format(relation(name), sql.Identifier(DELETED_AT)))


def refuse_blockers(name: TableId, findings: Iterable[Finding]) -> None:
    """Raises UnsuitableTableError for what would lose or change a value, or stop every batch."""
    blockers = [f for f in findings if f.severity is Severity.BLOCKER]
    if blockers:
        raise unsuitable(name, blockers)


def unknown_type(name: TableId, error: psycopg.Error) -> UnsuitableTableError:
    """A type of the source's own is missing here: who sees both sides can tell how to make it."""
    return UnsuitableTableError(
        f"{name}: the destination lacks a type of the source: {error.diag.message_primary}",
        hint="headrace check tells the SQL that makes it there; then run again",
        table=str(name),
    )


def unsuitable(name: TableId, blockers: Sequence[Finding]) -> UnsuitableTableError:
    """One error for all that does not fit."""
    why = "; ".join(f.message.removeprefix(f"{name}: ") for f in blockers)
    hint = cures(blockers)
    if any(f.name == "target-column" for f in blockers):
        hint += f";\nheadrace resync {name}, if it held rows before: it fills them"
    return UnsuitableTableError(
        f"{name} cannot hold what the source has: {why}",
        hint=hint,
        table=str(name),
        findings=[f.to_json() for f in blockers],
    )


def _others(name: TableId, why: str, cure: str = "") -> ForeignTableError:
    return ForeignTableError(
        f"{name} is not this pipeline's: {why}",
        hint=f"give {name} another `name:` in headrace.yaml, or move the table away{cure}",
        table=str(name),
    )


def _adoption(former: str, now: str) -> str:
    """What makes a pipeline's tables those of another: of itself, under a new name."""
    update = sql.SQL("UPDATE headrace.{} SET pipeline = {} WHERE pipeline = {};")
    statements = [
        update.format(sql.Identifier(table), sql.Literal(now), sql.Literal(former)).as_string(None)
        for table in ("checkpoints", "quarantine")
    ]
    return "\n".join(["; if the pipeline only got another name:", *statements])


def create_statement(name: TableId, schema: TableSchema, delivery: Delivery) -> sql.Composed:
    """The table with the key as primary key.

    Raises:
        UnsuitableTableError: a type that the user asks for is none.
    """
    parts: list[sql.Composable] = [
        sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(column_type(c, delivery)))
        for c in schema.columns
    ]
    if delivery.on_delete is OnDelete.MARK:
        parts.append(sql.SQL("{} timestamptz").format(sql.Identifier(DELETED_AT)))
    if schema.key:
        key = sql.SQL(", ").join(map(sql.Identifier, schema.key))
        parts.append(sql.SQL("PRIMARY KEY ({})").format(key))
    return sql.SQL("CREATE TABLE {} ({})").format(relation(name), sql.SQL(", ").join(parts))


def creation(name: TableId, schema: TableSchema, delivery: Delivery) -> SchemaStep:
    """The making of a table, for a plan to show."""
    statement = create_statement(name, schema, delivery).as_string(None)
    return SchemaStep(f"{name}: creates the table", (statement,))
