"""Initial load: a Delta table into Postgres, against the server's COPY FROM of a ready file.

The limit is COPY of a file on the server's own disk, by a superuser, into a table that has its
primary key: no client, no network, nothing to read or to convert but the file. It is measured in
its text and in its binary format; the ratio is to the faster one. Memory is our own process's peak,
which must not follow the number of rows.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

import headrace
from benchmarks import report, reverse
from benchmarks.project import write_reverse_project
from benchmarks.report import Measured
from headrace.testing.postgres import EmbeddedPostgres

SIZES = (5_000_000, 10_000_000)  # two, to show that memory does not grow; speed is of the first
ROUNDS = 3
FORMATS = ("text", "binary")
LARGE = 50_000_000  # rows; what they would take is told from the speed, `--size` measures it


def load(folder: str, lake: str, dsn: str) -> float:
    """Seconds from nothing to every row readable in Postgres."""
    project = headrace.load(write_reverse_project(folder, lake, dsn, reverse.NAME))
    return report.timed(lambda: reverse.catch_up(project))


def ours(server: EmbeddedPostgres, lake: str, size: int) -> Measured:
    with reverse.database(server) as dsn, tempfile.TemporaryDirectory() as folder:
        reverse.settle(dsn)
        measured = report.in_child(load, folder, lake, dsn)
        _require(size, reverse.count(dsn))
    return measured


def copy(server: EmbeddedPostgres, file: Path, form: str, size: int) -> Measured:
    with reverse.database(server) as dsn, psycopg.connect(dsn, autocommit=True) as session:
        session.execute(reverse.CREATE.format(reverse.NAME, "PRIMARY KEY"))
        reverse.settle(dsn)
        statement = f"COPY {reverse.NAME} FROM '{file}' (FORMAT {form})"
        seconds = report.timed(lambda: session.execute(statement))
        _require(size, reverse.count(dsn))
    return Measured(seconds, 0.0)


def _require(expected: int, found: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found} rows arrived, not {expected}")


def write_files(server: EmbeddedPostgres, folder: Path, size: int) -> dict[str, Path]:
    """The same rows as files that the server can read, by format."""
    folder.chmod(0o755)  # the server's user is another
    files = {form: folder / f"rows.{form}" for form in FORMATS}
    with reverse.database(server) as dsn, psycopg.connect(dsn, autocommit=True) as session:
        session.execute(reverse.CREATE.format(reverse.NAME, ""))
        for part in reverse.parts(size):
            reverse.deposit(session, reverse.NAME, part)
        for form, path in files.items():
            statement = f"COPY {reverse.NAME} TO STDOUT (FORMAT {form})"
            with path.open("wb") as file, session.cursor().copy(statement) as data:
                for block in data:
                    file.write(block)
    return files


def measure(server: EmbeddedPostgres, size: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        lake = f"{folder}/lake"
        reverse.write_lake(lake, size)
        files = write_files(server, Path(folder), size)
        results = report.interleaved(
            rounds,
            {
                "headrace": partial(ours, server, lake, size),
                **{form: partial(copy, server, files[form], form, size) for form in FORMATS},
            },
        )
    seconds = {name: report.median(measured) for name, measured in results.items()}
    limit = min(FORMATS, key=lambda form: seconds[form])
    return {
        "rows": size,
        "headrace_rows_per_s": round(size / seconds["headrace"]),
        **{f"copy_{form}_rows_per_s": round(size / seconds[form]) for form in FORMATS},
        "limit": limit,
        "ratio": round(seconds[limit] / seconds["headrace"], 3),
        **{f"{n}_seconds": [round(m.value, 2) for m in ms] for n, ms in results.items()},
        "headrace_peak_mib": report.peak(results["headrace"]),
    }


def main(size: int | None = None) -> None:
    sizes = (size,) if size else SIZES
    with EmbeddedPostgres() as server:
        first, *others = (
            measure(server, rows, ROUNDS if rows == sizes[0] else 1) for rows in sizes
        )
    result = {**first, "larger": [_memory(other) for other in others]}
    if others:
        result["peak_growth"] = round(
            others[-1]["headrace_peak_mib"] / first["headrace_peak_mib"], 2
        )
    result[f"estimated_seconds_for_{LARGE}"] = round(LARGE / first["headrace_rows_per_s"])
    report.write("reverse_load", result, keep=size is None)


def _memory(measured: dict[str, Any]) -> dict[str, Any]:
    return {name: measured[name] for name in ("rows", "headrace_rows_per_s", "headrace_peak_mib")}
