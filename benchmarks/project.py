"""A project of one pipeline in a folder of its own, for the end-to-end benchmarks."""

from __future__ import annotations

from pathlib import Path

FILE = """\
version: 1
state: {folder}/state
connections:
  source: {{type: postgres, url: "{dsn}"}}
  lake: {{type: delta, location: {folder}/lake}}
pipelines:
  bench:
    source: source
    destination: lake
    tables: [{table}]
"""


def write_project(folder: str, dsn: str, table: str) -> Path:
    """Write headrace.yaml; gives its path."""
    path = Path(folder) / "headrace.yaml"
    path.write_text(FILE.format(folder=folder, dsn=dsn, table=table))
    return path
