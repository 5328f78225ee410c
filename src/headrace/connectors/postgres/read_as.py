"""Columns that the user wants to be read otherwise than their types tell (`columns: as:`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import psycopg

from headrace.connectors.postgres.catalog import ReadAs, TypeCatalog, table_columns
from headrace.errors import ConfigError
from headrace.model import TableId


def impossible(
    session: psycopg.Connection[Any], wishes: Mapping[TableId, ReadAs]
) -> Iterator[tuple[TableId, str, str]]:
    """Wishes that cannot be fulfilled: a table that has one, the column, and why.

    A glob may wish for columns that some of its tables lack, but not for one that all do.
    """
    types = TypeCatalog.read(session)
    columns = {
        table: {column.name: column for column in table_columns(session, table)} for table in wishes
    }
    known = {name for found in columns.values() for name in found}
    for table, wish in wishes.items():
        for name, word in wish.items():
            if name not in known:
                yield table, name, f"{table} has no column {name}"
            elif name in columns[table]:
                try:
                    columns[table][name].mapping(types, word)
                except ConfigError as error:
                    yield table, name, f"{table}.{name}: {error.message}"
