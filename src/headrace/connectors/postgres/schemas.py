"""Which version of a table's schema a Relation message means.

A Relation tells names, types and identity as of its transaction; the catalog, read now, adds what
the message lacks: attribute numbers, the primary key under REPLICA IDENTITY FULL, and the constant
that rows older than an added column have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import psycopg
import pyarrow as pa

from headrace.connectors.postgres.catalog import TypeCatalog, read_table_schema
from headrace.connectors.postgres.decoding import BoundSchema
from headrace.connectors.postgres.types import TypeMapping, mapping
from headrace.errors import UnsupportedSchemaChangeError
from headrace.model import Column, ReplicaIdentity, TableId, TableSchema
from headrace.pgoutput import Relation

# What rows older than a column have in it. Postgres keeps the constant in attmissingval; a default
# without one was computed row by row, by rewriting the table, which logical decoding does not show.
MISSING_VALUES = """
SELECT a.attname,
       (a.attmissingval::text::text[])[1] AS value,
       a.atthasmissing,
       (a.atthasdef AND NOT a.atthasmissing) OR a.attidentity <> '' AS computed
  FROM pg_attribute a
  JOIN pg_class c ON c.oid = a.attrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND a.attname = ANY (%s)
   AND a.attnum > 0 AND NOT a.attisdropped
"""


class SchemaRegistry:
    """All schema versions of a capture's tables; used by the stream and by snapshots together.

    `connect` opens a short catalog session. `known` holds the newest version of each table that the
    log has. Tables that nobody selected are not `wanted`; one that was given up stays so.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        known: Mapping[TableId, TableSchema],
        selected: Collection[TableId],
    ) -> None:
        self._connect = connect
        self._newest = dict(known)
        self._wanted = set(selected)
        self._bound: dict[int, tuple[Relation, BoundSchema]] = {}  # by the relation's oid
        self._lock = threading.Lock()

    def wanted(self, table: TableId) -> bool:
        return table in self._wanted

    def give_up(self, table: TableId) -> None:
        """Skip this table from now on; its snapshot takes it up again."""
        self._wanted.discard(table)

    def take_up(self, table: TableId) -> None:
        self._wanted.add(table)

    def of_relation(self, relation: Relation) -> BoundSchema:
        """The version that rows under this Relation message have.

        Raises:
            UnsupportedSchemaChangeError: a column was added whose old rows' values nobody told.
        """
        with self._lock:
            latest = self._bound.get(relation.relation_id)
            if latest is None or latest[0] != relation:
                latest = self._bound[relation.relation_id] = (relation, self._bind(relation))
            return latest[1]

    def of_table(self, connection: psycopg.Connection, table: TableId) -> BoundSchema:
        """The version that the catalog shows in this session's snapshot."""
        with self._lock:
            types = TypeCatalog.read(connection)
            described = read_table_schema(connection, types, table)
            schema = self._version(connection, described.schema, fresh=True)
            return BoundSchema(schema, described.mappings)

    def _bind(self, relation: Relation) -> BoundSchema:
        with self._connect() as connection:
            types = TypeCatalog.read(connection)
            mappings = tuple(mapping(c.type_oid, c.type_modifier, types) for c in relation.columns)
            schema = _describe(connection, types, relation, mappings)
            return BoundSchema(self._version(connection, schema), mappings)

    def _version(
        self, connection: psycopg.Connection, schema: TableSchema, *, fresh: bool = False
    ) -> TableSchema:
        newest = self._newest.get(schema.table)
        if newest is None:
            versioned = replace(schema, version=1)
        elif newest.same_shape(schema):
            return newest
        else:
            added = [c for c in schema.columns if c.name not in newest.names]
            missing = {} if fresh else _missing_values(connection, schema, added)
            versioned = replace(
                schema, version=newest.version + 1, missing={**newest.missing, **missing}
            )
        self._newest[schema.table] = versioned
        return versioned


def _describe(
    connection: psycopg.Connection,
    types: TypeCatalog,
    relation: Relation,
    mappings: tuple[TypeMapping, ...],
) -> TableSchema:
    table = TableId(relation.namespace, relation.name)
    live = read_table_schema(connection, types, table, missing_ok=True)
    known = {} if live is None else {c.name: c for c in live.schema.columns}
    columns = []
    for column, mapped in zip(relation.columns, mappings, strict=True):
        same = known.get(column.name)
        if same is None or same.type != mapped.arrow:
            same = Column(
                column.name, mapped.arrow, types.format(column.type_oid, column.type_modifier)
            )
        columns.append(same)
    identity = ReplicaIdentity(relation.replica_identity)
    return TableSchema(
        table, 0, tuple(columns), _key(relation, identity, live and live.schema), identity
    )


def _key(
    relation: Relation, identity: ReplicaIdentity, live: TableSchema | None
) -> tuple[str, ...]:
    flagged = {column.name for column in relation.columns if column.is_key}
    if identity is ReplicaIdentity.FULL:
        flagged = {column.name for column in relation.columns}
    if live is not None and live.key and flagged.issuperset(live.key):
        return live.key
    if identity in (ReplicaIdentity.FULL, ReplicaIdentity.NOTHING):
        return ()
    return tuple(column.name for column in relation.columns if column.name in flagged)


def _missing_values(
    connection: psycopg.Connection, schema: TableSchema, added: list[Column]
) -> dict[str, pa.Scalar]:
    if not added:
        return {}
    rows = connection.execute(
        MISSING_VALUES, (schema.table.schema, schema.table.name, [c.name for c in added])
    ).fetchall()
    types = TypeCatalog.read(connection)
    described = read_table_schema(connection, types, schema.table, missing_ok=True)
    values = {}
    for name, text, has_missing, computed in rows:
        if computed:
            raise UnsupportedSchemaChangeError(
                f"{schema.table}: column {name!r} was added with a default that differs per row",
                hint=f"headrace resync {schema.table}",
            )
        if has_missing and described is not None:
            reader = described.mappings[described.schema.names.index(name)]
            values[name] = reader.from_text(pa.array([text], pa.string()))[0]
    return values
