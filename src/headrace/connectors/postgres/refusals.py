"""Whose fault it is when a statement that lands rows fails: a row's, or nobody's whom we can park.

Only an error that another value in that row would have avoided is the row's (PostgreSQL, "Appendix
A. PostgreSQL Error Codes"):

- class 22, data exceptions: null bytes, overflow, over-long or malformed text, dates out of range;
- class 23, integrity constraints, and 44000, a view's CHECK OPTION;
- class P0, RAISE and ASSERT of a PL/pgSQL trigger, and class 38, the same of other languages: a
  trigger that raises judges the row, as a CHECK does. A trigger that is broken raises other classes
  (42P01, 42703 …), and stops the table;
- 54000 and 54001: a value too long for its index, or nested too deep.

All else is the table's (42: types, names, rights and row security; 0A; 21000: two rows of one key),
the server's (53, 57, 58, XX) or passes by itself (08, 40, 55P03): it is raised, nothing is parked.
So are 22P03 and 22P04, which say that the COPY stream itself is malformed: that is our encoder's,
and violations in tables of pg_catalog or of our own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import psycopg

_CLASSES: Final = ("22", "23", "38", "P0")
_STATES: Final = frozenset({"44000", "54000", "54001"})
_NOT_ROWS: Final = frozenset({"22P03", "22P04"})

UNIQUE: Final = "23505"
FOREIGN_KEY: Final = "23503"
RESTRICT: Final = "23001"  # a delete of a row that others point to, from 18 on; 23503 before
EXCLUSION: Final = "23P01"
OUT_OF_RANGE: Final = "22003"

# A row points nowhere, or others point to a row that is to go.
FOREIGN_KEYS: Final = frozenset({FOREIGN_KEY, RESTRICT})

# What another row of the batch may cure by being applied first.
_DEPENDENT: Final = frozenset({UNIQUE, FOREIGN_KEY, RESTRICT, EXCLUSION})

# Whose DETAIL names no more than the values of the key in question, or what a numeric may hold.
# That of CHECK and NOT NULL shows the whole row as it would stand, with columns that are not ours
# to tell.
_TELLING_DETAIL: Final = frozenset({FOREIGN_KEY, UNIQUE, OUT_OF_RANGE})

NULL_BYTE: Final = "22021"  # what the server says of one; psycopg refuses to send it as a parameter

_COPY_COLUMN: Final = re.compile(r"^COPY .*?, line \d+, column (.+?)(?:: |$)", re.MULTILINE)


@dataclass(frozen=True)
class Refusal:
    """Why the server refused a row. Empty texts where it did not say."""

    code: str  # Postgres' name of the condition in lower case, such as `unique_violation`
    reason: str  # a sentence for a person
    sqlstate: str  # empty where not the server but a rule refused it
    schema: str = ""  # of the table whose constraint it is
    table: str = ""
    constraint: str = ""
    column: str = ""

    @property
    def dependent(self) -> bool:
        """Whether other rows, applied first, may cure it."""
        return self.sqlstate in _DEPENDENT

    @property
    def waits(self) -> bool:
        """Whether it is a foreign key's: rows of other tables may cure it."""
        return self.sqlstate in FOREIGN_KEYS


def refusal(error: psycopg.Error) -> Refusal | None:
    """Why the row was refused; None where the row is not to blame."""
    sqlstate = error.sqlstate
    if sqlstate is None:
        return _unsendable(error)
    diag = error.diag
    ours = diag.schema_name in ("pg_catalog", "headrace")
    if ours or sqlstate in _NOT_ROWS or not _is_rows(sqlstate):
        return None
    return Refusal(
        code=_condition(error),
        reason=_sentence(error),
        sqlstate=sqlstate,
        schema=diag.schema_name or "",
        table=diag.table_name or "",
        constraint=diag.constraint_name or "",
        column=diag.column_name or _copied_column(diag.context),
    )


def _is_rows(sqlstate: str) -> bool:
    return sqlstate.startswith(_CLASSES) or sqlstate in _STATES


def _unsendable(error: psycopg.Error) -> Refusal | None:
    """psycopg itself refuses a value, such as a text with a null byte."""
    if not isinstance(error, psycopg.DataError):
        return None
    return Refusal("character_not_in_repertoire", str(error).strip(), NULL_BYTE)


def _condition(error: psycopg.Error) -> str:
    """The condition's name as the appendix has it; psycopg names its classes after them."""
    try:
        name = psycopg.errors.lookup(error.sqlstate or "").__name__
    except KeyError:
        return error.sqlstate or ""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _sentence(error: psycopg.Error) -> str:
    diag = error.diag
    message = diag.message_primary or str(error).strip()
    telling = diag.message_detail and error.sqlstate in _TELLING_DETAIL
    return f"{message} ({diag.message_detail})" if telling else message


def _copied_column(context: str | None) -> str:
    """COPY tells the column only in its context: `COPY staging, line 1, column price: "x"`."""
    found = _COPY_COLUMN.search(context or "")
    return found[1] if found else ""
