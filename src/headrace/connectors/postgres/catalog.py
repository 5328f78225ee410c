"""What the system catalogs tell about types and tables, read by named queries.

Every name is qualified, so that nobody's search_path changes what a query means.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, overload

import psycopg
import pyarrow as pa
from psycopg.rows import class_row

from headrace.connectors.postgres.arrays import split_literals
from headrace.connectors.postgres.published import without_waiting
from headrace.connectors.postgres.types import PgField, PgType, TypeMapping, mapping
from headrace.errors import TableNotFoundError
from headrace.model import Column, ReplicaIdentity, TableId, TableSchema

COLUMN_LISTS_SINCE: Final = 150000  # pg_publication_rel.prattrs came with them
PUBLISHED_GENERATED_SINCE: Final = 180000  # before, attnames lists them, but nothing sends them

# All types, those of users and extensions included. An element's typarray names its true array;
# int2vector and oidvector have elements too, but print without braces.
TYPES: Final = """
SELECT t.oid::bigint AS oid, n.nspname AS schema, t.typname AS name,
       t.typcategory::text AS category, t.typbasetype::bigint AS base, t.typtypmod AS base_typmod,
       t.typndims AS dimensions,
       coalesce(e.oid, 0)::bigint AS element, t.typdelim::text AS delimiter,
       pg_catalog.format('%I.%I', n.nspname, t.typname) AS sql,
       pg_catalog.format('%I.%I', f.nspname, p.proname) AS output,
       t.typrelid::bigint AS relation, coalesce(x.extname, '') AS extension
  FROM pg_catalog.pg_type t
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
  JOIN pg_catalog.pg_proc p ON p.oid = t.typoutput
  JOIN pg_catalog.pg_namespace f ON f.oid = p.pronamespace
  LEFT JOIN pg_catalog.pg_type e ON e.typarray = t.oid
  LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass
        AND d.objid = t.oid AND d.deptype = 'e'
  LEFT JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
"""

# Of a composite type, in the order in which it prints them.
FIELDS: Final = """
SELECT a.attname AS name, a.attnum AS number, a.atttypid::bigint AS type_oid,
       a.atttypmod AS typmod, a.attndims AS dimensions
  FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""

FORMAT_TYPE: Final = "SELECT pg_catalog.format_type(%s::oid, %s)"

TABLE: Final = """
SELECT c.oid::bigint, c.relreplident::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""

# What rows older than a column have: attmissingval, an array of one element. A partitioned table
# has no rows itself, and so none; its partitions have it, but for those that are younger.
MISSING: Final = """
CASE WHEN a.atthasmissing THEN a.attmissingval::text
     WHEN (SELECT c.relkind FROM pg_catalog.pg_class c WHERE c.oid = a.attrelid) = 'p' THEN (
       WITH RECURSIVE below (relid) AS (
            SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = a.attrelid
             UNION ALL
            SELECT l.inhrelid FROM pg_catalog.pg_inherits l JOIN below ON l.inhparent = below.relid
       )
       SELECT min(m.attmissingval::text)
         FROM below JOIN pg_catalog.pg_attribute m ON m.attrelid = below.relid
        WHERE m.attname = a.attname AND m.atthasmissing)
 END
"""
_COLUMNS: Final = """
SELECT a.attname AS name, a.attnum, a.atttypid::bigint AS type_oid, a.atttypmod AS typmod,
       a.attndims AS dimensions,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS source_type,
       a.attgenerated <> '' AS generated,
       {missing} AS missing
  FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""
COLUMNS: Final = _COLUMNS.format(missing=MISSING)

# The columns that identify a row in the stream, in the index's order. Under REPLICA IDENTITY USING
# INDEX that index, because an old row has no other columns; else the primary key. A deferrable one
# identifies nothing: within a transaction two rows may share it.
KEY: Final = """
SELECT a.attname
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
 CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
 WHERE i.indrelid = %s AND i.indisvalid AND i.indimmediate AND k.place <= i.indnkeyatts
   AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
 ORDER BY k.place
"""

