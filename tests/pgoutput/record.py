"""Records what a real server sends, for `fixtures/`: `python tests/pgoutput/record.py`.

Each recording is a gzip file of CopyData payloads, each after its length (uint32, network order),
and beside it, in `tables.json`, what the tables held at the end, by the server's own word. Tables
are created before the slot and filled after, so that a replay from nothing must give those rows.
"""

from __future__ import annotations

import gzip
import json
import select
import struct
from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq, sql

from headrace.testing.postgres import EmbeddedPostgres

FIXTURES = Path(__file__).parent / "fixtures"
TABLES = ("plain", "wide", "whole", "other")

# What every recording starts from. `wide` has a column that is TOASTed as it is.
SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE plain (id int PRIMARY KEY, name text, amount numeric, at timestamptz, m mood);
CREATE TABLE wide (a int, big text, n int, b int, PRIMARY KEY (b, a));
ALTER TABLE wide ALTER big SET STORAGE EXTERNAL;
CREATE TABLE whole (k text, v bytea);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE other (id bigint PRIMARY KEY);
CREATE PUBLICATION p FOR TABLE plain, wide, whole, other;
"""

# Every kind of change: a statement a line, an empty line between transactions.
CHANGES = """
INSERT INTO plain VALUES (1, 'ä€😀', 12.50, '2024-02-29 12:00:00+00', 'ok')
INSERT INTO plain (id) VALUES (2)

INSERT INTO wide VALUES (1, repeat('x', 3000), 1, 10), (2, repeat('y', 3000), 2, 20)

UPDATE wide SET n = n + 100

UPDATE wide SET a = 7 WHERE a = 1

UPDATE plain SET id = 3 WHERE id = 2
DELETE FROM plain WHERE id = 1
INSERT INTO other VALUES (1)

INSERT INTO whole VALUES ('a', '\\x00ff'), ('a', '\\x00ff'), (NULL, NULL)

UPDATE whole SET v = NULL WHERE k = 'a'
DELETE FROM whole WHERE k IS NULL

INSERT INTO other VALUES (2)
TRUNCATE other, whole
INSERT INTO other VALUES (3)

ALTER TABLE plain ADD COLUMN note text DEFAULT 'new'

INSERT INTO plain (id, note) VALUES (4, '')
ALTER TABLE plain DROP COLUMN amount
INSERT INTO plain VALUES (5, 'b', now(), 'sad', 'c')

SELECT pg_logical_emit_message(true, 'app', 'inside')

SELECT pg_logical_emit_message(false, 'beat', '\\x00ff'::bytea)

