"""Big tables copied in ranges of their key: what is finished survives, the join is exact."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from busy import TABLES, fill, writing
from harness import Shop

from headrace.connectors.postgres import snapshot
from headrace.engine.range_copies import RangeCopies
from headrace.errors import CopyStoppedError

SMALL = {
    "snapshots": {"ranges_above": "300kB"}
}  # the tables are larger, and are cut into a dozen ranges or more
READERS = "application_name = 'headrace' and xact_start is not null and pid <> pg_backend_pid()"


@pytest.fixture
def ranged(shop: Shop) -> Shop:
    fill(shop)
    shop.declare({"shop_to_lake": TABLES}, source=SMALL)
    return shop


class Copied:
    """Counts the ranges that were copied, by table and lower end; `then` is done at the third."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count: Counter[tuple[str, str | None]] = Counter()
        self.then: Callable[[RangeCopies], None] = lambda _: None
        keep, lock = RangeCopies.copied, threading.Lock()

        def copied(copies: RangeCopies, snapshot: Any, chunk: Any, file: Any) -> None:
            keep(copies, snapshot, chunk, file)
            with lock:
                self.count[(str(chunk.table), chunk.keys.low)] += 1
                if self.count.total() == 3:
                    self.then(copies)

        monkeypatch.setattr(RangeCopies, "copied", copied)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> Copied:
    return Copied(monkeypatch)


def run_until_three(shop: Shop, copied: Copied) -> None:
    """A run that is stopped when three ranges are there."""
    stop = threading.Event()

    def end(copies: RangeCopies) -> None:
        stop.set()
        copies._stop.wait()
        raise CopyStoppedError("in the middle")  # else another range could complete its table

    copied.then = end
    shop.project.run([], stop=stop)
    copied.then = lambda _: None


def unfinished(shop: Shop) -> list[Path]:
    return list((shop.state / "log/shop/unfinished").glob("*.json"))


def kept_files(shop: Shop) -> set[Path]:
    ranges = [part for path in unfinished(shop) for part in json.loads(path.read_text())["ranges"]]
    return {shop.state / file["path"] for part in ranges for file in part.get("files", ())}


def test_7_finished_ranges_survive_a_restart_beside_a_busy_stream(ranged, copied):
    """Invariant 7: keys move across ranges, values are not sent, rows go and come meanwhile."""
    run_until_three(ranged, copied)
    kept = kept_files(ranged)
    assert len(kept) >= 3
    assert all(path.exists() for path in kept)
    with writing(ranged):
        ranged.catch_up()
    ranged.catch_up()
    for table in TABLES:
        ranged.assert_equal(table)
    assert set(copied.count.values()) == {1}, "a range was read twice"
    assert len(copied.count) > 20
    assert not unfinished(ranged)


def test_7_finished_ranges_survive_the_loss_of_their_snapshot(ranged, copied):
    """Invariant 7: the server ends the sessions that read, in the middle of the copy."""
    with ExitStack() as stack:

        def end(copies: RangeCopies) -> None:
            stack.enter_context(writing(ranged))
            ranged.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where {READERS}")

        copied.then = end
        ranged.catch_up()
        assert len(copied.count) > 20
    ranged.catch_up()
    for table in TABLES:
        ranged.assert_equal(table)
    assert set(copied.count.values()) == {1}, "a range was read twice"


def test_a_big_table_that_was_truncated_between_two_snapshots_is_empty(ranged, copied):
    run_until_three(ranged, copied)
    ranged.sql("truncate orders, items, docs")
    ranged.catch_up()
    for table in TABLES:
        ranged.assert_equal(table)


def stop_in_the_middle(shop: Shop, copied: Copied) -> None:
    shop.sql("create table orders (id bigint primary key, state text, at timestamptz)")
    shop.sql("insert into orders select g, 'first', now() from generate_series(1, 9000) g")
    shop.declare({"shop_to_lake": ["public.orders"]}, source=SMALL)
    run_until_three(shop, copied)
    assert len(kept_files(shop)) >= 3
    assert "ranges are copied, with" in (shop.status("public.orders").notice or "")
    shop.sql("update orders set id = -id where id < 100")


def test_8_ranges_of_a_table_that_was_dropped_are_not_those_of_its_successor(shop, copied):
    """Invariant 8: a person is told; then only rows of the new table are there."""
    stop_in_the_middle(shop, copied)
    shop.sql("create table other (like orders including all); insert into other values (1, 'new')")
    shop.sql("drop table orders; alter table other rename to orders")
    (failure,) = shop.run()
    assert "another table has its name now" in str(failure.error)
    shop.project.resync(["public.orders"])
    shop.catch_up()
    shop.assert_equal("public.orders")


@pytest.mark.parametrize(
    "change",
    [
        "alter table orders add column note text default 'old'",
        "alter table orders drop column state",
        "alter table orders rename column state to status",
        "alter table orders alter state type varchar(20), alter at type timestamptz(3)",
        "alter table orders drop constraint orders_pkey, add primary key (at, id)",
    ],
    ids=["added", "dropped", "renamed", "rewritten", "another key"],
)
def test_8_a_big_table_whose_definition_changes_between_two_snapshots_is_exact(
    shop, copied, caplog, change
):
    """Invariant 8: rows of one definition are not taken for rows of another."""
    stop_in_the_middle(shop, copied)
    shop.sql(change)
    shop.sql("delete from orders where id % 7 = 0")
    shop.catch_up()
    shop.assert_equal("public.orders")
    assert "ranges_given_up" in caplog.text


def test_8_a_key_that_is_renamed_before_its_ranges_are_cut_is_copied_anew(ranged, monkeypatch):
    """Invariant 8: a query for them meets a name that the snapshot's catalog does not have yet."""
    cut, renamed = snapshot.key_ranges, []

    def rename_first(session, schema, *arguments):
        if schema.table.name == "orders" and not renamed:
            ranged.sql("alter table orders rename id to number")
            renamed.append(schema.key)
        return cut(session, schema, *arguments)

    monkeypatch.setattr(snapshot, "key_ranges", rename_first)
    ranged.catch_up()
    assert renamed == [("id",)]
    for table in TABLES:
        ranged.assert_equal(table)


def test_12_a_table_that_is_dropped_before_its_ranges_are_cut_stops_alone(ranged, monkeypatch):
    """Invariant 12: the snapshot's catalog has it still, but nobody knows its size any more."""
    filters, dropped = snapshot._row_filters, []

    def drop_first(*arguments):
        if not dropped:
            ranged.sql("drop table docs")
            dropped.append("docs")
        return filters(*arguments)

    monkeypatch.setattr(snapshot, "_row_filters", drop_first)
    assert {failure.table.name for failure in ranged.run()} == {"docs"}
    assert dropped
    for table in set(TABLES) - {"public.docs"}:
        ranged.assert_equal(table)
