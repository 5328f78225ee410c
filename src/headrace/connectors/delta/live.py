"""A Delta table as its one steady writer knows it: the state that its log tells, the key index of
the same version, and the commits that take both to the next one.

Other writers' commits (compaction, properties, appends) are followed as they are met: a commit that
is lost to one is planned anew against the table as it then is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pyarrow as pa
from pyroaring import BitMap

from headrace.connectors.delta.actions import LSN_SUFFIX, Action, log_path
from headrace.connectors.delta.arrangement import check_partition_columns
from headrace.connectors.delta.pending import UNNAMED, Pending
from headrace.connectors.delta.plans import LOG_ID, PIPELINE
from headrace.connectors.delta.preserving import Preserved
from headrace.connectors.delta.rows import RowIndex, load_vector
from headrace.connectors.delta.schema import check_protocol
from headrace.connectors.delta.state import TableState, follow, load_state
from headrace.connectors.delta.writer import CommitLostError, put_commit
from headrace.errors import DestinationConflictError, DivergedError, ForeignTableError
from headrace.log.storage import Storage
from headrace.model import END_AT, Checkpoint, Lsn, TableId, TableSchema
from headrace.model.fingerprint import Hasher, NullKeyError

ATTEMPTS: Final = 10  # commits lost in a row to other writers before the engine gets a turn

T = TypeVar("T")


@dataclass(frozen=True)
class Commit:
    """Actions that are to be committed; `follow` takes the index along with them, without which it
    reads the files that are new."""

    actions: Sequence[Action]
    follow: Callable[[RowIndex], None] | None = None


class LiveTable:
    """Used by one thread at a time. `history`: rows that have ended are left out of the index."""

    def __init__(
        self,
        storage: Storage,
        name: TableId,
        pipeline: str,
        *,
        history: bool,
        index_memory: int,
        saved_index: Preserved | None,
    ) -> None:
        self.storage = storage
        self.name = name
        self.pipeline = pipeline
        self.state: TableState | None = None  # None: there is no table, or nobody looked
        self.rows: RowIndex | None = None  # None: nobody needed it yet
        self.pending = Pending()  # on top of the state; the index knows of it
        self.entry_bytes = 0  # of the last commit's log entry
        self._history = history
        self._index_memory = index_memory
        self._saved_index = saved_index
        self._exact = True  # False once a null was met in an integer key

    # -- the state ---------------------------------------------------------------------------------

    def refresh(self) -> TableState | None:
        """Follow the log to its end; None if there is no table.

        Raises:
            LogError: the table's log cannot be read.
            DestinationError: it is not one that we can read.
        """
        state, rows = self.state, self.rows
        self.state = self.rows = None  # an error half-way leaves nothing of another version
        if state is None:
            state = load_state(self.storage)
            if state is not None:
                check_partition_columns(self.storage, state.files.values(), state.partition_by)
            self.state = state
            return state
        seen = follow(self.storage, state)
        added = {action["add"]["path"] for action in seen if "add" in action}
        come = (state.files[path] for path in added & state.files.keys())
        check_partition_columns(self.storage, come, state.partition_by)
        self.state, self.rows = state, rows
        if any("add" in action or "remove" in action for action in seen):
            self._take_along(state)
        return state

    def refresh_ours(self) -> TableState | None:
        """The same; raises ForeignTableError where this pipeline did not make the table."""
        state = self.refresh()
        if state is not None and state.configuration.get(PIPELINE) != self.pipeline:
            owner = state.configuration.get(PIPELINE)
            made = f"the pipeline {owner!r} made" if owner else "Headrace did not make"
            raise ForeignTableError(
                f"{self.storage.url} is a Delta table that {made}",
                hint=f"move it away, or give {self.name} another `name:` in headrace.yaml",
                table=str(self.name),
            )
        return state

    def known(self) -> TableState:
        """The state as we know it; another writer's commits since then make ours fail.

        Raises:
            DivergedError: there is no table.
        """
        state = self.state if self.state is not None else self.refresh_ours()
        if state is None:
            raise self.diverged("there is no table, though it was loaded once")
        return state

    @property
    def working(self) -> TableState:
        """The state with what is pending. Raises as `known` does."""
        return self.pending.over(self.known())

    def check_protocol(self) -> None:
        """Raises DestinationError where the table has features that we cannot write."""
        state = self.known()
        check_protocol(state.protocol, state.metadata, self.storage.url)

    def app_id(self, log_id: str) -> str:
        """The application id of this table's checkpoints in a log."""
        return f"headrace/{log_id}/{self.pipeline}/{self.name}"

    def checkpoint(self, log_id: str) -> Checkpoint | None:
        """Where the known state stands in a log, if its content comes from there: transactions of
        earlier logs stay behind."""
        if self.state is None or self.state.configuration.get(LOG_ID) != log_id:
            return None
        app_id = self.app_id(log_id)
        commit, lsn = self.state.txns.get(app_id), self.state.txns.get(app_id + LSN_SUFFIX)
        return None if commit is None or lsn is None else Checkpoint(log_id, commit, Lsn(lsn))

    # -- commits -----------------------------------------------------------------------------------

    def commit(self, plan: Callable[[], Commit | None], attempts: int = ATTEMPTS) -> bool:
        """Commit what `plan` makes of the table as it is known, until no other writer comes
        between; False if it finds that there is nothing to do. Whatever comes of it, nothing is
        pending then.

        Raises:
            DestinationConflictError: other writers came between so many times in a row.
            DivergedError: the table has been replaced.
        """
        try:
            for _ in range(attempts):
                planned = plan()
                if planned is None:
                    return False
                try:
                    state = self._put(planned.actions)
                except CommitLostError:
                    self.abandon()
                    self.refresh_ours()
                else:
                    self.pending = Pending()
                    self._take_along(state, planned.follow)
                    return True
            raise self.conflict(attempts)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of what is pending; its files are swept some day."""
        if self.pending:
            self.pending = Pending()
            if self.state is not None:
                self._take_along(self.state)

    def revise(self, plan: Callable[[TableState], list[Action]]) -> bool:
        """The same of actions that `plan` makes of the state, or of an empty one where there is no
        table; none: there is nothing to do."""

        def planned() -> Commit | None:
            actions = plan(self.state or TableState())
            return Commit(actions) if actions else None

        return self.commit(planned)

    def _put(self, commit: Sequence[Action]) -> TableState:
        state = self.state or TableState()
        if state.version >= 0 and not self.storage.exists(log_path(state.version)):
            raise self.diverged("its newest version is gone, as if the folder had been replaced")
        self.entry_bytes = put_commit(self.storage, state.version + 1, commit)
        state.replay(state.version + 1, commit)
        self.state = state
        return state

    # -- the index ---------------------------------------------------------------------------------

    def indexed(self, schema: TableSchema, use: Callable[[RowIndex], T]) -> T:
        """What `use` makes of the index; over a null in an integer key, again of one by hashes."""
        try:
            return use(self.index(schema))
        except NullKeyError:
            self.forget_index(exact=False)
            return use(self.index(schema))

    def index(self, schema: TableSchema) -> RowIndex:
        """The index by the schema's key; built at first need, or when the key has changed.

        Raises:
            LogError: a file cannot be read.
            NullKeyError: as `Hasher.hash` does.
        """
        state = self.working
        stored = state.columns
        key = pa.schema([stored.field(name) for name in schema.key or schema.names])
        if self.rows is None or self.rows.is_worn or not self.rows.schema.equals(key):
            rows = RowIndex(
                self.storage,
                key,
                Hasher.of(key, exact=self._exact),
                stored.field(END_AT) if self._history else None,
                self._index_memory,
                self._saved_index,
            )
            rows.sync(state)
            gone = self.pending.gone
            if gone:
                rows.committed({path: (UNNAMED, lost) for path, lost in gone.items()}, (), ())
            self.rows = rows
        return self.rows

    def forget_index(self, *, exact: bool = True) -> None:
        """Let it be built anew; if not `exact`, integer keys may be null."""
        self.rows, self._exact = None, exact

    def preserve_index(self, *, last: bool) -> None:
        """Save it where that is due. Raises DestinationUnavailableError: it could not be saved."""
        if self.rows is not None and self.state is not None:
            self.rows.preserve(self.state, last=last)

    def release_index(self) -> None:
        """Let others have its file. Raises DestinationUnavailableError: it could not be saved."""
        self.rows = None
        if self._saved_index is not None:
            self._saved_index.release()

    def deleted(self, file: Mapping[str, Any]) -> BitMap:
        """All rows deleted from a file of the table."""
        if self.rows is not None:
            return self.rows.deleted(file["path"])
        return load_vector(self.storage, file.get("deletionVector"))

    def take_along_pending(self, follow: Callable[[RowIndex], None] | None) -> None:
        """Bring the index to what is pending now, by `follow` or by reading the new files."""
        self._take_along(self.working, follow)

    def _take_along(
        self, state: TableState, follow: Callable[[RowIndex], None] | None = None
    ) -> None:
        """Bring the index, if there is one, to the state's version, or let go of it."""
        rows, self.rows = self.rows, None
        if rows is None:
            return
        try:
            rows.sync(state) if follow is None else follow(rows)
        except NullKeyError:
            self._exact = False
        else:
            self.rows = rows

    # -- errors ------------------------------------------------------------------------------------

    def conflict(self, attempts: int = 1) -> DestinationConflictError:
        return DestinationConflictError(
            f"{self.storage.url}: {attempts} commits in a row were lost to other writers",
            hint="let nothing else write to this table while Headrace runs",
            table=str(self.name),
        )

    def diverged(self, why: str) -> DivergedError:
        return DivergedError(
            f"{self.name} at {self.storage.url} is not as the change log says: {why}",
            hint=f"headrace resync {self.name}",
            table=str(self.name),
        )