INSERT INTO other VALUES (50)
SAVEPOINT s
INSERT INTO other VALUES (51)
ROLLBACK TO s
"""

# 150 rows come to more than two times logical_decoding_work_mem.
BIG = "INSERT INTO plain SELECT g, repeat('z', 1000) FROM generate_series({}, {}) g"


def record_simple(server: EmbeddedPostgres, options: dict[str, str]) -> dict[str, Any]:
    """All kinds of changes in small transactions."""
    with _recording(server, "simple", options) as recording:
        for transaction in CHANGES.strip().split("\n\n"):
            recording.run("BEGIN", *transaction.splitlines(), "COMMIT")
        return recording.finish()


def record_binary(server: EmbeddedPostgres, options: dict[str, str]) -> dict[str, Any]:
    with _recording(server, "binary", options) as recording:
        recording.run("INSERT INTO whole VALUES ('a', '\\x00ff')")
        return recording.finish()


def record_streamed(server: EmbeddedPostgres, options: dict[str, str]) -> dict[str, Any]:
    """Transactions that outgrow logical_decoding_work_mem: commit, partial and whole abort."""
    name = f"streamed_v{options['proto_version']}"
    with _recording(server, name, options) as recording:
        recording.run(BIG.format(101, 250))
        recording.until(b"c", 1)
        segments = recording.count(b"E")
        recording.run("BEGIN")
        recording.run(BIG.format(301, 450))
        recording.run("SAVEPOINT s")
        recording.run("SELECT pg_logical_emit_message(true, 'app', 'streamed')")
        recording.run(BIG.format(451, 600))
        # 18 does not stream what is aborted by the time it gets there
        recording.until(b"E", segments + 4)
        recording.run("ROLLBACK TO s", "TRUNCATE other", "COMMIT")
        recording.until(b"c", 2)
        segments = recording.count(b"E")
        recording.run("BEGIN")
        recording.run(BIG.format(701, 850))
        recording.until(b"E", segments + 1)
        recording.run("ROLLBACK")
        recording.run("DELETE FROM plain WHERE id > 103")
        return recording.finish()


def record_two_phase(server: EmbeddedPostgres, options: dict[str, str]) -> dict[str, Any]:
    """Prepared transactions, small and streamed, committed and rolled back."""
    with _recording(server, "two_phase", options, two_phase=True) as recording:
        for gid, change in {
            "one": "INSERT INTO other VALUES (1)",
            "big": BIG.format(1, 150),
        }.items():
            recording.run("BEGIN", change, f"PREPARE TRANSACTION '{gid}'")
            recording.run(f"COMMIT PREPARED '{gid}'")
        recording.run("BEGIN", "INSERT INTO other VALUES (2)", "PREPARE TRANSACTION 'no'")
        recording.until(b"P", 2)
        recording.run("ROLLBACK PREPARED 'no'")
        recording.run("DELETE FROM plain WHERE id > 3")
        return recording.finish()


class _recording:  # noqa: N801  # read as a verb: with _recording(...)
    """A database of its own, and a session that streams it into `fixtures/<name>.frames.gz`."""

    def __init__(
        self,
        server: EmbeddedPostgres,
        name: str,
        options: dict[str, str],
        *,
        two_phase: bool = False,
    ) -> None:
        self.name = name
        self.frames: list[bytes] = []
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self.session = psycopg.connect(server.dsn(name), autocommit=True)
        self.session.execute("SET timezone = 'UTC'")
        self.session.execute(SCHEMA)
        self.stream = psycopg.connect(server.dsn(name, replication="database"), autocommit=True)
        how = "(TWO_PHASE true, SNAPSHOT 'nothing')" if two_phase else "NOEXPORT_SNAPSHOT"
        self._command(f"CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput {how}")
        listed = ", ".join(f"{key} '{value}'" for key, value in options.items())
        self._command(
            f"START_REPLICATION SLOT {name} LOGICAL 0/0 (publication_names 'p', {listed})"
        )

    def __enter__(self) -> _recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.session.close()

    def _command(self, text: str) -> None:
        result = self.stream.pgconn.exec_(text.encode())
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COPY_BOTH):
            raise SystemExit(result.error_message.decode())

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.session.execute(statement.encode())

    def count(self, letter: bytes) -> int:
        return sum(frame[:1] == b"w" and frame[25:26] == letter for frame in self.frames)

    def until(self, letter: bytes, count: int) -> None:
        """Receive until `count` messages of this kind have come."""
        connection = self.stream.pgconn
        while self.count(letter) < count:
            self.frames.extend(_received(connection))

    def finish(self) -> dict[str, Any]:
        """Receive up to a last marker, write the fixture; returns what the tables hold."""
        self.session.execute("SELECT pg_logical_emit_message(false, 'end', '', true)")
        while not any(frame.endswith(b"end\0" + bytes(4)) for frame in self.frames):
            self.frames.extend(_received(self.stream.pgconn))
        packed = b"".join(struct.pack(">I", len(frame)) + frame for frame in self.frames)
        path = FIXTURES / f"{self.name}.frames.gz"
        path.write_bytes(gzip.compress(packed, mtime=0))
        return {table: self._rows(table) for table in TABLES}

    def _rows(self, table: str) -> list[list[str | None]]:
        columns = self.session.execute(
            "SELECT attname FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            (table,),
        )
        texts = sql.SQL(", ").join(
            sql.SQL("{}::text").format(sql.Identifier(name)) for (name,) in columns
        )
        query = sql.SQL("SELECT {} FROM {}").format(texts, sql.Identifier(table))
        return sorted((list(row) for row in self.session.execute(query)), key=repr)


def _received(connection: pq.abc.PGconn) -> list[bytes]:
    """The frames that have arrived, waiting for the first one."""
    frames: list[bytes] = []
    while True:
        size, data = connection.get_copy_data(1)
        if size > 0:
            frames.append(bytes(data))
        elif size < 0:
            raise SystemExit(f"the stream ended: {connection.get_result()}")
        elif frames:
            return frames
        elif not select.select([connection.socket], [], [], 30)[0]:
            raise SystemExit("the server went silent")
        else:
            connection.consume_input()


def main() -> None:
    FIXTURES.mkdir(exist_ok=True)
    settings = {
        "logical_decoding_work_mem": "64kB",
        "max_prepared_transactions": "5",
        "autovacuum": "off",
    }
    v1 = {"proto_version": "1", "messages": "true"}
    v2 = {"proto_version": "2", "messages": "true", "streaming": "on"}
    v4 = {"proto_version": "4", "messages": "true", "streaming": "parallel"}
    with EmbeddedPostgres(settings) as server:
        tables = {
            "simple": record_simple(server, v1),
            "binary": record_binary(server, {**v1, "binary": "true"}),
            "streamed_v2": record_streamed(server, v2),
            "streamed_v4": record_streamed(server, v4),
            "two_phase": record_two_phase(server, {**v4, "two_phase": "true"}),
        }
    (FIXTURES / "tables.json").write_text(json.dumps(tables, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
