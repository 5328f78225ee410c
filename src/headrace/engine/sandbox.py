"""SQL over the rows of one Arrow table and nothing else: DuckDB as a calculator.

The user's rules are SQL, and a rule must not be able to read a file, load an extension, look at
another table or change a setting. Arrow's buffers are read in place, and one thread computes each
query, so that the values come in the order of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final, TypeVar

import duckdb
import pyarrow as pa

ROWS: Final = "_headrace_rows"  # a name that no column has, as it would stand for the whole row

_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "enable_external_access": False,  # no files, no network, no variables of this process
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "threads": 1,
}
# Timestamps with a time zone are read as UTC, whatever machine this is. Locked last.
_SETTINGS: Final = "SET GLOBAL TimeZone = 'UTC'; SET GLOBAL lock_configuration = true"

_SYNTAX_TREE: Final = "SELECT json_serialize_sql(?)"

# What each function's result depends on besides its arguments.
_STABILITY: Final = (
    "SELECT DISTINCT function_name FROM duckdb_functions()"
    " WHERE stability = ? AND function_name <> 'error'"  # error() only raises
)

_T = TypeVar("_T")


class Sandbox:
    """Connections to an empty in-memory database, one per thread that computes at a time.

    The database is made when it is first needed (about 20 ms).
    """

    def __init__(self) -> None:
        self._database: duckdb.DuckDBPyConnection | None = None
        self._idle: list[duckdb.DuckDBPyConnection] = []
        self._opening = Lock()

    def select(self, expressions: Sequence[str], rows: pa.Table) -> list[pa.ChunkedArray]:
        """The value of each expression for each row, in the order of the rows.

        Raises duckdb.Error.
        """
        query = f"SELECT {', '.join(expressions)} FROM {ROWS}"  # noqa: S608 - checked expressions
        result = self._on(rows, lambda connection: connection.sql(query).to_arrow_table())
        if result.num_rows != rows.num_rows:
            raise AssertionError(f"{result.num_rows} results for {rows.num_rows} rows")
        return list(result.columns)

    def bind_condition(self, expression: str, rows: pa.Table) -> str:
        """The type of an expression that stands where WHERE stands: about one row, no aggregate.

        Raises duckdb.Error, with the reason.
        """
        filtered = f"SELECT 1 FROM {ROWS} WHERE ({expression}\n)"  # noqa: S608
        typed = f"SELECT ({expression}\n) FROM {ROWS}"  # noqa: S608
        self._on(rows, lambda connection: connection.sql(filtered).fetchall())
        return str(self._on(rows, lambda connection: connection.sql(typed).types[0]))

    def syntax_tree(self, query: str) -> dict[str, Any]:
        """DuckDB's parse of a query, or `error` and `error_message`."""
        with self._connection() as connection:
            row = connection.execute(_SYNTAX_TREE, [query]).fetchone()
        tree: dict[str, Any] = json.loads(row[0]) if row else {}
        return tree

    def functions(self, stability: str) -> frozenset[str]:
        """Names of functions: CONSISTENT, CONSISTENT_WITHIN_QUERY (clocks) or VOLATILE."""
        with self._connection() as connection:
            return frozenset(n for (n,) in connection.execute(_STABILITY, [stability]).fetchall())

    def _on(self, rows: pa.Table, use: Callable[[duckdb.DuckDBPyConnection], _T]) -> _T:
        with self._connection() as connection:
            connection.register(ROWS, rows)
            try:
                return use(connection)
            finally:
                connection.unregister(ROWS)  # which also lets go of the rows

    @contextmanager
    def _connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._opening:
            connection = self._idle.pop() if self._idle else self._connect()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        if self._database is None:
            self._database = duckdb.connect(":memory:", config=_CONFIG)
            self._database.execute(_SETTINGS)
        return self._database.cursor()
