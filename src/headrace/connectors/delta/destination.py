"""A Delta location as a destination: its tables, and SQL over them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Final

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError

from headrace.connectors.delta.discovery import folder_of, tables_in
from headrace.connectors.delta.plans import PIPELINE
from headrace.connectors.delta.state import load_state
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.errors import DestinationError, LogError
from headrace.log.storage import Storage, open_storage
from headrace.model import Delivery, Shape, TableFormat, TableId

_TABLE_NAME: Final = re.compile(r'(?:"([^"]+)"|([\w$]+))\s*\.\s*(?:"([^"]+)"|([\w$]+))')


class DeltaDestination:
    """Tables at `<location>/<schema>/<table>`; `location` is a path or an object store's URL.

    `storage_options` are the object store's settings in the names that deltalake knows.
    """

    def __init__(
        self,
        location: str,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self.location = location.rstrip("/")
        self._options = dict(storage_options or {})

    def _storage(self, path: str = "") -> Storage:
        return open_storage(f"{self.location}/{path}".rstrip("/"), self._options)

    def table(
        self,
        name: TableId,
        pipeline: str,
        shape: Shape | None = None,
        delivery: Delivery | None = None,
        layout: TableFormat | None = None,
    ) -> MergeOnReadTable:
        """A table as one pipeline writes it; nothing is read or made yet.

        Raises:
            DestinationError: there can be no folder of this name.
        """
        return MergeOnReadTable(
            self._storage(folder_of(name)),
            name,
            pipeline,
            self._options,
            shape=shape or Shape(),
            delivery=delivery or Delivery(),
            layout=layout or TableFormat(),
        )

    def close(self) -> None:
        """Nothing is held open."""

    def check_writable(self) -> None:
        """Write and delete a file at the location.

        Raises:
            DestinationError: it cannot be done; says why.
        """
        probe = f".headrace-{uuid.uuid4()}"
        try:
            self._storage().put(probe, b"")
            self._storage().delete([probe])
        except LogError as error:
            raise DestinationError(
                f"cannot write to {self.location}: {error.message}",
                hint=error.hint or "check the location and the rights of this account there",
            ) from error

    def tables(self) -> list[TableId]:
        """The Delta tables at this location, whoever made them."""
        return tables_in(self._storage())

    def owner(self, name: TableId) -> str | None:
        """The pipeline that made a table; None for another's table, or where there is none."""
        state = load_state(self._storage(folder_of(name)))
        return None if state is None else state.configuration.get(PIPELINE)

    def query(self, sql: str) -> pa.Table:
        """The result of a query over this location's tables by their names, `schema.table`.

        A table's name alone will do where no other schema here has a table of that name.

        Raises:
            DestinationError: the query is wrong, or a table cannot be read.
        """
        tables = self.tables()
        bare = [table.name for table in tables]
        try:
            builder = QueryBuilder()
            for table in tables:
                if not re.search(rf"\b{re.escape(table.name)}\b", sql):
                    continue
                delta = self.open(table)
                builder.register(_alias(table), delta)
                if bare.count(table.name) == 1:
                    builder.register(table.name, delta)
            return pa.table(builder.execute(_with_aliases(sql, tables)))
        except (DeltaError, pa.ArrowException, ValueError) as error:
            raise DestinationError(
                f"the query failed: {error}", hint="the tables here: " + ", ".join(map(str, tables))
            ) from error

    def open(self, name: TableId) -> DeltaTable:
        """The table in the deltalake library, at its newest version."""
        url = self._storage(folder_of(name)).url
        return DeltaTable(url, storage_options=self._options or None)


def _alias(table: TableId) -> str:
    return f"{table.schema}__{table.name}"


def _with_aliases(sql: str, tables: list[TableId]) -> str:
    """`schema.table` becomes one identifier: the engine has no schemas but its own."""

    def alias(match: re.Match[str]) -> str:
        table = TableId(match[1] or match[2], match[3] or match[4])
        return f'"{_alias(table)}"' if table in tables else match[0]

    return _TABLE_NAME.sub(alias, sql)
