"""A Delta location as a destination: its tables, and SQL over them.

It is a lake of folders, or one of tables that a Unity Catalog registers.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError

from headrace.connectors.delta.checkpoints import LOG
from headrace.connectors.delta.discovery import folder_of
from headrace.connectors.delta.failures import plain
from headrace.connectors.delta.folders import Folders
from headrace.connectors.delta.index_file import Claim
from headrace.connectors.delta.maintenance import Policy
from headrace.connectors.delta.plans import PIPELINE
from headrace.connectors.delta.preserving import Preserved
from headrace.connectors.delta.registered import Registered, RegisteredTable
from headrace.connectors.delta.state import load_state
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.connectors.delta.timeline import Timeline
from headrace.connectors.delta.unity import UnityCatalog, is_unity
from headrace.errors import (
    DestinationError,
    DestinationUnavailableError,
    LogError,
    NoVersionError,
    ObjectMissingError,
)
from headrace.log.storage import Storage, check_put_if_absent, with_retries
from headrace.model import Delivery, Reached, Shape, TableFormat, TableId

_SWEPT: Final = (
    "if files of an old version were swept: raise the table property "
    "delta.deletedFileRetentionDuration; headrace lsn tells the newest LSN"
)
_TABLE_NAME: Final = re.compile(r'(?:"([^"]+)"|([\w$]+))\s*\.\s*(?:"([^"]+)"|([\w$]+))')


class DeltaDestination:
    """Tables at `<location>/<schema>/<table>`, `location` being a path or an object store's URL; or
    those of a Unity Catalog, where new ones lie at `<storage_root>/<schema>/<table>`.

    `storage_options` are the object store's settings in the names that deltalake knows. The upkeep
    of its tables runs in `beside` (default: one thread for all), by `policy`. Key indexes are saved
    below `indexes`, a folder on local disk, by pipeline; without one they are not saved.
    """

    def __init__(
        self,
        location: str,
        storage_options: Mapping[str, str] | None = None,
        *,
        storage_root: str | None = None,
        beside: Executor | None = None,
        policy: Policy | None = None,
        indexes: Path | None = None,
    ) -> None:
        self.location = location.rstrip("/")
        self._lake = _lake(self.location, storage_options or {}, storage_root)
        self._beside = beside or ThreadPoolExecutor(1, "headrace-upkeep")
        self._policy = policy
        self._indexes = indexes
        self._claims: dict[str, Claim] = {}

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
        lake, site = self._lake, self._lake.writing(name)
        kind = partial(RegisteredTable, lake) if isinstance(lake, Registered) else MergeOnReadTable
        return kind(
            site.storage,
            name,
            pipeline,
            site.options,
            shape=shape or Shape(),
            delivery=delivery or Delivery(),
            layout=layout or TableFormat(),
            beside=self._beside,
            policy=self._policy,
            saved_index=self._saved_index(pipeline, name),
        )

    def _saved_index(self, pipeline: str, name: TableId) -> Preserved | None:
        if self._indexes is None:
            return None
        home = quote(pipeline, safe="")
        claim = self._claims.setdefault(pipeline, Claim(self._indexes / f"{home}+lock"))
        return Preserved(self._indexes / home / folder_of(name), claim, self._beside)

    def close(self) -> None:
        """Let go of the thread for upkeep, which ends with what it has begun."""
        self._beside.shutdown(wait=False, cancel_futures=True)

    @property
    def catalog(self) -> Registered | None:
        """What registers the tables; None for a lake of folders."""
        return self._lake if isinstance(self._lake, Registered) else None

    def check_writable(self) -> None:
        """Write and delete a file at the location, a lake of folders.

        Raises:
            DestinationError: it cannot be done; says why.
        """
        probe = f".headrace-{uuid.uuid4()}"
        try:
            self._root.put(probe, b"")
            self._root.delete([probe])
        except LogError as error:
            raise self._refused("write to", error) from error

    def check_commits(self) -> None:
        """Make sure that only one of two writers can make a commit, in a lake of folders.

        Raises:
            DestinationError: the store does not see to it.
        """
        try:
            check_put_if_absent(self._root)
        except LogError as error:
            raise self._refused("commit safely to", error) from error

    @property
    def _root(self) -> Storage:
        assert isinstance(self._lake, Folders)  # registered tables lie anywhere
        return self._lake.storage

    def _refused(self, what: str, error: LogError) -> DestinationError:
        kind = DestinationUnavailableError if error.transient else DestinationError
        hint = error.hint or "check the location and the rights of this account there"
        return kind(f"cannot {what} {self.location}: {error.message}", hint=hint)

    def tables(self) -> list[TableId]:
        """The Delta tables at this location, whoever made them."""
        return self._lake.tables()

    def owner(self, name: TableId) -> str | None:
        """The pipeline that made a table; None for another's table, or where there is none."""
        state = load_state(self._lake.reading(name).storage)
        return None if state is None else state.configuration.get(PIPELINE)

    def timeline(
        self, name: TableId, reached: Callable[[str, str], Reached | None]
    ) -> Timeline | None:
        """A table's versions by the LSNs of its source; None where it holds nothing of one.

        Raises:
            DestinationError: the table cannot be read.
        """
        site = self._lake.reading(name)
        try:
            if self.catalog is not None and not site.storage.list(LOG):
                return None  # registered, but nobody has written to it yet
            found = Timeline(name, site.storage, site.options, reached)
        except DeltaError as error:
            raise DestinationError(
                f"{name} cannot be read: {plain(error)}", hint="see whether its folder is whole"
            ) from error
        return found if found.standing is not None else None

    def query(self, sql: str, version_at: Callable[[TableId], int] | None = None) -> pa.Table:
        """The result of a query over this location's tables by their names, `schema.table`.

        A table's name alone will do where no other schema here has a table of that name. With
        `version_at`, tables are read at the versions that it gives, not at their newest.

        Raises:
            NoVersionError: `version_at` knows none of a table that the query reads.
            DestinationError: the query is wrong, or a table cannot be read.
        """
        tables = self.tables()
        bare = [table.name for table in tables]
        missing: list[NoVersionError] = []  # of tables, or of columns that have a table's name
        try:
            builder = QueryBuilder()
            for table in tables:
                if not re.search(rf"\b{re.escape(table.name)}\b", sql):
                    continue
                try:
                    delta = self.open(table, version_at(table) if version_at else None)
                except NoVersionError as error:
                    missing.append(error)
                    continue
                builder.register(_alias(table), delta)
                if bare.count(table.name) == 1:
                    builder.register(table.name, delta)
            return pa.table(builder.execute(_with_aliases(sql, tables)))
        except (DeltaError, pa.ArrowException, ValueError) as error:
            if missing:
                raise missing[0] from error
            swept = version_at is not None and "not found" in str(error)
            known = "the tables here: " + ", ".join(map(str, tables))
            raise DestinationError(
                f"the query failed: {plain(error)}", hint=_SWEPT if swept else known
            ) from error

    def open(self, name: TableId, version: int | None = None) -> DeltaTable:
        """The table in the deltalake library, at a version or at its newest.

        Raises:
            DestinationError: the catalog has no such table.
        """
        site = self._lake.reading(name)
        try:
            options = dict(site.options) or None
            return DeltaTable(site.storage.url, version, storage_options=options)
        except ObjectMissingError as error:
            hint = error.hint or "headrace run"
            raise DestinationError(error.message, hint=hint, table=str(name)) from error


def _lake(
    location: str, options: Mapping[str, str], storage_root: str | None
) -> Folders | Registered:
    if is_unity(location):
        return Registered(UnityCatalog.of(location, options), storage_root)
    return Folders(location, with_retries(location, options))


def _alias(table: TableId) -> str:
    return f"{table.schema}__{table.name}"


def _with_aliases(sql: str, tables: list[TableId]) -> str:
    """`schema.table` becomes one identifier: the engine has no schemas but its own."""

    def alias(match: re.Match[str]) -> str:
        table = TableId(match[1] or match[2], match[3] or match[4])
        return f'"{_alias(table)}"' if table in tables else match[0]

    return _TABLE_NAME.sub(alias, sql)
