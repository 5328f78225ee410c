"""Snapshots: which tables and chunks, as of one LSN, from an exported snapshot."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeAlias, cast

import psycopg
from psycopg import sql

from headrace.connectors.postgres.catalog import TypeCatalog
from headrace.connectors.postgres.exporting import Connector
from headrace.connectors.postgres.identifiers import qualified, quoted
from headrace.connectors.postgres.ranges import (
    in_range,
    key_ranges,
    range_column,
)
from headrace.connectors.postgres.schemas import SchemaRegistry
from headrace.connectors.postgres.snapshot_reading import (
    Plan,
    PostgresSnapshot,
    Reader,
    close_reader,
    connect_reader,
    import_snapshot,
)
from headrace.errors import HeadraceError, SourceError, TableRewrittenError
from headrace.model import KeyRange, Lsn, SnapshotChunk, TableId, TableSchema

Export: TypeAlias = Callable[[psycopg.Connection[Any]], AbstractContextManager[tuple[Lsn, str]]]

# A table is cut into about this many chunks, so that all connections end at about the same time;
# each from 32 MiB, below which fixed costs show, to 1 GiB, so that a file stays easy to handle.
CHUNKS = 8
MIN_CHUNK_PAGES = (32 << 20) // 8192
MAX_CHUNK_PAGES = (1 << 30) // 8192

# Range scans on ctid came with 14; before, a table is one chunk.
CTID_RANGES_SINCE = 140000

RELATION_SIZE = """
SELECT c.oid::bigint, c.relkind,
       (sum(pg_relation_size(part.oid)) / current_setting('block_size')::int)::bigint AS pages,
       sum(pg_table_size(part.oid))::bigint AS size,
       sum(greatest(part.reltuples, 0))::bigint AS rows,
       string_agg(part.oid::text, ',' ORDER BY part.oid) AS parts
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN LATERAL (SELECT c.oid UNION SELECT relid FROM pg_catalog.pg_partition_tree(c.oid)) t ON true
  JOIN pg_class part ON part.oid = t.oid
 WHERE n.nspname = %s AND c.relname = %s
 GROUP BY c.oid, c.relkind
