"""Names as SQL spells them: quoted, whatever they are, so that none is read as anything else."""

from __future__ import annotations

from psycopg import sql

from headrace.model import TableId


def relation(table: TableId) -> sql.Identifier:
    """A table, for a composed statement."""
    return sql.Identifier(table.schema, table.name)


def qualified(table: TableId) -> str:
    """A table as text, for a statement that is shown or composed of the server's own texts."""
    return table.quoted


def quoted(*names: str) -> str:
    """A name as text, or several with dots between them."""
    return sql.Identifier(*names).as_string(None)
