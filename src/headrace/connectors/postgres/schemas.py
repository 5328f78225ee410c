"""Which version of a table's schema a Relation message means.

A Relation tells names, types and identity as of its transaction; the catalog, read now, adds what
the message lacks: attribute numbers, the primary key under REPLICA IDENTITY FULL, and the constant
that rows older than an added column have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final

import psycopg

from headrace.connectors.postgres.catalog import DescribedTable, TypeCatalog, read_table_schema
from headrace.connectors.postgres.decoding import BoundSchema
from headrace.connectors.postgres.types import TypeMapping, mapping
from headrace.errors import UnsupportedSchemaChangeError
from headrace.model import Column, ReplicaIdentity, TableId, TableSchema
from headrace.pgoutput import Relation
from headrace.pgoutput.messages import RelationColumn

Connection = psycopg.Connection[Any]

# Columns whose value in older rows nobody can tell: the default was computed row by row, by
# rewriting the table, which logical decoding does not show. A constant one is in attmissingval.
COMPUTED_COLUMNS: Final = """
SELECT a.attname
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND a.attname = ANY (%s)
   AND a.attnum > 0 AND NOT a.attisdropped
   AND ((a.atthasdef AND NOT a.atthasmissing) OR a.attidentity <> '')
"""


class SchemaRegistry:
    """All schema versions of a capture's tables; used by the stream and by snapshots together.

    `connect` opens a short catalog session. `known` holds the newest version of each table that the
    log has. Tables that nobody selected are not `wanted`; one that was given up is not, either,
    until a snapshot takes it up again.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Connection]],
        publication: str,
        known: Mapping[TableId, TableSchema],
        selected: Collection[TableId],
    ) -> None:
        self._connect = connect
        self._publication = publication
        self._newest = dict(known)
        self._wanted = set(selected)
        self._bound: dict[int, tuple[Relation, BoundSchema]] = {}  # by the relation's oid
        self._lock = threading.Lock()

    def wanted(self, table: TableId) -> bool:
        return table in self._wanted

    def give_up(self, table: TableId) -> None:
        """Skip this table's changes from now on."""
        self._wanted.discard(table)

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

    def of_table(self, connection: Connection, table: TableId) -> BoundSchema:
        """The version that the catalog shows in this session's snapshot."""
        with self._lock:
            types = TypeCatalog.read(connection)
            live = read_table_schema(connection, types, table, publication=self._publication)
            self._wanted.add(table)
            return BoundSchema(self._versioned(live.schema), live.mappings)

    def _bind(self, relation: Relation) -> BoundSchema:
        table = TableId(relation.namespace, relation.name)
        with self._connect() as connection:
            types = TypeCatalog.read(connection)
            live = read_table_schema(
                connection, types, table, publication=self._publication, missing_ok=True
            )
            schema, mappings = _describe(types, table, relation, live)
            self._refuse_computed(connection, schema)
        return BoundSchema(self._versioned(schema), mappings)

    def _refuse_computed(self, connection: Connection, schema: TableSchema) -> None:
        added = self._added(schema)
        if not added:
            return
        parameters = (schema.table.schema, schema.table.name, added)
        found = connection.execute(COMPUTED_COLUMNS, parameters).fetchone()
        if found is not None:
            raise UnsupportedSchemaChangeError(
                f"{schema.table}: column {found[0]!r} was added with a default that may differ "
                "from row to row; the stream does not tell what older rows have",
                hint=f"headrace resync {schema.table}",
            )

    def _added(self, schema: TableSchema) -> list[str]:
        newest = self._newest.get(schema.table)
        return [] if newest is None else [n for n in schema.names if n not in newest.names]

    def _versioned(self, schema: TableSchema) -> TableSchema:
        newest = self._newest.get(schema.table)
        if newest is not None and newest.same_shape(schema):
            return newest
        missing = {
            name: schema.missing[name] for name in self._added(schema) if name in schema.missing
        }
        older = {} if newest is None else newest.missing
        version = 1 if newest is None else newest.version + 1
        versioned = replace(schema, version=version, missing={**older, **missing})
        self._newest[schema.table] = versioned
        return versioned


def _describe(
    types: TypeCatalog, table: TableId, relation: Relation, live: DescribedTable | None
) -> tuple[TableSchema, tuple[TypeMapping, ...]]:
    """A Relation's schema: from the catalog as far as it still is the same, else by itself."""
    pairs = [_column(types, column, live) for column in relation.columns]
    columns = tuple(column for column, _ in pairs)
    identity = ReplicaIdentity(relation.replica_identity)
    key = _key(relation, identity, live.schema.key if live else ())
    missing = live.schema.missing if live else {}
    return TableSchema(table, 0, columns, key, identity, missing), tuple(m for _, m in pairs)


def _column(
    types: TypeCatalog, column: RelationColumn, live: DescribedTable | None
) -> tuple[Column, TypeMapping]:
    if live is not None and column.name in live.schema.names:
        index = live.schema.names.index(column.name)
        same = live.columns[index]
        if (same.type_oid, same.typmod) == (column.type_oid, column.type_modifier):
            return live.schema.columns[index], live.mappings[index]
    mapped = mapping(column.type_oid, column.type_modifier, types)
    source_type = types.format(column.type_oid, column.type_modifier)
    return Column(column.name, mapped.arrow, source_type), mapped


def _key(relation: Relation, identity: ReplicaIdentity, live: tuple[str, ...]) -> tuple[str, ...]:
    """The catalog's key, in its order, where the stream's old rows have it; else the stream's."""
    full = identity is ReplicaIdentity.FULL  # which flags every column
    sent = {column.name for column in relation.columns if full or column.is_key}
    if live and sent.issuperset(live):
        return live
    return () if full else tuple(c.name for c in relation.columns if c.is_key)