"""

# As pg_publication_tables has them, which lists all tables anew each time that it is asked, and
# waits for those that somebody has locked. A schema that is published as a whole has no filters.
ROW_FILTERS = """
SELECT n.nspname::text, c.relname::text, pg_catalog.pg_get_expr(r.prqual, r.prrelid)
  FROM pg_catalog.pg_publication p
  JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prqual IS NOT NULL
  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE p.pubname = %s
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                    WHERE s.pnpubid = p.oid AND s.pnnspid = n.oid)
"""
ROW_FILTERS_SINCE = 150000


@contextmanager
def open_snapshot(
    conninfo: str,
    connect: Connector,
    export: Export,
    registry: SchemaRegistry,
    publication: str,
    tables: Mapping[TableId, Sequence[KeyRange] | None],
    connections: int,
    ranges_above: int,
) -> Iterator[PostgresSnapshot]:
    """Have a snapshot exported, and import it into `connections` readers; see `exported`."""
    with ThreadPoolExecutor(connections, "headrace-connect") as pool, ExitStack() as stack:
        opening = [pool.submit(connect_reader, conninfo) for _ in range(connections)]
        for reader in opening:
            stack.callback(close_reader, reader)
        readers: queue.SimpleQueue[Reader] = queue.SimpleQueue()
        with connect() as session, export(session) as (lsn, name):
            taken_at = _clock(session)
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            session.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(name))
            types, filters = TypeCatalog.read(session), _row_filters(session, publication)
            planner = _Planner(session, types, registry, filters, ranges_above)
            plans = {table: planner.attempt(table, ranges) for table, ranges in tables.items()}
            for reader in opening:
                readers.put(import_snapshot(reader.result(), name))
        yield PostgresSnapshot(lsn, taken_at, plans, readers)


def _clock(session: psycopg.Connection[Any]) -> datetime:
    found = session.execute("SELECT clock_timestamp()").fetchone()
    assert found is not None
    return cast("datetime", found[0])


@dataclass(frozen=True)
class _Planner:
    """Plans how tables are copied, in a session that sees the snapshot."""

    session: psycopg.Connection[Any]
    types: TypeCatalog
    registry: SchemaRegistry
    filters: Mapping[TableId, str]
    ranges_above: int

    def attempt(self, table: TableId, ranges: Sequence[KeyRange] | None) -> Plan | HeadraceError:
        """How to copy a table, or why that cannot be: it was dropped since, for one.

        The catalog tells what it was like when the snapshot was taken, but a query takes names for
        what they are now.
        """
        try:
            with self.session.transaction():  # the other tables' plans are made in the same
                return self.plan(table, ranges)
        except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable) as error:
            return TableRewrittenError(
                f"{table}: it was altered after the snapshot was taken: {error}",
                hint="Headrace copies the table anew",
            )
        except TableRewrittenError as error:
            return error
        except HeadraceError as error:
            if error.transient:
                raise
            return error

    def plan(self, table: TableId, ranges: Sequence[KeyRange] | None) -> Plan:
        """How to copy `ranges` of a table, or None: all of it, cut as it is best now."""
        bound = self.registry.of_table(self.session, self.types, table)
        found = self.session.execute(RELATION_SIZE, (table.schema, table.name)).fetchone()
        if found is None:
            raise SourceError(
                f"{table} does not exist", hint="headrace plan shows what is selected"
            )
        oid, kind, pages, size, rows, parts = found
        if size is None:
            raise TableRewrittenError(
                f"{table}: it was dropped after the snapshot was taken",
                hint="Headrace copies what has its name now",
            )
        columns = [
            mapping.select(quoted(name))
            for name, mapping in zip(bound.schema.names, bound.mappings, strict=True)
        ]
        # A partitioned root's rows live in its partitions; other tables' children are their own.
        relation = qualified(table) if kind == "p" else f"ONLY {qualified(table)}"
        select = f"SELECT {', '.join(columns)} FROM {relation}"  # noqa: S608  # quoted above
        if ranges is None:
            ranges = key_ranges(
                self.session, bound.schema, relation, (pages, size), self.ranges_above
            )
        whole = kind == "p" or self.session.info.server_version < CTID_RANGES_SINCE
        tiles = ["true"] if whole else _page_ranges(pages)
        keep = self.filters.get(table, "true")
        chunks = _key_chunks(bound.schema, ranges, rows) or [
            SnapshotChunk(table, number, where, rows // len(tiles))
            for number, where in enumerate(tiles)
        ]
        kept = [replace(chunk, where=f"({chunk.where}) AND ({keep})") for chunk in chunks]
        return Plan(bound, relation, oid, select, tuple(kept), f"{oid} {parts} {keep}")


def _key_chunks(schema: TableSchema, ranges: Sequence[KeyRange], rows: int) -> list[SnapshotChunk]:
    column = range_column(schema)
    if column is None:
        return []
    return [
        SnapshotChunk(schema.table, number, in_range(column, keys), rows // len(ranges), keys)
        for number, keys in enumerate(ranges)
    ]


def _page_ranges(pages: int) -> list[str]:
    """Ranges that tile the whole ctid space; the last one is open for pages added meanwhile."""
    size = min(max(-(-pages // CHUNKS), MIN_CHUNK_PAGES), MAX_CHUNK_PAGES)
    starts = list(range(0, max(pages, 1), size))
    bounds = [f"ctid >= '({start},0)'" for start in starts]
    tops = [f"ctid < '({start},0)'" for start in starts[1:]]
    return [" AND ".join(pair) for pair in zip(bounds, [*tops, "true"], strict=True)]


def _row_filters(session: psycopg.Connection[Any], publication: str) -> Mapping[TableId, str]:
    """The condition that each table's rows must meet to be published, where there is one."""
    if session.info.server_version < ROW_FILTERS_SINCE:
        return {}
    found = session.execute(ROW_FILTERS, (publication,)).fetchall()
    return {TableId(schema, name): condition for schema, name, condition in found}
