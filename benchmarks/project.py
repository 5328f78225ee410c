"""A project of one pipeline in a folder of its own, for the end-to-end benchmarks, either way."""

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

REVERSE_FILE = """\
version: 1
state: {folder}/state
connections:
  lake: {{type: delta, location: {lake}}}
  shop: {{type: postgres, url: "{dsn}"}}
pipelines:
  bench:
    source: lake
    destination: shop
    schedule: continuous
    poll: 100ms
    tables:
      - source: {table}
        key: [id]
"""


def write_project(folder: str, dsn: str, table: str) -> Path:
    """Write headrace.yaml; gives its path."""
    path = Path(folder) / "headrace.yaml"
    path.write_text(FILE.format(folder=folder, dsn=dsn, table=table))
    return path


def write_reverse_project(folder: str, lake: str, dsn: str, table: str) -> Path:
    """Write the headrace.yaml of a pipeline from a Delta table to Postgres; gives its path."""
    path = Path(folder) / "headrace.yaml"
    path.write_text(REVERSE_FILE.format(folder=folder, lake=lake, dsn=dsn, table=table))
    return path
