"""The generation that a table had before its last rebuild: kept for `headrace undo`.

What is needed to bring it back stands in headrace.checkpoints.previous, beside the checkpoint that
came with the new one.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import psycopg
from psycopg import sql

from headrace.connectors.postgres import records
from headrace.connectors.postgres.building import PREVIOUS, Name
from headrace.connectors.postgres.identifiers import relation
from headrace.connectors.postgres.target_session import Connection, Cursor
from headrace.errors import UnsuitableTableError
from headrace.model import TableId

log = logging.getLogger(__name__)

_REMEMBER: Final = """
UPDATE headrace.checkpoints SET previous = %s WHERE table_schema = %s AND table_name = %s
"""


@dataclass(frozen=True)
class Previous:
    """The former generation of a table, as headrace.checkpoints.previous holds it (JSON).

    `checkpoint` is that row as it was; `validate` are statements that are still to be run, for
    foreign keys that were valid before a swap or an undo. After an undo there is no table.
    """

    table: str  # in schema PREVIOUS; empty if there is none
    names: tuple[Name, ...]
    checkpoint: dict[str, Any]
    validate: tuple[str, ...]

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Previous:
        data = json.loads(text)
        names = tuple(Name(**name) for name in data["names"])
        return cls(data["table"], names, data["checkpoint"], tuple(data["validate"]))


def previous(cursor: Cursor, live: TableId) -> Previous | None:
    """What is kept of a table's former generation."""
    record = records.read(cursor, live)
    return Previous.from_text(record.previous) if record and record.previous else None


def settle(connection: Connection, live: TableId) -> None:
    """Validate the foreign keys that a swap added; goes on where a crash left it.

    Raises:
        UnsuitableTableError: rows came meanwhile that break one; it stays NOT VALID.
    """
    with connection.transaction(), connection.cursor() as cursor:
        former = previous(cursor, live)
    for statement in former.validate if former else ():
        try:
            with connection.transaction():
                connection.execute(statement.encode())
        except (psycopg.errors.UndefinedObject, psycopg.errors.UndefinedTable):
            pass  # somebody dropped it since: there is nothing to validate
        except psycopg.errors.ForeignKeyViolation as error:
            _remember_validated(connection, live, statement)  # to try again would end no better
            raise UnsuitableTableError(
                f"a foreign key of or to {live} no longer holds since it was built anew, and stays "
                f"NOT VALID: {str(error).strip()}",
                hint=f"mend the rows, then: {statement};",
                table=str(live),
            ) from error
        _remember_validated(connection, live, statement)


def remember(cursor: Cursor, live: TableId, former: Previous | None) -> None:
    """Set what is kept of a table's former generation; its checkpoint's row must be there."""
    text = None if former is None else former.to_text()
    cursor.execute(_REMEMBER, [text, live.schema, live.name])


def _remember_validated(connection: Connection, live: TableId, statement: str) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        former = previous(cursor, live)
        if former is not None:
            left = tuple(other for other in former.validate if other != statement)
            remember(cursor, live, replace(former, validate=left))


def drop_previous(connection: Connection, live: TableId) -> None:
    """Let the former generation of a table go, if there is one; what a swap left open is done.

    Raises:
        UnsuitableTableError: see `settle`.
    """
    settle(connection, live)
    with connection.transaction(), connection.cursor() as cursor:
        drop(cursor, live)
        remember(cursor, live, None)


def drop(cursor: Cursor, live: TableId) -> None:
    """Drop the former generation's table, unless somebody hung something on it: then it is theirs.

    What is kept of it is for the caller to set.
    """
    former = previous(cursor, live)
    if former is None or not former.table:
        return
    table = TableId(PREVIOUS, former.table)
    try:
        with cursor.connection.transaction():
            cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(relation(table)))
    except psycopg.errors.DependentObjectsStillExist as error:
        log.warning("table=%s former=%s kept, and left to you: %s", live, table, error)
