"""From what kind of system to what kind a pipeline leads, which decides what it may say."""

from __future__ import annotations

from enum import Enum

from headrace.config.connections import Connection, DeltaConnection, PostgresConnection


class Route(Enum):
    """Each is carried out by other parts; the value reads on from "is not yet supported"."""

    CAPTURE = "from Postgres to Delta tables"
    TRANSFER = "from Postgres to Postgres"
    SYNC = "from Delta tables to Postgres"


def route(source: Connection, destination: Connection) -> Route | None:
    """What leads from one connection to another; None where nothing does."""
    match source, destination:
        case PostgresConnection(), DeltaConnection():
            return Route.CAPTURE
        case PostgresConnection(), PostgresConnection():
            return Route.TRANSFER
        case DeltaConnection(), PostgresConnection():
            return Route.SYNC
    return None
