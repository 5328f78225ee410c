"""One table on its way: loaded as of one version, then version after version, whatever happens."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from change_samples import content, table_schema
from feeds import stamp
from simulated_lake import Lake, Shop

from headrace.engine.sync_state import Limits, SyncState, SyncTarget
from headrace.engine.sync_table import TableSync, batches
from headrace.engine.table_state import Phase
from headrace.errors import (
    CopyStoppedError,
    DestinationUnavailableError,
    ExpectationFailedError,
    QuarantineFullError,
    SourceUnavailableError,
    UnsupportedSchemaChangeError,
)
from headrace.model import (
    Checkpoint,
    Delivery,
    Expectation,
    Lsn,
    Mask,
    MaskKind,
    Mode,
    OnBreach,
    RowRules,
    SchemaPolicy,
    VersionChanges,
)

SCHEMA = table_schema({"id": "bigint", "name": "text"}, ["id"])
WIDER = table_schema({"id": "bigint", "name": "text", "city": "text"}, ["id"], version=2)
MERGES = Limits(rebuild_rows=1000)  # these tables are small, and every share of them is large


def row(key: int | None, name: str | None = "a") -> dict[str, Any]:
    return {"id": key, "name": name}


def at(version: int, log: str = "log-1") -> Checkpoint:
    return Checkpoint(log, version, Lsn(round(stamp(version).timestamp() * 1000)))


class Table:
    """A source, a destination, and what takes the one to the other."""

    def __init__(self, lake: Lake, shop: Shop | None = None, **target: Any) -> None:
        self.lake, self.shop = lake, shop or Shop()
        self.limits = target.pop("limits", MERGES)
        self.state = SyncState(SyncTarget(lake, self.shop, **target))
        self.quitting = threading.Event()
        self.restart()

    def restart(self) -> None:
        """As after a crash: nothing of what was in memory is left."""
        self.state = SyncState(self.state.target)
        self.sync = TableSync(self.state, self.limits, self.quitting)

    def catch_up(self) -> None:
        self.sync.catch_up()

    def assert_equal(self) -> None:
        assert self.shop.content == self.lake.versions[-1].content
        assert self.shop.at == at(len(self.lake.versions) - 1, self.lake.log_id)


def loaded(*rows: dict[str, Any], **target: Any) -> Table:
    """A table whose first load is over."""
    table = Table(Lake.of(SCHEMA, *rows), **target)
    table.catch_up()
    table.shop.calls.clear()
    table.lake.calls.clear()
    return table


# -- the first load --------------------------------------------------------------------------------


def test_the_first_load_is_pinned_and_nothing_that_lands_beside_it_is_lost_or_doubled() -> None:
    """Bug 3 of the usual recipe: the version is fixed before the rows are read."""
    table = Table(Lake.of(SCHEMA, row(1), row(2)))
    arrives = [lambda: table.lake.write(("insert", row(3)), ("delete", row(1)))]
    table.lake.before_read = lambda: arrives.pop()() if arrives else None
    table.catch_up()
    assert (table.shop.content, table.shop.at) == (content([row(1), row(2)]), at(0))
    table.catch_up()
    table.assert_equal()
    assert [how for how, *_ in table.shop.commits] == ["replace", "apply"]


def test_a_table_is_prepared_before_it_is_loaded_and_never_again() -> None:
    table = Table(Lake.of(SCHEMA, row(1)))
    table.catch_up()
    table.lake.write(("insert", row(2)))
    table.catch_up()
    assert table.shop.calls.count("prepare") == 1
    assert table.shop.calls.index("prepare") < table.shop.calls.index("replace")


def test_a_load_tells_how_far_it_is() -> None:
    table = Table(Lake.of(SCHEMA, *map(row, range(5))))
    phases: list[Phase] = []
    table.lake.before_read = lambda: phases.append(table.state.phase)
    table.catch_up()
    assert set(phases) == {Phase.LOADING}
    assert (table.state.copied_rows, table.state.expected_rows) == (5, 5)
    assert table.state.phase is Phase.STREAMING


def test_rows_without_a_key_are_parked_by_the_load_masked_like_the_others() -> None:
    rules = RowRules(masks={"name": Mask(MaskKind.REDACT)})
    table = Table(Lake.of(SCHEMA, row(1, "x"), row(None, "y")), rules=rules)
    table.catch_up()
    (parked,) = table.shop.parked
    assert (parked.code, parked.rows.to_pylist()) == ("null_key", [row(None, "***")])
    assert table.shop.content == content([row(1, "***")])


def test_more_rows_without_a_key_than_the_quarantine_takes_stop_the_load() -> None:
    table = Table(Lake.of(SCHEMA, row(1), *[row(None)] * 3), delivery=Delivery(quarantine_rows=2))
    with pytest.raises(QuarantineFullError):
        table.catch_up()
    assert not table.shop.commits


def test_newest_by_decides_between_rows_of_one_key_in_the_load() -> None:
    rows = [row(1, "old"), row(2, "b"), row(1, "new"), row(2, "b"), row(3, "z")]
    table = Table(Lake.of(SCHEMA, *rows), rules=RowRules(newest_by="name"))
    table.catch_up()
    assert table.shop.content == content([row(1, "old"), row(2, "b"), row(3, "z")])
    assert not table.shop.parked


def test_a_stop_cuts_a_load_short_and_leaves_the_destination_as_it_was() -> None:
    table = Table(Lake.of(SCHEMA, row(1), row(2)))
    table.lake.before_read = table.quitting.set
    with pytest.raises(CopyStoppedError):
        table.catch_up()
    assert table.shop.at is None
    table.quitting.clear()
    table.lake.before_read = lambda: None
    table.restart()
    table.catch_up()
    table.assert_equal()


# -- version after version -------------------------------------------------------------------------


def test_versions_arrive_together_with_the_checkpoint_of_the_last() -> None:
    table = loaded(row(1))
    table.lake.write(("insert", row(2)))
    table.lake.write(("update_preimage", row(2)), ("update_postimage", row(3)))
    table.lake.write(("delete", row(1)))
    table.catch_up()
    table.assert_equal()
    assert [c for _, c, _ in table.shop.commits] == [at(0), at(3)]
    assert table.shop.commit_ts == [stamp(3)]


def test_batches_hold_whole_versions_only() -> None:
    """DESIGN §13, invariant 11: a reader of the destination sees whole versions."""
    table = loaded(row(1), limits=replace(MERGES, batch_rows=2))
    for keys in ((2, 3, 4), (5,), (6,), (7, 8)):
        table.lake.write(*[("insert", row(key)) for key in keys])
    table.catch_up()
    assert [c.commit for _, c, _ in table.shop.commits] == [0, 1, 3, 4]
    assert [left for *_, left in table.shop.commits] == [
        table.lake.versions[n].content for n in (0, 1, 3, 4)
    ]


def test_versions_that_are_more_than_may_be_held_are_halved() -> None:
    """DESIGN §13, invariant 10: what was estimated too low is found while it is read."""
    table = loaded(row(1), limits=replace(MERGES, merge_rows=3))
    for key in range(2, 8):
        table.lake.write(("insert", row(key)))
    table.catch_up()
    table.assert_equal()
    assert [c.commit for _, c, _ in table.shop.commits] == [0, 3, 6]


def test_a_version_larger_than_may_be_held_is_loaded_instead() -> None:
    """DESIGN §13, invariant 10."""
    table = loaded(row(1), limits=replace(MERGES, merge_rows=3))
    table.lake.write(*[("insert", row(key)) for key in range(2, 8)])
    table.lake.write(("insert", row(9)))
    table.catch_up()
    table.assert_equal()
    assert [how for how, *_ in table.shop.commits] == ["replace", "replace"]
    assert "too large to be merged" in (table.state.notice or "")


def test_a_large_share_of_changed_rows_is_loaded_instead() -> None:
    few = Limits(rebuild_rows=2)
    table = loaded(*map(row, range(10)), limits=few, delivery=Delivery(rebuild_above=0.3))
    table.lake.write(*[("insert", row(key)) for key in (20, 21, 22)])
    table.catch_up()
    assert [how for how, *_ in table.shop.commits] == ["replace", "apply"]
    table.lake.write(*[("insert", row(key)) for key in (30, 31, 32, 33, 34)])
    table.catch_up()
    assert [how for how, *_ in table.shop.commits] == ["replace", "apply", "replace"]
    assert table.state.notice == "built anew as of version 2: 5 rows changed of 13"
    table.assert_equal()


def test_versions_without_changes_move_the_checkpoint() -> None:
    """Compaction by the source must not let our place fall out of its log."""
    table = loaded(row(1))
    table.lake.write()
    table.catch_up()
    assert table.shop.at == at(1)


def test_nothing_new_asks_the_destination_for_nothing() -> None:
    table = loaded(row(1))
    table.catch_up()
    assert len(table.shop.commits) == 1
    assert "plan" not in table.lake.calls


def test_duplicate_key_in_source_is_parked_and_the_others_are_applied() -> None:
    table = loaded(row(1))
    table.lake.write(("insert", row(2, "x")), ("insert", row(2, "y")), ("insert", row(3)))
    table.catch_up()
    assert table.shop.content == content([row(1), row(3)])
    (parked,) = table.shop.parked
    assert (parked.code, parked.rows.num_rows) == ("duplicate_key", 2)


def test_rules_are_applied_to_loads_and_changes_alike() -> None:
    rules = RowRules(where="name <> 'secret'", rename={"name": "label"})
    table = loaded(row(1), row(2, "secret"), rules=rules)
    table.lake.write(("update_preimage", row(1)), ("update_postimage", row(1, "secret")))
    table.lake.write(("insert", row(3, "b")))
    table.catch_up()
    assert table.shop.content == content([{"id": 3, "label": "b"}])


def test_expectations_are_counted_over_the_whole_run() -> None:
    rules = RowRules(expectations=(Expectation("short", "length(name) < 3"),))
    table = loaded(row(1, "long"), row(2), rules=rules)
    table.lake.write(("insert", row(3, "long")), schema=SCHEMA)
    table.lake.write(("insert", {**row(4, "long"), "city": "x"}), schema=WIDER)
    table.catch_up()
    count = table.state.counts["short"]
    assert (count.checked, count.breaches) == (4, 3)
    assert table.state.describe()["expectations"] == {"short": {"checked": 4, "breaches": 3}}


def test_an_expectation_that_fails_stops_the_table_before_the_version() -> None:
    rules = RowRules(expectations=(Expectation("short", "length(name) < 3", OnBreach.FAIL),))
    table = loaded(row(1), rules=rules)
    table.lake.write(("insert", row(2, "long")))
    with pytest.raises(ExpectationFailedError):
        table.catch_up()
    assert (table.shop.content, table.shop.at) == (content([row(1)]), at(0))


def test_a_table_that_was_brought_back_is_left_alone_until_a_resync() -> None:
    table = loaded(row(1))
    table.shop.holding = "undone by somebody"
    table.lake.write(("insert", row(2)))
    table.catch_up()
    assert (table.state.phase, table.state.notice) == (Phase.HELD, "undone by somebody")
    assert table.shop.content == content([row(1)])
    table.restart()
    table.state.resync = True
    table.catch_up()
    table.assert_equal()
    assert table.shop.holding is None
    assert not table.state.resync


def test_a_resync_builds_anew_what_stands() -> None:
    table = loaded(row(1))
    table.shop.rows[("2",)] = row(2, "put there by somebody")
    table.state.resync = True
    table.catch_up()
    table.assert_equal()
    assert "prepare" in table.shop.calls  # it may have been dropped, which is why one is asked for
    table.catch_up()
    assert len(table.shop.commits) == 2


def test_what_is_behind_is_told_in_versions_and_seconds() -> None:
    table = loaded(row(1))
    assert (table.state.lag_versions, table.state.lag_seconds) == (0, 0.0)
    for key in (2, 3, 4):
        table.lake.write(("insert", row(key)))
    table.shop.faults = {"apply": [DestinationUnavailableError("down")]}
    with pytest.raises(DestinationUnavailableError):
        table.catch_up()
    assert table.state.lag_versions == 3
    assert table.state.behind_since == stamp(1)
    assert table.state.lag_seconds > timedelta(days=1).total_seconds()
    told = table.state.describe(applied_before=100)
    assert (told["version"], told["head"], told["lag_versions"]) == (0, 3, 3)
    assert told["rows_applied"] == 101


# -- schema changes --------------------------------------------------------------------------------


def widened(policy: SchemaPolicy, **target: Any) -> Table:
    """A column comes in version 2, with rows before and after it still to be applied."""
    table = loaded(row(1), delivery=Delivery(schema_policy=policy), **target)
    table.lake.write(("insert", row(2)))
    table.lake.write(("insert", {**row(3), "city": "x"}), schema=WIDER)
    table.lake.write(("delete", {**row(1), "city": None}))
    return table


def test_a_schema_change_in_the_middle_of_a_range_is_followed_between_its_versions() -> None:
    """DESIGN §13, invariant 8."""
    table = widened(SchemaPolicy.EVOLVE)
    table.catch_up()
    table.assert_equal()
    assert [c.commit for _, c, _ in table.shop.commits] == [0, 1, 3]
    done = [c for c in table.shop.calls if c in ("apply", "evolve")]
    assert done == ["apply", "evolve", "apply"]


def test_freeze_applies_what_comes_before_the_change_and_stops() -> None:
    table = widened(SchemaPolicy.FREEZE)
    with pytest.raises(UnsupportedSchemaChangeError, match=r"city came in version 2") as stopped:
        table.catch_up()
    assert table.shop.at == at(1)
    assert "headrace resync public.t" in stopped.value.hint


def test_freeze_stops_after_a_restart_too() -> None:
    table = widened(SchemaPolicy.FREEZE)
    for _ in range(2):
        table.restart()
        with pytest.raises(UnsupportedSchemaChangeError):
            table.catch_up()
    assert table.shop.at == at(1)


def test_resync_builds_anew_where_the_schema_changes() -> None:
    table = widened(SchemaPolicy.RESYNC)
    table.catch_up()
    table.assert_equal()
    assert [how for how, *_ in table.shop.commits] == ["replace", "apply", "replace"]
    assert "city came" in (table.state.notice or "")


def test_a_column_that_is_not_chosen_changes_nothing() -> None:
    table = widened(SchemaPolicy.FREEZE, rules=RowRules(include=("id", "name")))
    table.catch_up()
    assert table.shop.at == at(3)


def test_a_change_that_the_destination_cannot_follow_stops_the_table() -> None:
    table = widened(SchemaPolicy.EVOLVE)
    table.shop.refuses = lambda schema: UnsupportedSchemaChangeError("no", hint="headrace resync")
    with pytest.raises(UnsupportedSchemaChangeError):
        table.catch_up()
    assert table.shop.at == at(1)


# -- append ----------------------------------------------------------------------------------------


def test_append_keeps_every_change_and_begins_with_the_rows_that_there_were() -> None:
    table = loaded(row(1), mode=Mode.APPEND)
    table.lake.write(("update_preimage", row(1)), ("update_postimage", row(1, "b")))
    table.lake.write(("delete", row(1, "b")))
    table.catch_up()
    told = [(r["_commit_version"], r["_change_type"], r["name"]) for r in table.shop.rows.values()]
    assert told == [
        (0, "insert", "a"),
        (1, "update_preimage", "a"),
        (1, "update_postimage", "b"),
        (2, "delete", "b"),
    ]


def test_append_is_never_built_anew_for_the_number_of_changes() -> None:
    tiny = Limits(batch_rows=1, merge_rows=1, merge_bytes=1, rebuild_rows=0)
    table = loaded(row(1), mode=Mode.APPEND, limits=tiny)
    table.lake.write(*[("insert", row(key)) for key in range(2, 9)])
    table.lake.write(("delete", row(1)), ("delete", row(2)))
    table.catch_up()
    assert [how for how, *_ in table.shop.commits] == ["replace", "apply", "apply"]
    assert len(table.shop.rows) == 1 + 7 + 2


# -- crashes ---------------------------------------------------------------------------------------

LOST = DestinationUnavailableError("the connection was lost")
GONE = SourceUnavailableError("the storage does not answer")
READS = ("head", "rows", "read", "plan", "changes")
FOLLOWING = ("standing", "evolve", "apply", "apply.done", "head", "plan", "changes")


def insist(table: Table) -> int:
    """Try until it succeeds, as a new process each time; how often it failed."""
    for failures in range(10):
        try:
            table.catch_up()
        except (DestinationUnavailableError, SourceUnavailableError):
            table.restart()
        else:
            return failures
    raise AssertionError("it fails for ever")


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("step", FOLLOWING)
def test_whatever_step_fails_each_version_is_applied_once(
    step: str, times: int, mode: Mode
) -> None:
    """DESIGN §13, invariant 3: also where the step was done and only the answer was lost.

    Bug 8 of the usual recipe: an error is never swallowed, and the position never passes it.
    """
    table = loaded(row(1), mode=mode, limits=replace(MERGES, batch_rows=1))
    for key in (2, 3):
        table.lake.write(("insert", row(key)))
    for key in (4, 5):
        table.lake.write(("insert", {**row(key), "city": "x"}), schema=WIDER)
    place, fault = (table.lake, GONE) if step in READS else (table.shop, LOST)
    place.faults = {step: [fault] * times}
    assert insist(table) == times
    assert [c.commit for _, c, _ in table.shop.commits] == [0, 1, 2, 3, 4]
    assert sorted(r["id"] for r in table.shop.rows.values()) == [1, 2, 3, 4, 5]


def test_the_first_load_whose_answer_was_lost_is_not_made_twice() -> None:
    table = Table(Lake.of(SCHEMA, row(1)))
    table.shop.faults = {"replace.done": [LOST]}
    with pytest.raises(DestinationUnavailableError):
        table.catch_up()
    table.restart()
    table.catch_up()
    assert [how for how, *_ in table.shop.commits] == ["replace"]
    table.assert_equal()


@pytest.mark.parametrize("step", ["standing", "prepare", "replace", "rows", "read", "head"])
def test_a_first_load_that_failed_is_made_again_from_nothing(step: str) -> None:
    table = Table(Lake.of(SCHEMA, row(1), row(2)))
    place = table.lake if step in READS else table.shop
    place.faults = {step: [LOST]}
    with pytest.raises(DestinationUnavailableError):
        table.catch_up()
    assert table.shop.at is None
    table.restart()
    table.catch_up()
    table.assert_equal()


# -- grouping --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "grouped"),
    [
        ([], []),
        ([5], [[5]]),
        ([20, 1], [[20], [1]]),
        ([4, 6, 1], [[4, 6], [1]]),
        ([0, 0, 10, 0], [[0, 0, 10, 0]]),
        ([1, 20, 1], [[1], [20], [1]]),
    ],
)
def test_versions_are_grouped_up_to_a_number_of_rows(
    rows: list[int], grouped: list[list[int]]
) -> None:
    versions = [VersionChanges(number, stamp(number), count) for number, count in enumerate(rows)]
    made = list(batches(versions, 10))
    assert [[version.rows for version in batch] for batch in made] == grouped
    assert [version for batch in made for version in batch] == versions
