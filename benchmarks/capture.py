"""Capture: backlogs of several shapes, staged durably, against pg_recvlogical into nothing.

Debezium, which turns changes into JSON, reads the plain inserts in the same run.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from benchmarks import debezium, report
from benchmarks.capture_shapes import BACKLOG, PUBLICATION, SHAPES, Shape
from benchmarks.report import Measured
from headrace.config import PostgresConnection
from headrace.connectors.postgres.source import PostgresSource
from headrace.engine.capture import Capture
from headrace.log import LogReader, LogWriter, open_storage
from headrace.model import Lsn, TableId
from headrace.testing.postgres import EmbeddedPostgres

DEBEZIUM_ROUNDS = 2


def stage_backlog(dsn: str, slot: str, tables: list[TableId], end: int, rows: int) -> float:
    """Seconds from connecting to the last row durable in the change log."""
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(folder)
        source = PostgresSource(
            PostgresConnection(type="postgres", url=SecretStr(dsn)), slot, PUBLICATION, tables, {}
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
            while (log.position or 0) < end and thread.is_alive():
                reader.wait(log.head.commit if log.head else 0, 1.0)
            seconds = time.perf_counter() - start
            stop.set()
            capture.wake()
            thread.join()
            staged = sum(file.rows for m in reader.manifests(0) for file in m.files)
            capture.close()
    if staged != rows:
        raise RuntimeError(f"{staged} rows staged, not {rows}")
    return seconds


@dataclass(frozen=True)
class Contest:
    """A server with a backlog, which each run reads from a slot of its own."""

    server: EmbeddedPostgres
    session: psycopg.Connection
    shape: Shape
    tables: list[TableId]
    end: Lsn

    @contextmanager
    def slot(self) -> Iterator[str]:
        """A copy of the backlog's slot, for the length of a run."""
        name = f"run_{time.monotonic_ns()}"
        self.session.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (BACKLOG, name))
        yield name
        self.session.execute("SELECT pg_drop_replication_slot(%s)", (name,))

    def headrace(self, dsn: str) -> Measured:
        with self.slot() as slot:
            return report.in_child(
                stage_backlog, dsn, slot, self.tables, int(self.end), self.shape.rows
            )

    def pg_recvlogical(self, dsn: str) -> Measured:
        environment = {"PGPASSWORD": str(conninfo_to_dict(dsn).get("password", ""))}
        with self.slot() as slot:
            command = [
                self.server.bin_dir / "pg_recvlogical", "--start", "--slot", slot,
                "--file", "/dev/null", "--dbname", dsn, "--endpos", str(self.end), "--no-loop",
                "-o", "proto_version=1", "-o", f"publication_names={PUBLICATION}",
            ]  # fmt: skip
            read = lambda: subprocess.run(command, check=True, env=environment)  # noqa: E731
            return Measured(report.timed(read), 0.0)

    def debezium(self) -> Measured:
        with self.slot() as slot:
            arguments = (self.server.dsn(), slot, PUBLICATION, self.shape.rows)
            return report.in_child(debezium.read_backlog, *arguments)

    def way(self, dsn: str) -> dict[str, Any]:
        """Both by one way of connecting, in turns."""
        contestants: dict[str, Callable[[], Measured]] = {
            "headrace": lambda: self.headrace(dsn),
            "pg_recvlogical": lambda: self.pg_recvlogical(dsn),
        }
        results = report.interleaved(self.shape.rounds, contestants)
        mine, theirs = (report.median(results[name]) for name in contestants)
        return {
            "headrace_rows_per_s": round(self.shape.rows / mine),
            "pg_recvlogical_rows_per_s": round(self.shape.rows / theirs),
            "ratio": round(theirs / mine, 3),
            **{f"{n}_seconds": [round(m.value, 3) for m in results[n]] for n in contestants},
            "headrace_peak_mib": report.peak(results["headrace"]),
        }


@contextmanager
def backlog(shape: Shape) -> Iterator[Contest]:
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn(), autocommit=True) as session:
        end = shape.fill(session)
        found = session.execute("SELECT schemaname, tablename FROM pg_publication_tables")
        yield Contest(server, session, shape, [TableId(*row) for row in found], end)


def against_debezium(contest: Contest, headrace_rows_per_s: float) -> dict[str, Any]:
    """What Debezium makes of it, by TCP, which is what JDBC speaks."""
    results = [contest.debezium() for _ in range(DEBEZIUM_ROUNDS)]
    rows_per_s = contest.shape.rows / report.median(results)
    return {
        "rows_per_s": round(rows_per_s),
        "ratio": round(headrace_rows_per_s / rows_per_s, 2),
        "seconds": [round(result.value, 3) for result in results],
        "peak_mib": report.peak(results),
    }


def main(rows: int | None = None) -> None:
    """With `rows`, that many in each shape."""
    shapes: dict[str, Any] = {}
    compared: dict[str, Any] = {}
    for name, given in SHAPES.items():
        shape = given.of(rows or given.rows)
        with backlog(shape) as contest:
            tcp, unix = contest.server.dsn(), contest.server.dsn(via_socket=True)
            shapes[name] = {
                "rows": shape.rows,
                "rows_per_transaction": shape.per_transaction,
                "tcp": contest.way(tcp),
                "unix": contest.way(unix),
            }
            if name == "inserts":
                compared = against_debezium(contest, shapes[name]["tcp"]["headrace_rows_per_s"])
    report.write("capture", {"shapes": shapes, "debezium": compared}, keep=rows is None)
