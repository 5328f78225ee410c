"""DuckDB as a reader of Delta tables, without the network.

A wheel, which nothing but tests and benchmarks need, has the extension that DuckDB would fetch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import duckdb

from headrace.errors import HeadraceError


@cache
def delta_extension() -> Path:
    """The extension's file. Raises HeadraceError: the wheel is not installed."""
    spec = find_spec("duckdb_extension_delta")
    if spec is None or spec.origin is None:
        raise HeadraceError(
            "DuckDB's extension for Delta tables is not installed",
            hint="pip install duckdb-extension-delta",
        )
    (found,) = Path(spec.origin).parent.rglob("delta.duckdb_extension")
    return found


@contextmanager
def duckdb_with_delta() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that has `delta_scan`, and times in UTC."""
    with duckdb.connect(config={"allow_unsigned_extensions": "true"}) as connection:
        connection.execute(f"load '{delta_extension()}'; set timezone = 'UTC'")
        yield connection
