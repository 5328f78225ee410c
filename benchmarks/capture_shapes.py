"""The backlogs that `benchmarks.capture` reads: what changes, in transactions of what size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import psycopg

from headrace.model import Lsn

PUBLICATION: Final = "bench"
BACKLOG: Final = "backlog"  # the slot that nobody reads, and of which every run gets a copy

ORDERS: Final = """
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer int, status text, amount numeric(12,2),
    placed timestamptz, note text
)
"""
# About 100 bytes a row.
ORDER: Final = """
SELECT g, g % 9973, (ARRAY['new','paid','sent'])[1 + g % 3], g % 100000 / 100.0,
       '2026-01-01'::timestamptz + g * interval '1 second', md5(g::text)
  FROM generate_series({first}, {last}) g
"""
INSERT: Final = "INSERT INTO orders" + ORDER.format(first="low", last="high")
FILLED: Final = ORDERS + "; INSERT INTO orders" + ORDER.format(first=1, last="{rows}")

# One transaction after the other, as fast as can be: what is measured begins afterwards.
CHANGE: Final = """
DO $$ DECLARE high bigint; BEGIN
    FOR low IN 1..{rows} BY {per_transaction} LOOP
        high := low + {per_transaction} - 1;
        {change};
        COMMIT;
    END LOOP;
END $$
"""

WIDE_COLUMNS: Final = 50
TABLES: Final = 100


@dataclass(frozen=True)
class Shape:
    """`change` is a transaction's SQL, which changes the rows from `low` to `high`."""

    rows: int
    change: str
    tables: str = ORDERS
    per_transaction: int = 1000
    rounds: int = 3

    def of(self, rows: int) -> Shape:
        """The same with as many whole transactions as `rows` has, one at least."""
        transactions = max(rows // self.per_transaction, 1)
        return replace(self, rows=transactions * self.per_transaction)

    def fill(self, session: psycopg.Connection) -> Lsn:
        """Make the backlog; gives where it ends."""
        session.execute("SET synchronous_commit = off")
        session.execute(self.tables.format(rows=self.rows))
        session.execute(f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")
        session.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (BACKLOG,))
        session.execute(
            CHANGE.format(rows=self.rows, per_transaction=self.per_transaction, change=self.change)
        )
        session.execute("SET synchronous_commit = on")
        session.execute("SELECT pg_logical_emit_message(true, 'bench', 'flush')")
        row = session.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        session.execute("SELECT pg_logical_emit_message(true, 'bench', 'end')")
        return Lsn.parse(row[0] if row else "")


def _wide() -> Shape:
    kinds = (("int", "g % 1000003"), ("text", "'value ' || g"), ("numeric(12,2)", "g % 9999 / 7.0"))
    columns = [(f"c{n}", *kinds[n % len(kinds)]) for n in range(1, WIDE_COLUMNS)]
    types = ", ".join(f"{name} {kind}" for name, kind, _ in columns)
    values = ", ".join(value for *_, value in columns)
    return Shape(
        100_000,
        f"INSERT INTO wide SELECT g, {values} FROM generate_series(low, high) g",
        f"CREATE TABLE wide (id bigint PRIMARY KEY, {types})",
    )


def _many_tables() -> Shape:
    share = 1000 // TABLES
    return Shape(
        500_000,
        ";".join(
            f"INSERT INTO t{n} SELECT g, 'row ' || g, md5(g::text) "
            f"FROM generate_series(low + {n * share}, low + {n * share + share - 1}) g"
            for n in range(TABLES)
        ),
        ";".join(_tables()),
    )


def _tables() -> Iterator[str]:
    for n in range(TABLES):
        yield f"CREATE TABLE t{n} (id bigint PRIMARY KEY, name text, note text)"


SHAPES: Final = {
    "inserts": Shape(500_000, INSERT, rounds=5),
    "updates": Shape(
        300_000,
        "UPDATE orders SET status = 'done', amount = amount + 1 WHERE id BETWEEN low AND high",
        FILLED,
    ),
    "deletes": Shape(300_000, "DELETE FROM orders WHERE id BETWEEN low AND high", FILLED),
    "wide_rows": _wide(),
    "one_row_transactions": Shape(100_000, INSERT, per_transaction=1),
    "hundred_tables": _many_tables(),
}
