"""One transaction of 5 million rows: memory of the capture, and seconds from COMMIT to staged.

Streamed while it is in progress (protocol 4) against sent after its commit (protocol 1, what a
server 13 does). Both captures run before the transaction begins, each has one of its own.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg
from pydantic import SecretStr

from benchmarks import report
from headrace.config import PostgresConnection
from headrace.connectors.postgres import source as postgres_source
from headrace.connectors.postgres.source import PostgresSource
from headrace.engine.capture import Capture
from headrace.log import LogReader, LogWriter, open_storage
from headrace.model import Lsn, TableId
from headrace.testing.postgres import EmbeddedPostgres

ROWS = 5_000_000
TABLE = TableId("public", "orders")

SETUP = """
CREATE TABLE orders (
    id bigint, customer int, status text, amount numeric(12,2), placed timestamptz, note text
);
CREATE PUBLICATION bench FOR TABLE orders
"""
# About 100 bytes a row.
FILL = """
INSERT INTO orders
SELECT g, g %% 9973, (ARRAY['new','paid','sent'])[1 + g %% 3], g %% 100000 / 100.0,
       '2026-01-01'::timestamptz + g * interval '1 second', md5(g::text)
  FROM generate_series(1, %s) g
"""
END = "SELECT pg_logical_emit_message(true, 'bench', '')::text"


def stage(told: Connection, dsn: str, slot: str, *, streaming: bool) -> None:
    """Capture until told to stop; tells its memory when idle, and when it had which rows."""
    if not streaming:
        postgres_source.STREAMING_SINCE = 1000
        postgres_source.NEWEST_PROTOCOL = 1
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(folder)
        settings = PostgresConnection(type="postgres", url=SecretStr(dsn))
        source = PostgresSource(settings, slot, "bench", [TABLE], {})
        stop = threading.Event()
        with LogWriter.open(storage, "bench") as log:
            capture = Capture(source, log)
            capture.start()
            thread = threading.Thread(target=capture.run, args=(stop,))
            thread.start()
            reader = LogReader.open(storage, "bench", feed=log.feed)
            while True:  # each LSN that is asked for, until there is none
                told.send(("ready", _status("VmRSS")))
                target = told.recv()
                if target is None:
                    break
                capture.reach(Lsn(target))
                while (log.position or 0) < target:
                    reader.wait(log.head.commit if log.head else 0, 0.02)
                rows = sum(file.rows for m in reader.manifests(0) for file in m.files)
                told.send((time.time(), rows))
            stop.set()
            capture.wake()
            thread.join()
            capture.close()
    told.send(_status("VmHWM"))


def _status(name: str) -> float:
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


def measure(
    session: psycopg.Connection[Any], dsn: str, size: int, *, streaming: bool
) -> dict[str, Any]:
    slot = "streamed" if streaming else "whole"
    session.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = {"streaming": streaming}
    child = context.Process(target=stage, args=(theirs, dsn, slot), kwargs=arguments)
    child.start()
    ours.recv()
    session.execute(FILL, (1,))  # the table is known, as it is to a capture that has run before
    _staged(session, ours)
    _, idle = ours.recv()
    with session.transaction():
        filling = report.timed(lambda: session.execute(FILL, (size,)))
        reading = report.timed(lambda: _await_read(dsn))
        started = time.time()
    committing = time.time() - started
    at, rows = _staged(session, ours)
    ours.recv()
    ours.send(None)
    peak = ours.recv()
    child.join()
    session.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    if rows != size + 1:
        raise RuntimeError(f"{rows} rows staged, not {size + 1}")
    return {
        "insert_seconds": round(filling, 1),
        "until_server_had_read_it_seconds": round(reading, 1),
        "commit_seconds": round(committing, 2),
        "commit_to_staged_seconds": round(at - started, 2),
        "idle_mib": round(idle),
        "peak_above_idle_mib": round(peak - idle),
    }


def _await_read(dsn: str) -> None:
    """Until the server's decoder has come to the end of what is written so far.

    What it has not read at the COMMIT comes later either way, and hides what is to be compared.
    """
    behind = (
        "SELECT pg_sleep(0.05) FROM pg_stat_replication"
        " WHERE sent_lsn < (SELECT pg_current_wal_insert_lsn() - 8192)"
    )
    with psycopg.connect(dsn, autocommit=True) as other:
        while other.execute(behind).fetchall():
            pass


def _staged(session: psycopg.Connection[Any], child: Connection) -> tuple[float, int]:
    """When the child had staged all that is committed now, and how many rows it has."""
    row = session.execute(END).fetchone()
    child.send(int(Lsn.parse(row[0] if row else "")))
    at, rows = child.recv()
    return at, rows


def main(size: int = ROWS) -> None:
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn(), autocommit=True) as session:
        for statement in SETUP.split(";\n"):
            session.execute(statement)
        ways = {
            name: measure(session, server.dsn(), size, streaming=name == "streamed")
            for name in ("streamed", "whole")
        }
    ratio = ways["whole"]["commit_to_staged_seconds"] / ways["streamed"]["commit_to_staged_seconds"]
    result = {"rows": size, **ways, "times_sooner": round(ratio, 1)}
    report.write("large_transaction", result, keep=size == ROWS)
