"""Snapshot: tables of four shapes into Delta tables, each against psql's COPY to /dev/null.

Tables that psql reads in a second show what a run costs before and after the copy: the preflight,
slots, plans, and the end. The large ones of two shapes show what the rows cost.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from deltalake import DeltaTable
from psycopg.conninfo import conninfo_to_dict

import headrace
from benchmarks import report
from benchmarks.project import write_project
from benchmarks.report import Measured
from headrace.testing.postgres import EmbeddedPostgres

ROUNDS: Final = 5
ROUNDS_OF_LARGE: Final = 3

_EIGHT: Final = """
       g::bigint AS id, (g % 1000)::int AS a, md5(g::text) AS s,
       (g % 100000 / 100.0)::numeric(12,2) AS amt,
       '2026-01-01'::timestamptz + g * interval '1 second' AS ts,
       '2026-01-01'::timestamp + g * interval '1 second' AS ts2,
       (g / 7.0)::float8 AS f, g % 2 = 0 AS h"""
_WIDE: Final = "g::bigint AS id, " + ", ".join(
    column
    for n in range(7)
    for column in (
        f"(g * {n + 3} % 100000)::int AS i{n}",
        f"(g * {n + 5})::bigint AS l{n}",
        f"(g % {n + 90000} / 100.0)::numeric(12,2) AS n{n}",
        f"'2026-01-01'::timestamptz + (g + {n}) * interval '1 second' AS t{n}",
        f"(g / {n + 7}.0)::float8 AS f{n}",
        f"(g + {n}) % 2 = 0 AS b{n}",
        f"left(md5((g + {n})::text), 12) AS s{n}",
    )
)
_TEXTS: Final = """
       g::bigint AS id, md5(g::text) AS short, repeat(md5(g::text), 6) AS long,
       repeat('the headrace carries water to the wheel ' || g, 8) AS prose,
       ('{"id": ' || g || ', "name": "' || md5((g + 1)::text) || '", "tags": [1, 2]}')::json AS j,
       'name-' || g AS name"""


@dataclass(frozen=True)
class Shape:
    """Tables of one kind: how many, of how many rows, and what a row is, by its number g."""

    tables: int
    rows: int
    row: str
    rounds: int = ROUNDS

    @property
    def names(self) -> list[str]:
        return [f"snap_{number}" for number in range(self.tables)]


SHAPES: Final = {
    "eight_columns": Shape(1, 2_000_000, _EIGHT),
    "fifty_columns": Shape(1, 300_000, _WIDE),
    "text_heavy": Shape(1, 400_000, _TEXTS),
    "hundred_tables": Shape(100, 20_000, _EIGHT),
    "eight_columns_large": Shape(1, 10_000_000, _EIGHT, ROUNDS_OF_LARGE),
    "text_heavy_large": Shape(1, 2_000_000, _TEXTS, ROUNDS_OF_LARGE),
}


def fill(dsn: str, shape: Shape) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        for name in shape.names:
            session.execute(
                f"CREATE TABLE {name} AS SELECT {shape.row} FROM generate_series(1, {shape.rows}) g"
            )
            session.execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
            session.execute(f"VACUUM ANALYZE {name}")
        session.execute("CHECKPOINT")  # not while one of them is timed


def load(dsn: str, shape: Shape) -> float:
    """Seconds from nothing to every row readable in Delta, slot and publication included."""
    with tempfile.TemporaryDirectory() as folder:
        project = headrace.load(write_project(folder, dsn, '"public.snap_*"'))
        seconds = report.timed(lambda: project.run(once=True))
        lake = Path(folder) / "lake" / "public"
        found = [DeltaTable(lake / name).count() for name in shape.names]
        project.destroy()
    if found != [shape.rows] * shape.tables:
        raise RuntimeError(f"{found} rows arrived, not {shape.rows} each")
    return seconds


def copy(server: EmbeddedPostgres, dsn: str, names: Sequence[str]) -> Measured:
    commands = [f"-c\\copy (SELECT * FROM {name}) TO /dev/null" for name in names]
    parts = conninfo_to_dict(dsn)
    known = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
    environment = {variable: str(parts[name]) for name, variable in known.items()}
    environment["PGDATABASE"] = str(parts["dbname"])
    command = [str(server.bin_dir / "psql"), "-q", *commands]
    return Measured(report.timed(lambda: subprocess.run(command, check=True, env=environment)), 0.0)


def measure(server: EmbeddedPostgres, name: str, shape: Shape) -> dict[str, Any]:
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute(f"CREATE DATABASE {name}")
        dsn = server.dsn(database=name)
        fill(dsn, shape)
        results = _compared(server, dsn, shape)
        session.execute(f"DROP DATABASE {name}")
    ours, theirs = report.median(results["headrace"]), report.median(results["psql"])
    rows = shape.tables * shape.rows
    return {
        "tables": shape.tables,
        "rows": rows,
        "headrace_rows_per_s": round(rows / ours),
        "psql_copy_rows_per_s": round(rows / theirs),
        "ratio": round(theirs / ours, 3),
        "headrace_seconds": [round(m.value, 3) for m in results["headrace"]],
        "psql_copy_seconds": [round(m.value, 3) for m in results["psql"]],
        "headrace_peak_mib": report.peak(results["headrace"]),
    }


def _compared(server: EmbeddedPostgres, dsn: str, shape: Shape) -> dict[str, list[Measured]]:
    contestants = {
        "headrace": lambda: report.in_child(load, dsn, shape),
        "psql": lambda: copy(server, dsn, shape.names),
    }
    return report.interleaved(shape.rounds, contestants)


def main() -> None:
    with EmbeddedPostgres() as server:
        shapes = {name: measure(server, name, shape) for name, shape in SHAPES.items()}
    report.write("snapshot", {**shapes["eight_columns"], "shapes": shapes})
