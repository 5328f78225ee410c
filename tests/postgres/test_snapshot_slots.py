"""A snapshot without a free slot: there is no exact other way, so it says what to raise."""

from __future__ import annotations

import psycopg
import pytest

from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres.source import PostgresSource
from headrace.errors import SourceError
from headrace.model import TableId
from headrace.testing.postgres import EmbeddedPostgres

TABLE = TableId("public", "shop")


def test_a_snapshot_without_a_free_slot_says_what_to_raise() -> None:
    with EmbeddedPostgres({"max_replication_slots": "1"}, fast=True) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as session:
            session.execute("CREATE TABLE shop (id int PRIMARY KEY)")
            session.execute("CREATE PUBLICATION all_of_it FOR ALL TABLES")
            session.execute("SELECT pg_create_logical_replication_slot('only', 'pgoutput')")
        settings = PostgresConnection.model_validate({"type": "postgres", "url": server.dsn()})
        source = PostgresSource(settings, "only", "all_of_it", [TABLE], {})
        snapshot = source.snapshot({TABLE: None}, connections=1)
        with (
            pytest.raises(SourceError, match="all replication slots are in use") as raised,
            snapshot,
        ):
            pass
    assert "ALTER SYSTEM SET max_replication_slots" in str(raised.value.hint)
