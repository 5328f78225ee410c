"""Snapshot: 2 million rows of 8 columns into a Delta table, against psql's COPY to /dev/null."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import psycopg
from deltalake import DeltaTable
from psycopg.conninfo import conninfo_to_dict

import headrace
from benchmarks import report
from benchmarks.project import write_project
from benchmarks.report import Measured
from headrace.testing.postgres import EmbeddedPostgres

ROWS = 2_000_000
ROUNDS = 5

SETUP = """
CREATE TABLE snap AS
SELECT g::bigint AS id, (g % 1000)::int AS a, md5(g::text) AS s,
       (g % 100000 / 100.0)::numeric(12,2) AS amt,
       '2026-01-01'::timestamptz + g * interval '1 second' AS ts,
       '2026-01-01'::timestamp + g * interval '1 second' AS ts2,
       (g / 7.0)::float8 AS f, g % 2 = 0 AS h
  FROM generate_series(1, :rows) g;
ALTER TABLE snap ADD PRIMARY KEY (id);
VACUUM ANALYZE snap;
"""


def load(dsn: str) -> float:
    """Seconds from nothing to every row readable in Delta, slot and publication included."""
    with tempfile.TemporaryDirectory() as folder:
        project = headrace.load(write_project(folder, dsn, "public.snap"))
        seconds = report.timed(lambda: project.run(once=True))
        found = DeltaTable(Path(folder) / "lake" / "public" / "snap").count()
        project.destroy()
    if found != ROWS:
        raise RuntimeError(f"{found} rows arrived, not {ROWS}")
    return seconds


def copy(server: EmbeddedPostgres) -> Measured:
    command = [server.bin_dir / "psql", "-qc", r"\copy (SELECT * FROM snap) TO /dev/null"]
    parts = conninfo_to_dict(server.dsn())
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
    environment = {variable: str(parts[name]) for name, variable in names.items()}
    environment["PGDATABASE"] = str(parts["dbname"])
    return Measured(report.timed(lambda: subprocess.run(command, check=True, env=environment)), 0.0)


def main() -> None:
    with EmbeddedPostgres() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as session:
            for statement in SETUP.replace(":rows", str(ROWS)).split(";\n"):
                session.execute(statement)
        results = report.interleaved(
            ROUNDS,
            {"headrace": lambda: report.in_child(load, server.dsn()), "psql": lambda: copy(server)},
        )
    ours, theirs = report.median(results["headrace"]), report.median(results["psql"])
    report.write(
        "snapshot",
        {
            "rows": ROWS,
            "headrace_rows_per_s": round(ROWS / ours),
            "psql_copy_rows_per_s": round(ROWS / theirs),
            "ratio": round(theirs / ours, 3),
            "headrace_seconds": [round(m.value, 3) for m in results["headrace"]],
            "psql_copy_seconds": [round(m.value, 3) for m in results["psql"]],
            "headrace_peak_mib": report.peak(results["headrace"]),
        },
    )
