"""A table that is to take a source's rows: made where it is missing, else judged beforehand."""

from __future__ import annotations

from psycopg import sql

from headrace.connectors.postgres import records
from headrace.connectors.postgres.records import Record
from headrace.connectors.postgres.target_session import Cursor
from headrace.connectors.postgres.target_table import read_target
from headrace.connectors.postgres.target_types import arrival
from headrace.errors import ForeignTableError
from headrace.model import DELETED_AT, Column, Delivery, OnDelete, TableId, TableSchema


def prepare(
    cursor: Cursor, name: TableId, pipeline: str, schema: TableSchema, delivery: Delivery
) -> Record:
    """Make the table, or take the one that stands; returns its record, locked.

    Raises:
        ForeignTableError: another pipeline's table, or one with somebody else's rows.
        UnsuitableTableError: a column, type, key or constraint does not fit.
    """
    records.ensure(cursor)
    record = records.read(cursor, name, lock=True)
    if record is not None and record.pipeline != pipeline:
        raise _others(name, f"the pipeline {record.pipeline!r} writes it")
    target = read_target(cursor, name)
    if target is None:
        cursor.execute(create_statement(name, schema, delivery))
        if record is not None:
            records.forget_position(cursor, name)
        records.own(cursor, name, pipeline, schema)
    record = records.read(cursor, name)
    assert record is not None
    return record


def _others(name: TableId, why: str) -> ForeignTableError:
    return ForeignTableError(
        f"{name} is not this pipeline's: {why}",
        hint=f"give {name} another `name:` in headrace.yaml, or move the table away",
        table=str(name),
    )


def column_type(column: Column, delivery: Delivery) -> str:
    """The type that a column gets where it is made."""
    wanted = delivery.types.get(column.name)
    if wanted is not None:
        return wanted
    return column.source_type if delivery.native_types else arrival(column.type).type


def create_statement(name: TableId, schema: TableSchema, delivery: Delivery) -> sql.Composed:
    """CREATE SCHEMA and TABLE, with the key as primary key."""
    parts: list[sql.Composable] = [
        sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(column_type(c, delivery)))
        for c in schema.columns
    ]
    if delivery.on_delete is OnDelete.MARK:
        parts.append(sql.SQL("{} timestamptz").format(sql.Identifier(DELETED_AT)))
    if schema.key:
        key = sql.SQL(", ").join(map(sql.Identifier, schema.key))
        parts.append(sql.SQL("PRIMARY KEY ({})").format(key))
    return sql.SQL("CREATE SCHEMA IF NOT EXISTS {}; CREATE TABLE {} ({})").format(
        sql.Identifier(name.schema),
        sql.Identifier(name.schema, name.name),
        sql.SQL(", ").join(parts),
    )
