"""Capture: a backlog of single-row inserts, staged durably, against pg_recvlogical into nothing."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from benchmarks import report
from benchmarks.report import Measured
from headrace.config import PostgresConnection
from headrace.connectors.postgres.source import PostgresSource
from headrace.engine.capture import Capture
from headrace.log import LogReader, LogWriter, open_storage
from headrace.model import Lsn, TableId
from headrace.testing.postgres import EmbeddedPostgres

ROWS = 500_000
ROWS_PER_TRANSACTION = 1000
ROUNDS = 5
TABLE = TableId("public", "orders")

SETUP = """
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer int, status text, amount numeric(12,2),
    placed timestamptz, note text
);
CREATE PUBLICATION bench FOR TABLE orders;
SELECT pg_create_logical_replication_slot('backlog', 'pgoutput')
"""
# About 100 bytes a row.
FILL = """
INSERT INTO orders
SELECT g, g %% 9973, (ARRAY['new','paid','sent'])[1 + g %% 3], g %% 100000 / 100.0,
       '2026-01-01'::timestamptz + g * interval '1 second', md5(g::text)
  FROM generate_series(%s::bigint, %s::bigint) g
"""


def stage_backlog(dsn: str, slot: str, end: int) -> float:
    """Seconds from connecting to the last row durable in the change log."""
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(folder)
        source = PostgresSource(
            PostgresConnection(type="postgres", url=SecretStr(dsn)), slot, "bench", [TABLE], {}
        )
        stop = threading.Event()
        with LogWriter.open(storage, "bench") as log:
            capture = Capture(source, log)
            start = time.perf_counter()
            capture.start()
            capture.reach(Lsn(end))
            thread = threading.Thread(target=capture.run, args=(stop,))
            thread.start()
            reader = LogReader.open(storage, "bench", feed=log.feed)
            while (log.position or 0) < end:
                reader.wait(log.head.commit if log.head else 0, 1.0)
            seconds = time.perf_counter() - start
            stop.set()
            capture.wake()
            thread.join()
            staged = sum(file.rows for m in reader.manifests(0) for file in m.files)
            capture.close()
    if staged != ROWS:
        raise RuntimeError(f"{staged} rows staged, not {ROWS}")
    return seconds


def pg_recvlogical(server: EmbeddedPostgres, dsn: str, slot: str, end: int) -> Measured:
    parts = conninfo_to_dict(dsn)
    command = [
        server.bin_dir / "pg_recvlogical", "--start", "--slot", slot, "--file", "/dev/null",
        "--dbname", dsn, "--endpos", str(Lsn(end)), "--no-loop",
        "-o", "proto_version=1", "-o", "publication_names=bench",
    ]  # fmt: skip
    environment = {"PGPASSWORD": str(parts.get("password", ""))}
    return Measured(report.timed(lambda: subprocess.run(command, check=True, env=environment)), 0.0)


def main() -> None:
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn(), autocommit=True) as session:
        for statement in SETUP.split(";\n"):
            session.execute(statement)
        for first in range(1, ROWS + 1, ROWS_PER_TRANSACTION):
            session.execute(FILL, (first, first + ROWS_PER_TRANSACTION - 1))
        row = session.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        end = Lsn.parse(row[0] if row else "")
        session.execute("SELECT pg_logical_emit_message(true, 'bench', 'end')")
        result = {}
        for way, dsn in (("tcp", server.dsn()), ("unix", server.dsn(via_socket=True))):
            result[way] = _contest(server, session, dsn, int(end))
    report.write("capture", {"rows": ROWS, "rows_per_transaction": ROWS_PER_TRANSACTION, **result})


def _contest(
    server: EmbeddedPostgres, session: psycopg.Connection, dsn: str, end: int
) -> dict[str, object]:
    slots = iter(f"run_{n}" for n in range(1000))

    def copied() -> str:
        slot = next(slots)
        session.execute("SELECT pg_copy_logical_replication_slot('backlog', %s)", (slot,))
        return slot

    def dropped(slot: str, measured: Measured) -> Measured:
        session.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        return measured

    def ours() -> Measured:
        slot = copied()
        return dropped(slot, report.in_child(stage_backlog, dsn, slot, end))

    def peer() -> Measured:
        slot = copied()
        return dropped(slot, pg_recvlogical(server, dsn, slot, end))

    results = report.interleaved(ROUNDS, {"headrace": ours, "pg_recvlogical": peer})
    mine, theirs = report.median(results["headrace"]), report.median(results["pg_recvlogical"])
    return {
        "headrace_rows_per_s": round(ROWS / mine),
        "pg_recvlogical_rows_per_s": round(ROWS / theirs),
        "ratio": round(theirs / mine, 3),
        "headrace_seconds": [round(m.value, 3) for m in results["headrace"]],
        "pg_recvlogical_seconds": [round(m.value, 3) for m in results["pg_recvlogical"]],
        "headrace_peak_mib": report.peak(results["headrace"]),
    }
