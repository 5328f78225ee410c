"""One table that cannot go on stops alone, says why, and waits for a person; the others go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from shop import SEED, Shop

import headrace
from headrace.engine.table_state import Phase
from headrace.errors import (
    DivergedError,
    ForeignTableError,
    HeadraceError,
    TableStoppedError,
)
from live_run import LiveRun
from replicated import assert_equal
from workload import TABLES, Load

OTHERS = [table for table in TABLES if table != "customers"]


def put_foreign_table(place: Path) -> None:
    write_deltalake(place, pa.table({"theirs": [1, 2, 3]}))


def put_file(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file where a folder should be")


def put_damaged_log(place: Path) -> None:
    write_deltalake(place, pa.table({"theirs": [1]}))
    (place / "_delta_log" / f"{0:020d}.json").write_text('{"add": {"path"')


def assert_failed_alone(shop: Shop, kind: type[HeadraceError]) -> None:
    """Of customers alone, by the run's answer and by `headrace status`; the others are equal."""
    project = headrace.load(shop.project)
    (failure,) = project.run(once=True)
    assert str(failure.table) == "public.customers"
    assert isinstance(failure.error, kind)
    assert failure.error.hint
    phases = {table.table: (table.phase, table.error) for table in project.status().tables}
    assert phases.pop("public.customers") == (Phase.FAILED, str(failure.error))
    assert set(phases.values()) == {(Phase.STREAMING, None)}
    assert_equal(shop.database, shop.folder, OTHERS)


@pytest.mark.parametrize(
    ("put", "kind"),
    [
        (put_foreign_table, ForeignTableError),
        (put_file, HeadraceError),
        (put_damaged_log, HeadraceError),
    ],
    ids=["foreign", "file", "damaged"],
)
def test_invariant_9_a_place_that_is_taken_at_the_destination_stops_one_table(
    shop: Shop, put: Callable[[Path], None], kind: type[HeadraceError]
) -> None:
    """And when the place is free again, the next run fills it."""
    place = shop.folder / "lake" / "public" / "customers"
    put(place)
    assert_failed_alone(shop, kind)
    with LiveRun(shop.project) as run, Load(shop.database, SEED) as load:
        load.wait_for(10)
        run.catch_up(shop.database)
    assert_failed_alone(shop, kind)
    place.rename(shop.folder / "moved away")
    assert headrace.load(shop.project).run(once=True) == []
    assert_equal(shop.database, shop.folder)


def test_what_was_in_a_foreign_table_is_left_alone(shop: Shop) -> None:
    place = shop.folder / "lake" / "public" / "customers"
    put_foreign_table(place)
    headrace.load(shop.project).run(once=True)
    assert DeltaTable(place).version() == 0
    assert DeltaTable(place).to_pyarrow_table().column("theirs").to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("put", [put_foreign_table, put_file], ids=["foreign", "file"])
def test_a_table_that_is_replaced_under_a_run_stops_alone(
    shop: Shop, put: Callable[[Path], None]
) -> None:
    place = shop.folder / "lake" / "public" / "customers"
    with LiveRun(shop.project) as run:
        run.catch_up(shop.database)
        shop.database.execute("insert into customers values (-1)")
        run.catch_up(shop.database)
        place.rename(shop.folder / "moved away")
        put(place)
        shop.database.execute("insert into customers values (-2); insert into events values ('z')")
        run.wait_for(lambda view: phase_of_customers(view) is Phase.FAILED)
        run.catch_up(shop.database)
    assert_equal(shop.database, shop.folder, OTHERS)
    if put is put_foreign_table:
        assert DeltaTable(place).version() == 0
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    (shop.folder / "moved away").rename(place)
    assert headrace.load(shop.project).run(once=True) == []
    assert_equal(shop.database, shop.folder)


def phase_of_customers(view: headrace.engine.runner.RunView) -> Phase:
    (materialization,) = view.materializations
    return next(s.phase for t, s in materialization.tables.items() if t.name == "customers")


@pytest.mark.parametrize("when", ["snapshot", "stream"])
def test_invariant_12_a_value_that_cannot_be_held_stops_its_table_and_is_named(
    shop: Shop, when: str
) -> None:
    project = headrace.load(shop.project)
    if when == "stream":
        assert project.run(once=True) == []
    shop.database.execute("insert into customers (id, seen) values (-1, 'infinity')")
    shop.database.execute("insert into events values ('beside', 'it')")
    assert_failed_alone(shop, TableStoppedError)
    (error,) = (table.error for table in project.status().tables if table.error)
    assert "seen" in error
    assert "infinity" in error
    assert "public.customers" in error
    shop.database.execute("insert into events values ('after', 'it')")
    assert_failed_alone(shop, TableStoppedError)  # and it stays so, over restarts
    shop.database.execute("update customers set seen = now() where id = -1")
    assert project.resync(["public.customers"]) == []
    assert_equal(shop.database, shop.folder)


def test_invariant_12_a_row_that_is_missing_at_the_destination_is_told(shop: Shop) -> None:
    """Somebody deleted a row that an update leaves the TOASTed value of."""
    shop.database.execute("insert into documents values ('mine', repeat('x', 100000), 0)")
    project = headrace.load(shop.project)
    assert project.run(once=True) == []
    place = shop.folder / "lake" / "public" / "documents"
    DeltaTable(place).delete("code = 'mine'")
    shop.database.execute("update documents set version = 1 where code = 'mine'")
    (failure,) = project.run(once=True)
    assert str(failure.table) == "public.documents"
    assert isinstance(failure.error, DivergedError)
    assert "headrace resync public.documents" in failure.error.hint
    assert_equal(shop.database, shop.folder, [t for t in TABLES if t != "documents"])
    assert project.resync(["public.documents"]) == []
    assert_equal(shop.database, shop.folder)