# As pg_publication_tables has them in attnames; but that view waits for every published table that
# somebody has locked to alter it. Before 18 no publication has pubgencols.
PUBLISHED_COLUMNS: Final = """
SELECT pg_catalog.array_agg(a.attname)
  FROM pg_catalog.pg_publication p
 CROSS JOIN pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
 WHERE p.pubname = %s AND n.nspname = %s AND c.relname = %s
   AND CASE WHEN r.prattrs IS NOT NULL THEN a.attnum = ANY (r.prattrs)
            ELSE a.attgenerated = ''
                 OR pg_catalog.to_jsonb(p) ->> 'pubgencols' = a.attgenerated END
"""

# The size counts; the planner's density of rows, from the last ANALYZE, is scaled up to it. To ask
# for the size is to wait where somebody holds a table locked, or waits to: there the last one does.
_SIZED: Final = """
SELECT n.nspname AS schema, c.relname AS name, c.relkind = 'p' AS partitioned,
       c.relispartition AS partition, c.relreplident::text AS identity, size.pages, size.rows
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN (
       SELECT pg_catalog.array_agg(relation) AS tables FROM pg_catalog.pg_locks
        WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock'
          AND database = (SELECT oid FROM pg_catalog.pg_database
                           WHERE datname = pg_catalog.current_database())
       ) AS locked
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(pages), 0)::bigint AS pages,
              sum(CASE WHEN relpages > 0 AND reltuples >= 0
                       THEN reltuples / relpages * pages END)::bigint AS rows
         FROM (SELECT l.relpages, l.reltuples,
                      CASE WHEN l.oid = ANY (locked.tables) THEN greatest(l.relpages, 0)
                           ELSE pg_catalog.pg_relation_size(l.oid)
                                / pg_catalog.current_setting('block_size')::int END AS pages
                 FROM (WITH RECURSIVE tree (oid) AS (
                       SELECT c.oid
                        UNION ALL
                       SELECT i.inhrelid
                         FROM tree
                         JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid
                         JOIN pg_catalog.pg_class p ON p.oid = i.inhrelid AND p.relispartition)
                       SELECT oid FROM tree) AS tree
                 JOIN pg_catalog.pg_class l ON l.oid = tree.oid AND l.relkind <> 'p'
              ) AS leaf
       ) AS size
"""

# What logical replication can carry: permanent, ordinary or partitioned, of users. Partitions are
# tables by themselves for those who name them; else their rows come under their root.
TABLES: Final = f"""
{_SIZED}
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
   AND (NOT c.relispartition
        OR EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]),
                                          pg_catalog.unnest(%(names)s::text[]))
                            AS named (schema, name)
                    WHERE named.schema = n.nspname AND named.name = c.relname))
   AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
 ORDER BY 1, 2
"""  # noqa: S608  # constants

# A publication names roots or partitions, as its publish_via_partition_root says.
PUBLISHED_TABLES: Final = f"""
{_SIZED}
  JOIN pg_catalog.pg_publication_tables t ON t.schemaname = n.nspname AND t.tablename = c.relname
 WHERE t.pubname = %s
 ORDER BY 1, 2
"""

Connection = psycopg.Connection[Any]
ReadAs = Mapping[str, str]  # by column, as `types.mapping` takes it
NO_WISHES: Final[ReadAs] = {}


