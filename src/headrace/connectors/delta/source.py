"""Delta tables as sources: found below a location, read at a version, followed by their feed.

A Delta table is a change log of its own: its versions are the commits, its metadata id is the
log's id (DESIGN.md §1 and §11).
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder

from headrace.connectors.delta.changes import read_changes
from headrace.connectors.delta.columns import Layout
from headrace.connectors.delta.discovery import folder_of, tables_in
from headrace.connectors.delta.failures import source_errors
from headrace.connectors.delta.feed import AT_ONCE, plan_feed
from headrace.connectors.delta.file_diff import diff_files
from headrace.connectors.delta.files import inside
from headrace.connectors.delta.history import Commit, Header, TableHistory, lost
from headrace.connectors.delta.places import Locator, Place
from headrace.connectors.delta.scan import READABLE, FileRows, row_parts
from headrace.connectors.delta.stats import stats_of
from headrace.connectors.delta.unity import UnityCatalog, is_unity
from headrace.errors import SourceUnavailableError, TableNotFoundError, UnusableKeyError
from headrace.log.storage import Storage
from headrace.model import (
    Checkpoint,
    FeedPlan,
    FileDiff,
    RowPart,
    TableId,
    TableSchema,
    TableVersion,
)


class DeltaSource:
    """Tables at `<location>/<schema>/<table>`, or those of a Unity Catalog (`uc://catalog`).

    `storage_options` are the object store's settings in the names that deltalake knows; for a
    catalog also databricks_host, databricks_token and unity_allow_http_url. `poll` is how often, in
    seconds, a table that is waited for is looked at.
    """

    def __init__(
        self,
        location: str,
        storage_options: Mapping[str, str] | None = None,
        *,
        poll: float = 1.0,
    ) -> None:
        self.location = location.rstrip("/")
        self._options = dict(storage_options or {})
        self._poll = poll
        self._catalog = UnityCatalog.of(location, self._options) if is_unity(location) else None

    def tables(self) -> list[TableId]:
        """The Delta tables here.

        Raises:
            SourceUnavailableError: the storage or the catalog does not answer.
            SourceError: it refuses.
        """
        with source_errors(self.location):
            if self._catalog is not None:
                return self._catalog.tables()
            return tables_in(Place(self.location, self._options).storage)

    @property
    def is_writable(self) -> bool:
        """Whether the credentials may be good for more than reading: a catalog lends no such."""
        return self._catalog is None

    def place(self, name: TableId) -> Place:
        """Where a table lies."""
        return self._locator(name)()

    def table(self, name: TableId, key: tuple[str, ...] = ()) -> DeltaSourceTable:
        """A table whose rows `key` identifies; nothing is read yet."""
        return DeltaSourceTable(name, key, self._locator(name), poll=self._poll, known=self.tables)

    def _locator(self, name: TableId) -> Locator:
        if self._catalog is not None:
            return self._catalog.locator(name)
        with source_errors(name):
            place = Place(f"{self.location}/{folder_of(name)}", self._options)
        return lambda: place


class DeltaSourceTable:
    """Fulfils `VersionedTable`; used from one thread but for `wake` and the parts' readings."""

    def __init__(
        self,
        name: TableId,
        key: tuple[str, ...],
        place: Locator,
        *,
        poll: float,
        known: Callable[[], list[TableId]] = list,
    ) -> None:
        self.name = name
        self._key = key
        self._place = place
        self._poll = poll
        self._known = known
        self._history = TableHistory(self._storage)
        self._woken = threading.Event()

    def _storage(self) -> Storage:
        return self._place().storage

    # -- versions ----------------------------------------------------------------------------------

    def head(self) -> TableVersion:
        """The newest version now.

        Raises:
            TableNotFoundError: there is no table; tells which are near.
            SourceUnavailableError: the storage cannot be asked for now.
            HistoryLostError: the log is not whole.
        """
        with source_errors(self.name):
            try:
                number = self._history.head()
            except TableNotFoundError as error:
                raise self._not_found(error) from error
            commit = self._history.commit(number) or Commit(number, ())
            return TableVersion(self._header(number).log_id, number, commit.time)

    def version(self, number: int) -> TableVersion:
        """A version that the table had.

        Raises:
            HistoryLostError: the log no longer tells it.
        """
        with source_errors(self.name):
            commit = self._history.commit(number)
            if commit is None:
                raise lost(self.name, number)
            return TableVersion(self._header(number).log_id, number, commit.time)

    def await_newer(self, than: int, timeout: float) -> bool:
        """Wait until there is a version after `than`; False when `timeout` seconds are over, or
        somebody called `wake`.

        Raises:
            SourceUnavailableError: the storage does not answer.
        """
        deadline = time.monotonic() + timeout
        with source_errors(self.name):
            while not self._history.has(than + 1):
                left = deadline - time.monotonic()
                if left <= 0 or self._woken.wait(min(self._poll, left)):
                    self._woken.clear()
                    return False
        return True

    def wake(self) -> None:
        """Make a waiting `await_newer` return, or the next one; from any thread."""
        self._woken.set()

    def schema(self, version: int) -> TableSchema:
        """The schema as of a version; its own version is that which last set metadata (where only
        a checkpoint tells it, the checkpoint's).

        Raises:
            UnusableKeyError: a key column is not there, or cannot be compared.
            HistoryLostError: the log no longer tells that version.
        """
        with source_errors(self.name):
            schema = self._schema(self._header(version))
        _check_key(schema)
        return schema

    def rows(self, version: int) -> Sequence[RowPart]:
        """The whole table as of a version, in parts that can be read side by side.

        Raises:
            HistoryLostError: the log no longer tells that version.
            SourceUnavailableError: the storage does not answer; also while a part is read.
        """
        with source_errors(self.name):
            state = self._history.state(version)
            if state is None:
                raise lost(self.name, version)
            layout = Layout.of(state.metadata)
            files = [FileRows(file) for file in state.files.values()]
            if not self._is_readable(self._header(version), files):
                return [RowPart(partial(self._read_by_library, version, layout.arrow()))]
            return row_parts(self.name, self._storage, layout, files)

    # -- changes -----------------------------------------------------------------------------------

    def plan(self, after: Checkpoint, to: int) -> FeedPlan:
        """How to come from `after` (`after.commit` is applied) to version `to`.

        Raises:
            SourceUnavailableError: the storage does not answer.
        """
        with source_errors(self.name):
            return plan_feed(self.name, self._history, self._storage(), self._schema, after, to)

    def changes(self, schema: TableSchema, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """The feed's rows of a range that was planned, both ends inclusive, in no order.

        Raises:
            SourceUnavailableError: the storage does not answer, or a file or version vanished.
        """
        with source_errors(self.name):
            layout = self._layout(schema, last)
            yield from read_changes(self._storage(), layout, self._commits(first, last))

    def _layout(self, schema: TableSchema, version: int) -> Layout:
        """How to read files by `schema`, that of a version. What the log no longer tells of it may
        hold for the newest still: a plan allows that where nothing set metadata since."""
        for number in (version, self._history.head()):
            header = self._history.header(number)
            if header is not None and self._schema(header).columns == schema.columns:
                return Layout.of(header.metadata)
        raise self._vanished(version)

    def _commits(self, first: int, last: int) -> Iterator[Commit]:
        for start in range(first, last + 1, AT_ONCE):
            found = self._history.commits(start, min(start + AT_ONCE - 1, last))
            for version, commit in enumerate(found, start):
                if commit is None:
                    raise self._vanished(version)
                yield commit

    def _vanished(self, version: int) -> SourceUnavailableError:
        return SourceUnavailableError(
            f"{self.name}: version {version} vanished from the log while it was read",
            hint="Headrace looks at the table again, and for another way",
            table=str(self.name),
        )

    def file_diff(self, after: Checkpoint, to: int) -> FileDiff | None:
        """What the files of two versions differ by; None where the older one is not known, or the
        table has no key.

        Raises:
            SourceUnavailableError: the storage does not answer.
        """
        schema = self.schema(to)
        with source_errors(self.name):
            old = self._history.state(after.commit)
            new = self._history.state(to)
            if new is None:
                raise lost(self.name, to)
            if old is None or not schema.key or old.metadata["id"] != after.log_id:
                return None
            if new.metadata["id"] != after.log_id or self._history.is_another(after):
                return None
            files = [FileRows(file) for state in (old, new) for file in state.files.values()]
            if not self._is_readable(self._header(to), files):
                return None
            return diff_files(self._storage, schema, old, new)

    # -- the table ---------------------------------------------------------------------------------

    def header(self, version: int) -> Header:
        """Protocol and metadata as of a version.

        Raises:
            HistoryLostError: the log no longer tells that version.
        """
        with source_errors(self.name):
            return self._header(version)

    def null_counts(self, version: int) -> dict[str, int]:
        """Nulls of each key column, by the statistics of the files; those that they do not tell
        are left out.

        Raises:
            HistoryLostError: the log no longer tells that version.
        """
        with source_errors(self.name):
            state = self._history.state(version)
            if state is None:
                raise lost(self.name, version)
            columns = Layout.of(state.metadata).only(self._key).columns
            told = [stats_of(file) for file in state.files.values()]
            counts = [(stats.get("nullCount") or {}) for stats in told]
            return {c.name: sum(n.get(c.physical) or 0 for n in counts) for c in columns}

    def _header(self, version: int) -> Header:
        header = self._history.header(version)
        if header is None:
            raise lost(self.name, version)
        return header

    def _schema(self, header: Header) -> TableSchema:
        columns = Layout.of(header.metadata).columns
        declared = tuple(column.declared() for column in columns)
        return TableSchema(self.name, header.since, declared, self._key)

    def _is_readable(self, header: Header, files: Iterable[FileRows]) -> bool:
        """Whether our own scan reads the table: it knows its features, and where its files lie."""
        storage = self._storage()
        return header.reader_features <= READABLE and not any(
            "://" in inside(storage, piece.add["path"]) for piece in files
        )

    def _read_by_library(self, version: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with source_errors(self.name):
            place = self._place()
            options = dict(place.options) or None
            delta = DeltaTable(place.url, version=version, storage_options=options)
            stream = QueryBuilder().register("source", delta).execute("SELECT * FROM source")
            for batch in pa.RecordBatchReader.from_stream(stream):
                columns = [pc.cast(batch.column(field.name), field.type) for field in schema]
                yield pa.record_batch(columns, schema=schema)

    def _not_found(self, error: TableNotFoundError) -> TableNotFoundError:
        known = [str(table) for table in self._known()]
        return TableNotFoundError(
            f"there is no Delta table {self.name}: {error.message}",
            hint=_near(str(self.name), known) or "check the location, and what is there",
            table=str(self.name),
        )


def _check_key(schema: TableSchema) -> None:
    for name in schema.key:
        if name not in schema.names:
            raise UnusableKeyError(
                f"{schema.table} has no column {name}, which `key:` names",
                hint=_near(name, schema.names),
                table=str(schema.table),
                column=name,
            )
        if pa.types.is_nested(schema.arrow().field(name).type):
            raise UnusableKeyError(
                f"{schema.table}: column {name} is no single value and cannot be in a key",
                hint="name columns that hold single values",
                table=str(schema.table),
                column=name,
            )


def _near(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(names[:20])}" if names else ""
