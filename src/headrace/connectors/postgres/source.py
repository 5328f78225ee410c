"""A Postgres database as a source: its slot, its stream and its snapshots."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import psycopg
from psycopg import pq, sql

from headrace.connectors.postgres.catalog import ReadAs
from headrace.connectors.postgres.config import PostgresConnection, connect, conninfo
from headrace.connectors.postgres.config import session as source_session
from headrace.connectors.postgres.coverage import GONE, Coverage, departures, read_coverage
from headrace.connectors.postgres.exporting import Placer, exported
from headrace.connectors.postgres.failures import REBUILD, command_error
from headrace.connectors.postgres.schemas import SchemaRegistry
from headrace.connectors.postgres.slot_outlook import SlotWatch
from headrace.connectors.postgres.slot_start import begin_slot
from headrace.connectors.postgres.slot_state import (
    SlotState,
    end_of_wal,
    interruption,
    slot_state,
)
from headrace.connectors.postgres.slots import alter_slot, in_recovery, set_failover
from headrace.connectors.postgres.snapshot import open_snapshot
from headrace.connectors.postgres.snapshot_reading import PostgresSnapshot
from headrace.connectors.postgres.stream import ReplicationStream
from headrace.connectors.postgres.timelines import Lineage
from headrace.connectors.postgres.two_phase import disagreement, must_be_turned_off
from headrace.errors import DecodingError, SlotLostError, SourceError
from headrace.model import KeyRange, Lsn, TableId, TableSchema

# The newest protocol that each server speaks (facts of 13 to 18); 16 and later speak 4.
PROTOCOL_VERSIONS = {13: 1, 14: 2, 15: 3}
NEWEST_PROTOCOL = 4
STREAMING_SINCE = 14  # large transactions are sent while they are in progress

# A transactional message without text; a stream that did not ask for messages skips it.
MARK = "SELECT pg_catalog.pg_logical_emit_message(true, 'headrace', '')::text"


class PostgresSource:
    """See `engine.protocols.Source`. `known` are the newest schema versions that the log has.

    `covered` are the tables to be watched, as they were when the capture began. `stop` ends what
    may wait for long; `lineage` follows the server that takes this one's place.
    """

    def __init__(
        self,
        settings: PostgresConnection,
        slot: str,
        publication: str,
        selected: Collection[TableId],
        known: Mapping[TableId, TableSchema],
        covered: Mapping[TableId, Coverage] | None = None,
        stop: threading.Event | None = None,
        lineage: Lineage | None = None,
        read_as: Mapping[TableId, ReadAs] | None = None,
    ) -> None:
        self._stop = stop or threading.Event()
        self._settings = settings
        self._covered = dict(covered or {})
        self._slot = slot
        self._lineage = lineage
        self._streaming: int | None = None  # the walsender's process
        self._stream: ReplicationStream | None = None  # the last one
        self._sent_in_progress = False  # whether its server might send what was in progress
        self._watch = SlotWatch()
        self._publication = publication
        self.registry = SchemaRegistry(self._look, publication, known, selected, read_as)

    def connect(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        return source_session(self._settings)

    def _look(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A session for the catalog, where answers come at once."""
        return source_session(self._settings, prompt=True)

    def _connect_replication(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        return source_session(self._settings, replication=True)

    @property
    def covered(self) -> Mapping[TableId, Coverage]:
        """What covered the watched tables when it was looked at last."""
        return self._covered

    def departed(self) -> Mapping[TableId, str]:
        """See `Source.departed`; warns of what threatens the slot, too."""
        with self._look() as session:
            slot = slot_state(session, self._slot)
            if slot is not None:  # the stream itself tells of one that is gone
                self._watch.look(session, slot)
                if self._lineage is not None and slot.active_pid == self._streaming:
                    self._lineage.stay(session)
            now = read_coverage(session, self._publication, self._covered)
        if now is None:  # the stream itself tells of a publication that is gone
            return {}
        followed = {t: was for t, was in self._covered.items() if self.registry.wanted(t)}
        departed = departures(followed, now, self._publication)
        for table in departed:
            self.registry.give_up(table)  # until it is copied anew, and followed from then on
        self._covered = {table: now.get(table, GONE) for table in self._covered}
        return departed

    def _cover_anew(self, tables: Collection[TableId]) -> None:
        """Watch tables, which were given up, from a moment before they are copied."""
        if tables:
            with self._look() as session:
                now = read_coverage(session, self._publication, tables) or {}
            self._covered = {**self._covered, **{t: now.get(t, GONE) for t in tables}}

    def current_lsn(self) -> Lsn:
        """An LSN after everything committed so far, which the stream will come to.

        The end of the WAL alone would not do. While transactions are open it may well lie inside a
        record whose rest is yet to be flushed, and the stream would stop short of it until somebody
        commits. An empty message of our own takes a commit, and that flushes.
        """
        with self._look() as session:
            if in_recovery(session):  # where whole records are replayed
                return end_of_wal(session)
            with session.transaction():
                session.execute("SET LOCAL synchronous_commit = local")
                row = session.execute(MARK).fetchone()
        return Lsn.parse(row[0] if row else "0/0")

    def prepare(self, log_position: Lsn | None) -> Lsn:
        """See `Source.prepare`: create or adopt the slot; gives the LSN to stream from."""
        with self._look() as session:
            slot = slot_state(session, self._slot)
            self._require_agreement(session.info.server_version // 10000, slot)
        if log_position is None:
            position = _adopted(slot) if slot else self._create_slot()
        else:
            self._require_continuity(slot, log_position)
            position = log_position
        wanted = self._settings.failover
        if slot is not None and wanted is not None and wanted != slot.failover:
            with self._connect_replication() as connection:
                set_failover(connection, self._slot, wanted)
        if must_be_turned_off(slot, wanted=self._settings.two_phase):
            with self._connect_replication() as connection:
                alter_slot(connection, self._slot, "TWO_PHASE false")
        return position

    def _require_agreement(self, version: int, slot: SlotState | None) -> None:
        found = disagreement(version, slot, wanted=self._settings.two_phase)
        if found is not None:
            raise SourceError(found.why, hint=found.fix)

    def _create_slot(self) -> Lsn:
        failover = self._settings.failover is not False
        with self._connect_replication() as connection, self._look() as session:
            return begin_slot(connection, session, self._slot, self._stop, failover=failover)

    def _require_continuity(self, slot: SlotState | None, position: Lsn) -> Lsn:
        """What was confirmed to the slot, which is `position` or before."""
        why = interruption(slot, self._slot, position)
        if why is not None:
            raise SlotLostError(why, hint=REBUILD)
        assert slot is not None
        assert slot.confirmed_flush is not None
        return slot.confirmed_flush

    def stream(self, from_lsn: Lsn) -> ReplicationStream:
        """Start streaming whole transactions that commit after `from_lsn`.

        Those that are prepared by then have to be sent again, wherefore with `two_phase` the server
        begins where it was told to, before the oldest of them.

        The slot is looked at once more when it is in use, and so can neither be dropped nor moved
        by anybody else: between the last look and the start it could, and the server would send
        what comes later without a word.
        """
        connection = connect(self._settings, replication=True)
        try:
            if self._lineage is not None:
                self._lineage.follow(connection, from_lsn)
            self._streaming = connection.info.backend_pid
            with self._look() as session:
                self._require_publication(session)
                self._start(connection, from_lsn)
                confirmed = self._require_continuity(slot_state(session, self._slot), from_lsn)
        except BaseException:
            connection.close()
            raise
        self._stream = ReplicationStream(
            connection,
            self.registry,
            from_lsn,
            confirmed if self._settings.two_phase else from_lsn,
            silence=self._settings.connection_timeout,
        )
        return self._stream

    def _require_publication(self, session: psycopg.Connection[Any]) -> None:
        """On 18 a missing publication loses changes with no more than a warning."""
        found = session.execute(
            "SELECT 1 FROM pg_publication WHERE pubname = %s", (self._publication,)
        ).fetchone()
        if found is None:
            raise SourceError(
                f"publication {self._publication!r} does not exist",
                hint="headrace check --fix creates it",
            )

    def _in_progress(self, major: int) -> bool:
        """Whether the server may send transactions in progress.

        Not once it has failed to decode them: what will be undone it need not understand.

        Raises:
            SourceError: it has failed without them, too, and will again.
        """
        error = None if self._stream is None else self._stream.error
        if not isinstance(error, DecodingError):
            return major >= STREAMING_SINCE
        if not self._sent_in_progress:
            raise SourceError(
                f"{error.message}; it will again, from slot {self._slot!r}",
                hint=f"SELECT pg_catalog.pg_drop_replication_slot('{self._slot}'), then {REBUILD}",
            )
        return False

    def _start(self, connection: psycopg.Connection[Any], from_lsn: Lsn) -> None:
        major = connection.info.server_version // 10000
        publication = sql.Identifier(self._publication).as_string(connection)
        # 'parallel' (16 and later) would tell us no more than when a transaction was aborted.
        self._sent_in_progress = self._in_progress(major)
        options = ", streaming 'on'" if self._sent_in_progress else ""
        options += ", two_phase 'on'" if self._settings.two_phase else ""
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version {}, publication_names {}{})"
        ).format(
            sql.Identifier(self._slot),
            sql.SQL("0/0" if self._settings.two_phase else str(from_lsn)),
            sql.Literal(str(PROTOCOL_VERSIONS.get(major, NEWEST_PROTOCOL))),
            sql.Literal(publication),
            sql.SQL(options),  # constants
        )
        result = connection.pgconn.exec_(command.as_bytes(connection))
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise command_error(result, connection.pgconn.error_message)

    def snapshot(
        self,
        tables: Mapping[TableId, Sequence[KeyRange] | None],
        connections: int,
        place: Placer,
    ) -> AbstractContextManager[PostgresSnapshot]:
        """See `Source.snapshot`."""
        self._cover_anew([table for table in tables if not self.registry.wanted(table)])
        for table in tables:
            self.registry.take_up(table)
        return open_snapshot(
            conninfo(self._settings),
            self.connect,
            partial(
                exported,
                connect=self.connect,
                connect_replication=self._connect_replication,
                place=place,
                stop=self._stop,
            ),
            self.registry,
            self._publication,
            tables,
            connections,
            self._settings.snapshots.ranges_above,
        )


def _adopted(slot: SlotState) -> Lsn:
    """Where a slot that somebody made stands."""
    if slot.foreign_because is not None:
        raise SourceError(
            f"slot {slot.name!r} {slot.foreign_because[0]}",
            hint="name another slot (slot: in headrace.yaml); Headrace creates it",
        )
    if slot.lost_because or slot.confirmed_flush is None:
        raise SlotLostError(
            f"slot {slot.name!r} is lost ({slot.lost_because})",
            hint=f"drop it, and Headrace creates it anew: {slot.drop}",
        )
    return slot.confirmed_flush
