"""A table that is copied anew changes by what differs; beside a run, and by itself if allowed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from harness import PIPELINE, Shop

from headrace.engine.materialize import Materialization
from headrace.engine.table_state import Phase
from headrace.errors import DivergedError
from headrace.model import Lsn

ROWS = 1000


@pytest.fixture
def items(shop: Shop) -> Shop:
    shop.sql("create table items (id int primary key, name text)")
    shop.sql(f"insert into items select g, 'item ' || g from generate_series(1, {ROWS}) g")
    shop.sql("create table others (id int primary key)")
    shop.carry("public.*")
    shop.catch_up()
    return shop


def delta(shop: Shop) -> DeltaTable:
    return DeltaTable(shop.location("public.items"))


def written(shop: Shop) -> tuple[int, int]:
    """Rows that the newest commit wrote, and rows that it took away for good."""
    metrics = delta(shop).history(1)[0]["operationMetrics"]
    return int(metrics["numUpsertedRows"]), int(metrics["numDeletedRows"])


def change_behind_our_back(shop: Shop) -> None:
    """One row changed, one gone, one too much, one twice."""
    table = delta(shop)
    table.update(predicate="id = 17", updates={"name": "'forged'"})
    table.delete("id = 18")
    rows = [{"id": 5000, "name": "extra"}, {"id": 20, "name": "item 20"}]
    types = pa.schema([("id", pa.int32()), ("name", pa.string())])
    write_deltalake(table, pa.Table.from_pylist(rows, types), mode="append")


def test_a_resync_writes_what_differs_and_no_other_row(items: Shop) -> None:
    change_behind_our_back(items)
    assert items.project.resync(["public.items"]) == []
    items.assert_equal("public.items")
    assert written(items) == (3, 1)  # 17 and 18 as they are, 20 once; 5000 is gone
    assert "of 1000 rows, 3 were written and 1 taken away" in (
        items.status("public.items").notice or ""
    )


def test_a_resync_beside_a_run_is_handed_to_it_while_the_others_go_on(items: Shop) -> None:
    change_behind_our_back(items)
    with items.running() as running:
        running.catch_up()
        assert items.project.resync(["public.items"]) == []
        items.assert_equal("public.items")
        items.sql("insert into others values (1); update items set name = 'later' where id = 17")
        running.catch_up()
    items.assert_equal("public.items")
    items.assert_equal("public.others")
    assert not list((items.state / "log" / "shop" / "requests").iterdir())


def test_a_request_that_no_run_took_up_is_carried_out_by_the_next_one(items: Shop) -> None:
    change_behind_our_back(items)
    folder = items.state / "log" / "shop" / "requests"
    folder.mkdir(exist_ok=True)
    request = {"format": "1.0", "tables": [["public", "items"]], "why": "a test"}
    (folder / "x.json").write_text(json.dumps(request))
    items.catch_up()
    items.assert_equal("public.items")


def test_a_lost_change_log_costs_only_what_differs(items: Shop) -> None:
    """The old rows stand; what was missed is found by comparing, and told."""
    shutil.rmtree(items.state)
    items.sql("update items set name = 'missed' where id <= 5; delete from items where id = 999")
    before = set(delta(items).file_uris())
    items.catch_up()
    items.assert_equal("public.items")
    assert written(items) == (5, 1)
    assert before < set(delta(items).file_uris())
    items.sql("update items set name = 'after' where id = 6")
    items.catch_up()
    items.assert_equal("public.items")


def test_a_table_that_differs_too_much_is_replaced(items: Shop) -> None:
    delta(items).delete("id > 10")
    items.sql("insert into items select g from generate_series(2001, 4000) g")
    items.project.resync(["public.items"])
    items.assert_equal("public.items")
    assert "REPLACE" in delta(items).history(1)[0]["operation"]


# -- by itself -------------------------------------------------------------------------------------


def unknown_values(shop: Shop) -> None:
    """Old rows get values that the stream does not tell."""
    shop.sql("alter table items add column token uuid default gen_random_uuid()")
    shop.sql("update items set name = 'new' where id = 1")


def missing_rows(shop: Shop) -> None:
    """An unchanged value that the lake must still have, and has not."""
    shop.sql("alter table items alter name set storage external")
    shop.sql("update items set name = repeat('long', 2000) where id = 30")
    shop.catch_up()
    delta(shop).delete("id = 30")
    shop.sql("update items set id = 7000 where id = 30")


CAUSES: dict[str, Callable[[Shop], None]] = {
    "schema_change": unknown_values,
    "diverged": missing_rows,
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_table_that_stops_is_copied_anew_by_itself(items: Shop, cause: str) -> None:
    items.carry("public.*", auto_refresh={"on": [cause]})
    CAUSES[cause](items)
    items.catch_up()
    items.assert_equal("public.items")
    items.sql("insert into items (id) values (8000)")
    items.catch_up()
    items.assert_equal("public.items")


def test_a_run_does_not_end_between_a_failure_and_the_copy_that_answers_it(
    items: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, reached = Materialization.begin_refreshes, Materialization.reached
    looked = threading.Event()

    def failed(run: Materialization) -> bool:
        return any(state.phase is Phase.FAILED for state in run.tables.values())

    def late(self: Materialization) -> None:
        assert not failed(self) or looked.wait(30)
        begin(self)

    def seen(self: Materialization, lsn: Lsn) -> bool:
        found = reached(self, lsn)
        if failed(self):
            looked.set()
        return found

    monkeypatch.setattr(Materialization, "begin_refreshes", late)
    monkeypatch.setattr(Materialization, "reached", seen)
    items.carry("public.*", auto_refresh={"on": ["diverged"]})
    missing_rows(items)
    items.catch_up()
    assert looked.is_set()
    items.assert_equal("public.items")


def test_a_cause_that_is_not_named_waits_for_a_person(items: Shop) -> None:
    items.carry("public.*", auto_refresh={"on": ["schema_change"]})
    missing_rows(items)
    (failure,) = items.run()
    assert isinstance(failure.error, DivergedError)


def test_no_table_is_copied_anew_more_often_than_the_interval(items: Shop) -> None:
    """Also after a restart, which reads when the last one was from the state folder."""
    items.carry("public.*", auto_refresh={"min_interval": "12h"})
    missing_rows(items)
    items.catch_up()
    delta(items).delete("id = 7000")
    items.sql("update items set id = 7001 where id = 7000")
    (failure,) = items.run()
    assert isinstance(failure.error, DivergedError)
    assert "is copied anew by itself from" in (items.status("public.items").notice or "")
    _age(items, timedelta(hours=13))
    items.catch_up()
    items.assert_equal("public.items")


def _age(shop: Shop, by: timedelta) -> None:
    """Let the recorded refresh lie further back."""
    path = shop.state / "log" / "shop" / "readers" / f"{PIPELINE}.json"
    record: dict[str, Any] = json.loads(path.read_text())
    known = record["tables"]["public.items"]
    known["refreshed"] = (datetime.fromisoformat(known["refreshed"]) - by).isoformat()
    path.write_text(json.dumps(record))


def test_outside_of_its_window_a_table_waits_and_the_old_rows_stay(items: Shop) -> None:
    later = datetime.now(UTC) + timedelta(hours=3)
    window = f"{later:%H:%M}-{later + timedelta(hours=1):%H:%M}"
    items.carry("public.*", auto_refresh={"window": window})
    shutil.rmtree(items.state)
    items.sql("insert into others values (1)")
    failures = items.run()
    assert {str(failure.table) for failure in failures} == {"public.items", "public.others"}
    assert "was lost" in failures[0].error.message
    assert items.project.query("select * from public.items").num_rows == ROWS
    assert f"{later:%H:%M} UTC" in (items.status("public.items").notice or "")
    items.carry("public.*", auto_refresh={})
    items.catch_up()
    items.assert_equal("public.others")