class TypeCatalog:
    """All types of a database by oid; read at once, and again when an unknown oid comes up.

    An oid that is unknown even then (its type was dropped since) is a type known by its text alone.
    Safe to use from several threads.
    """

    def __init__(self, connection: Connection, types: Mapping[int, PgType]) -> None:
        self._connection = connection
        self._types = dict(types)
        self._formats: dict[tuple[int, int], str] = {}
        self._lock = threading.Lock()

    @classmethod
    def read(cls, connection: Connection) -> Self:
        return cls(connection, _read_types(connection))

    def get(self, oid: int) -> PgType:
        with self._lock:
            if oid not in self._types:
                dropped = PgType(oid, "", f"type {oid}")
                self._types = {oid: dropped, **self._types, **_read_types(self._connection)}
            return self._types[oid]

    def fields(self, composite: PgType) -> Sequence[PgField]:
        """The fields of a composite type."""
        with self._lock:
            return composite_fields(self._connection, composite.relation)

    def format(self, oid: int, typmod: int) -> str:
        """The type as SQL spells it, such as `numeric(10,2)`."""
        if (oid, typmod) not in self._formats:
            found = self._connection.execute(FORMAT_TYPE, (oid, typmod)).fetchone()
            self._formats[oid, typmod] = str(found[0]) if found else "???"
        return self._formats[oid, typmod]


def composite_fields(connection: Connection, relation: int) -> list[PgField]:
    """The fields of a composite type by its pg_class row; none if it was dropped."""
    with connection.cursor(row_factory=class_row(PgField)) as cursor:
        return cursor.execute(FIELDS, (relation,)).fetchall()


def _read_types(connection: Connection) -> dict[int, PgType]:
    with connection.cursor(row_factory=class_row(PgType)) as cursor:
        return {found.oid: found for found in cursor.execute(TYPES)}


@dataclass(frozen=True)
class CatalogColumn:
    """A column as pg_attribute has it.

    `missing` is an array literal of the one value that rows older than the column have.
    """

    name: str
    attnum: int
    type_oid: int
    typmod: int
    dimensions: int
    source_type: str
    generated: bool
    missing: str | None

    def mapping(self, types: TypeCatalog, read_as: str = "") -> TypeMapping:
        dimensions = self.dimensions
        return mapping(self.type_oid, self.typmod, types, dimensions=dimensions, read_as=read_as)

    def missing_value(self, types: TypeCatalog, mapped: TypeMapping) -> pa.Scalar:
        literal = pa.array([self.missing], pa.string())
        delimiter = types.get(self.type_oid).delimiter
        return mapped.from_text(split_literals(literal, delimiter, mapped.arrow)[1])[0]


@dataclass(frozen=True)
class DescribedTable:
    """A table's schema, and how each of its columns is read, in the same order."""

    schema: TableSchema
    columns: tuple[CatalogColumn, ...]
    mappings: tuple[TypeMapping, ...]


@overload
def read_table_schema(
    connection: Connection,
    types: TypeCatalog,
    table: TableId,
    *,
    version: int = 0,
    publication: str | None = None,
    read_as: ReadAs = NO_WISHES,
    missing_ok: Literal[False] = False,
) -> DescribedTable: ...


@overload
def read_table_schema(
    connection: Connection,
    types: TypeCatalog,
    table: TableId,
    *,
    version: int = 0,
    publication: str | None = None,
    read_as: ReadAs = NO_WISHES,
    missing_ok: bool,
) -> DescribedTable | None: ...


