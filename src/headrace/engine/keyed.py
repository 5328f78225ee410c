"""The key that headrace.yaml names for a table, in place of the one that the source tells."""

from __future__ import annotations

from dataclasses import replace

from headrace.errors import UnusableKeyError
from headrace.model import ReplicaIdentity, TableSchema


def keyed(schema: TableSchema, key: tuple[str, ...] | None) -> TableSchema:
    """The schema with the user's key, if there is one.

    Raises:
        UnusableKeyError: the table has no such columns, or the stream does not tell their old
            values, by which a row is found that moved.
    """
    if key is None or key == schema.key:
        return schema
    if not set(key) <= set(schema.names):
        raise UnusableKeyError(
            f"{schema.table} has no columns {', '.join(sorted(set(key) - set(schema.names)))}",
            hint=f"correct key: of {schema.table} in headrace.yaml",
        )
    if schema.identity is not ReplicaIdentity.FULL and set(key) != set(schema.key):
        raise UnusableKeyError(
            f"{schema.table}: the stream does not tell the old value of {', '.join(key)}",
            hint=f"ALTER TABLE {schema.table.quoted} REPLICA IDENTITY FULL; or leave key: out",
        )
    return replace(schema, key=key)
