"""The replication stream: START_REPLICATION and the COPY BOTH loop on psycopg's `pgconn`.

Postgres documentation, "Streaming Replication Protocol". `get_copy_data` is always called in its
asynchronous form: the blocking one holds the GIL in psycopg's C implementation.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from typing import Final

import psycopg
from psycopg import pq

from headrace.connectors.postgres.failures import stream_error
from headrace.connectors.postgres.schemas import SchemaRegistry
from headrace.connectors.postgres.taken import InProgress, TakenChanges
from headrace.errors import HeadraceError, SourceError, SourceUnavailableError
from headrace.model import Lsn
from headrace.pgoutput import Decoder
from headrace.pgoutput.frames import KEEPALIVE, parse_keepalive, standby_status

# A burst ends here even if more has arrived, so that pending bytes are looked at in between.
BURST_BYTES: Final = 4 << 20

# Acknowledging wakes the walsender; once a second is enough to let WAL go, and at once so much WAL
# in which there was nothing for us: a walsender that skips over it has time to listen.
ACK_INTERVAL: Final = 1.0
SKIPPED_BYTES: Final = 64 << 10

# A walsender sends each message by itself, and has to wake a reader that waits for it: that costs
# it more than the message did. So where something came more is let gather for a moment. Not for
# longer: a Unix socket holds some 280 small messages, which come in 0.7 ms, and then stalls it.
GATHER_SECONDS: Final = 0.0002

# A read that brings less has emptied the socket: reading on would get one message at a time.
SHORT_READ: Final = 8 << 10


class ReplicationStream:
    """One START_REPLICATION session; see `engine.protocols.ChangeStream`.

    Everything up to `start` is known; `confirmed`, at or before it, is what the slot was told. What
    commits in between is sent again for the sake of prepared transactions, and passed over.

    `silence` is how many seconds may pass without a word from the server before the connection
    counts as dead. With every status it is asked for one unless it spoke since the last: so it also
    tells its position while it reads WAL of other databases, of which it says nothing by itself.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        registry: SchemaRegistry,
        start: Lsn,
        confirmed: Lsn,
        *,
        silence: float = 10.0,
    ) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._registry = registry
        self._decoder = Decoder(start=start)
        self._in_progress: dict[int, InProgress] = {}
        self._silence = silence
        self._notice: HeadraceError | None = None
        self.error: HeadraceError | None = None  # with which the server ended it
        self._pg.notice_handler = self._on_notice
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._start = self._keepalive_lsn = self._durable = start
        self._flushed = self._told = confirmed
        self.reply_requested = False
        self._gathering = False
        self._heard = self._acked = time.monotonic()

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self, timeout: float) -> bool:
        """See `ChangeStream.receive`."""
        if self._gathering:
            time.sleep(GATHER_SECONDS)
        received = self._burst() or (self._wait(timeout) and self._burst())
        self._watch_silence()
        return received

    def _wait(self, timeout: float) -> bool:
        self._send_due_status()
        woken = self._wakened.fileno()
        ready, _, _ = select.select([self._pg.socket, woken], [], [], timeout)
        if woken in ready:
            self._wakened.recv(4096)
        return self._pg.socket in ready

    def _burst(self) -> bool:
        """Hand what has arrived to the decoder, up to a burst; False if there was nothing."""
        size, drained = 0, SHORT_READ
        while drained >= SHORT_READ and size < BURST_BYTES:
            self._consume()
            drained = self._drain()
            size += drained
        self._gathering = 0 < size < BURST_BYTES
        if size:
            self._heard = time.monotonic()
        return size > 0

    def _consume(self) -> None:
        try:
            self._pg.consume_input()
        except psycopg.OperationalError as error:
            raise SourceUnavailableError(
                f"the replication connection was lost: {error}".strip(),
                hint="Headrace reconnects by itself; look at the server's log if it does not",
            ) from error

    def _drain(self) -> int:
        """Hand every message that libpq holds to the decoder; the bytes they had."""
        frames: list[memoryview] = []
        size = 0
        get = self._pg.get_copy_data
        while True:
            length, data = get(1)
            if length <= 0:
                break
            size += length
            if data[0] == KEEPALIVE:
                self._push(frames)
                frames = []
                self._on_keepalive(data)
            else:
                frames.append(data)
        self._push(frames)
        if length == -1:
            self._ended()
        return size

    def _push(self, frames: list[memoryview]) -> None:
        if frames:
            self._decoder.push(frames)
        if self._notice is not None:
            raise self._notice

    def _on_keepalive(self, data: memoryview) -> None:
        keepalive = parse_keepalive(data)
        if not self._decoder.in_transaction:
            self._keepalive_lsn = max(self._keepalive_lsn, Lsn(keepalive.wal_end))
        if keepalive.reply_requested:
            self.reply_requested = True
            self._send_status()

    def _on_notice(self, result: pq.abc.PGresult) -> None:
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
        # 18 drops the changes of a publication it cannot load and only warns.
        if message.startswith(b"skipped loading publication"):
            self._notice = SourceError(
                f"the server {message.decode(errors='replace')}: its changes would be lost",
                hint="create the publication, then drop the slot and begin anew: headrace destroy",
            )

    def _ended(self) -> None:
        self.error = stream_error(self._pg.get_result(), self._pg.error_message)
        raise self.error

    def _watch_silence(self) -> None:
        silent = time.monotonic() - self._heard
        if silent > self._silence:
            raise SourceUnavailableError(
                f"the server has not answered for {silent:.0f} s",
                hint="check the network between Headrace and the server; Headrace reconnects",
            )

    # -- what has come -----------------------------------------------------------------------------

    @property
    def in_transaction(self) -> bool:
        return bool(self._decoder.in_transaction)

    @property
    def pending_bytes(self) -> int:
        return int(self._decoder.buffered_bytes)

    @property
    def pending_rows(self) -> int:
        return int(self._decoder.buffered_rows)

    @property
    def received_lsn(self) -> Lsn:
        return max(self._keepalive_lsn, Lsn(self._decoder.last_commit_lsn))

    def take(self, keep: int) -> TakenChanges:
        """See `ChangeStream.take`."""
        decoded = self._decoder.take(keep)
        return TakenChanges(self.received_lsn, decoded, self._registry, self._in_progress)

    # -- telling the server ------------------------------------------------------------------------

    def acknowledge(self, lsn: Lsn) -> None:
        """Note that everything up to `lsn` is durable; sent at once if the server waits for it.

        It is told no more than where the oldest transaction begins that is prepared, if one is.
        """
        self._durable = max(self._durable, lsn)
        if lsn > self._start:  # else those prepared before may still be to come
            self._flushed = max(self._flushed, Lsn(self._decoder.prepared.releasable(lsn)))
        unsent = self._flushed - self._told
        skipped = lsn > self._decoder.last_commit_lsn and unsent >= SKIPPED_BYTES
        if self.reply_requested or skipped:
            self._send_status()
        else:
            self._send_due_status()

    def ask_position(self) -> None:
        """See `ChangeStream.ask_position`."""
        self._send_status(reply=True)

    def _send_due_status(self) -> None:
        if time.monotonic() - self._acked >= ACK_INTERVAL:
            self._send_status(reply=self._heard < self._acked)

    def _send_status(self, *, reply: bool = False) -> None:
        flushed = self._to_confirm()
        self._acked, self._told = time.monotonic(), self._flushed
        self.reply_requested = self.reply_requested and self._durable < self.received_lsn
        try:
            self._pg.put_copy_data(standby_status(self.received_lsn, flushed, flushed, reply=reply))
            while self._pg.flush() == 1:
                select.select([], [self._pg.socket], [], self._silence)
        except psycopg.OperationalError as error:
            raise SourceUnavailableError(
                f"the replication connection was lost: {error}".strip(),
                hint="Headrace reconnects by itself; look at the server's log if it does not",
            ) from error

    def _to_confirm(self) -> Lsn:
        """0/0, which confirms nothing, where prepared transactions hold back what is durable.

        A server that shuts down waits until all that it sent is flushed; or written, where nothing
        is said of flushing (walsender.c, WalSndDone).
        """
        held = self._flushed == self._told and self._flushed < self._durable
        return Lsn(0) if held else self._flushed

    def wake(self) -> None:
        # Nothing is lost where the pipe is full of wake-ups, or closed with the stream.
        with suppress(BlockingIOError, OSError):
            self._waker.send(b"w")

    def close(self) -> None:
        """Tell the server what is durable, end the session and release the slot."""
        if not self._connection.closed:
            with suppress(SourceUnavailableError):  # the next session acknowledges it again
                self._send_status()
        self._connection.close()
        self._waker.close()
        self._wakened.close()
        for transaction in self._in_progress.values():
            transaction.close()