def read_table_schema(
    connection: Connection,
    types: TypeCatalog,
    table: TableId,
    *,
    version: int = 0,
    publication: str | None = None,
    read_as: ReadAs = NO_WISHES,
    missing_ok: bool = False,
) -> DescribedTable | None:
    """The table as this session's snapshot shows it, without generated columns.

    With `publication`, the columns are those that it publishes (15 and later), generated ones
    included where it does. Without such a table: None if `missing_ok`. `read_as` says of columns
    how their values are to be read, where not as their types tell.

    Raises:
        TableNotFoundError: there is no such table, and not `missing_ok`.
        ConfigError: a column cannot be read as `read_as` says.
    """
    found = connection.execute(TABLE, (table.schema, table.name)).fetchone()
    if found is None:
        if missing_ok:
            return None
        raise TableNotFoundError(
            f"table {table} does not exist, or the role cannot see it",
            hint="headrace plan shows which tables there are",
        )
    oid, identity = found
    columns = _columns(connection, oid, _published(connection, table, publication))
    mappings = tuple(column.mapping(types, read_as.get(column.name, "")) for column in columns)
    key = tuple(name for (name,) in connection.execute(KEY, (oid,)))
    sent = {column.name for column in columns}
    schema = TableSchema(
        table,
        version,
        tuple(
            Column(column.name, mapped.arrow, column.source_type, column.attnum)
            for column, mapped in zip(columns, mappings, strict=True)
        ),
        key if sent.issuperset(key) else (),  # part of a key identifies nothing
        ReplicaIdentity(identity),
        {
            column.name: column.missing_value(types, mapped)
            for column, mapped in zip(columns, mappings, strict=True)
            if column.missing is not None
        },
    )
    return DescribedTable(schema, columns, mappings)


def table_schema(connection: Connection, table: TableId, version: int) -> TableSchema:
    """The schema alone; see `read_table_schema`."""
    types = TypeCatalog.read(connection)
    return read_table_schema(connection, types, table, version=version).schema


def column_mappings(
    connection: Connection, types: TypeCatalog, table: TableId
) -> dict[str, TypeMapping]:
    """How each column of a table is read, generated ones too; empty without such a table."""
    return {column.name: column.mapping(types) for column in table_columns(connection, table)}


def table_columns(connection: Connection, table: TableId) -> list[CatalogColumn]:
    """Every column of a table, generated ones too; empty without such a table."""
    found = connection.execute(TABLE, (table.schema, table.name)).fetchone()
    return [] if found is None else _every_column(connection, found[0])


def _published(
    connection: Connection, table: TableId, publication: str | None
) -> frozenset[str] | None:
    """Names of the published columns; None where nobody restricts them."""
    if publication is None or connection.info.server_version < COLUMN_LISTS_SINCE:
        return None
    parameters = (publication, table.schema, table.name)
    found = connection.execute(PUBLISHED_COLUMNS, parameters).fetchone()
    return frozenset(found[0]) if found and found[0] is not None else None


def _columns(
    connection: Connection, table_oid: int, published: frozenset[str] | None
) -> tuple[CatalogColumn, ...]:
    every = _every_column(connection, table_oid)
    generated_sent = (
        published is not None and connection.info.server_version >= PUBLISHED_GENERATED_SINCE
    )
    return tuple(
        column
        for column in every
        if (generated_sent or not column.generated)
        and (published is None or column.name in published)
    )


def _every_column(connection: Connection, table_oid: int) -> list[CatalogColumn]:
    with connection.cursor(row_factory=class_row(CatalogColumn)) as cursor:
        return cursor.execute(COLUMNS, (table_oid,)).fetchall()


@dataclass(frozen=True)
class DiscoveredTable:
    """A table that can be replicated. `rows` is an estimate, None before the first ANALYZE."""

    table: TableId
    partitioned: bool
    partition: bool
    identity: ReplicaIdentity
    pages: int  # of 8 KiB, unless the server was built otherwise
    rows: int | None


def discover(
    connection: Connection, publication: str | None = None, *, named: Collection[TableId] = ()
) -> list[DiscoveredTable]:
    """All tables that logical replication can carry, or those of a publication, by name.

    Of partitions those that are `named`, or that the publication sends as tables of their own.
    """
    names = {"schemas": [t.schema for t in named], "names": [t.name for t in named]}
    query, parameters = (PUBLISHED_TABLES, (publication,)) if publication else (TABLES, names)
    query = without_waiting(query, connection.info.server_version)
    return [
        DiscoveredTable(TableId(schema, name), root, leaf, ReplicaIdentity(identity), pages, rows)
        for schema, name, root, leaf, identity, pages, rows in connection.execute(query, parameters)
    ]
