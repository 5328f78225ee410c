"""Rows that wait for rows of another table of the pipeline: tried again when those may be there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from simulated_lake import Lake, Shop
from test_sync_run import PATIENCE, lake, pipeline, running
from test_sync_table import SCHEMA, at, row

from headrace.engine import sync as sync_module
from headrace.engine.references import References
from headrace.engine.sync_state import SyncState, SyncTarget
from headrace.errors import DestinationUnavailableError
from headrace.model import TableId


class Family:
    """A child whose rows wait for the parent's row of their key."""

    def __init__(self, *rows: int) -> None:
        self.parents, self.children = (
            lake(name, *map(row, rows)) for name in ("parents", "children")
        )
        self.parent = Shop(TableId("shop", "parents"))
        self.child = Shop(TableId("shop", "children"), parent=self.parent)

    @property
    def pairs(self) -> list[tuple[Lake, Shop]]:
        return [(self.children, self.child), (self.parents, self.parent)]

    def catch_up(self) -> None:
        pipeline(self.pairs).run(threading.Event(), once=True)

    def assert_all_there(self) -> None:
        assert self.child.content == self.children.versions[-1].content
        assert self.child.waiting == {}


def test_rows_that_an_earlier_run_left_are_tried_when_the_next_begins() -> None:
    family = Family(1, 2)
    family.parent.put(SCHEMA, at(0), row(1), row(2))
    family.child.put(SCHEMA, at(0), row(1))
    family.child.waiting = {family.child._key(row(2)): row(2)}
    family.catch_up()
    family.assert_all_there()


def test_a_run_ends_when_rows_that_waited_for_another_table_were_tried_after_it() -> None:
    """The parent's rows come late, as its destination is away for a moment."""
    family = Family(1)
    family.catch_up()
    family.children.write(("insert", row(5)))
    family.parents.write(("insert", row(5)))
    away = DestinationUnavailableError("away", hint="wait")
    family.parent.faults["apply"] = [away, away]
    family.catch_up()
    family.assert_all_there()


def test_rows_that_nobody_brings_do_not_keep_a_run_from_its_end() -> None:
    family = Family(1)
    family.children.write(("insert", row(5)))
    family.catch_up()
    assert [*family.child.waiting.values()] == [row(5)]


def test_while_running_a_table_that_goes_on_brings_rows_that_waited_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sync_module, "RECHECK", 3600.0)
    family = Family(1)
    with running(pipeline(family.pairs)) as until:
        until(lambda: family.child.at is not None)
        family.children.write(("insert", row(5)))
        until(lambda: len(family.child.waiting) == 1)
        family.parents.write(("insert", row(5)))
        until(lambda: not family.child.waiting)
    family.assert_all_there()


def test_a_table_whose_thread_did_not_begin_yet_may_bring_rows_too() -> None:
    family, tried = Family(1), threading.Event()
    family.child.put(SCHEMA, at(0))
    family.child.waiting = {family.child._key(row(5)): row(5)}
    child, parent = (SyncState(SyncTarget(*pair)) for pair in family.pairs)
    references = References([child, parent], threading.Event())

    def settle() -> None:
        with references.working(child):
            references.settle(child, patient=True)

    family.child.after_retry = tried.set
    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(settle)
        assert tried.wait(PATIENCE)
        with references.working(parent):
            family.parent.put(SCHEMA, at(0), row(5))
        settled.result(PATIENCE)
    assert family.child.waiting == {}
