"""Tables whose changes the feed can no longer tell: found out otherwise, built anew, or stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from change_samples import content, table_schema
from simulated_lake import Lake, Shop, Version
from test_sync_table import LOST, MERGES, SCHEMA, WIDER, Table, at, insist, loaded, row

from headrace.engine.sync_state import Limits, SyncState, digest
from headrace.errors import (
    HistoryLostError,
    UnsupportedSchemaChangeError,
)
from headrace.model import (
    Delivery,
    FileDiff,
    Loss,
    LossKind,
    Mask,
    MaskKind,
    Mode,
    RowRules,
    SchemaPolicy,
)

CLEANED = Loss(LossKind.LOG_CLEANED, "the log of version 1 is gone", "raise the retention")


def changed(**target: Any) -> Table:
    """Rows 1 to 4; since then 2 was changed, 3 went, 5 came, and nobody can tell."""
    table = loaded(row(1), row(2), row(3), row(4), **target)
    table.lake.write(
        ("update_preimage", row(2)),
        ("update_postimage", row(2, "new")),
        ("delete", row(3)),
        ("insert", row(5)),
    )
    table.lake.loss = CLEANED
    table.lake.calls.clear()
    return table


def files(table: Table, *, removed: bool = True) -> None:
    """Let the source tell which files came and went: 1 and 4 lie with others in files of theirs."""
    lake = table.lake
    keys = table_schema({"id": "bigint"}, ["id"])

    def diff(_after: int, _to: int) -> FileDiff:
        added = (lake.part(SCHEMA, [row(1), row(2, "new")]), lake.part(SCHEMA, [row(5)]))
        gone = (lake.part(keys, [{"id": 1}, {"id": 2}, {"id": 3}]),)
        every = (lake.part(keys, [{"id": r["id"]} for r in lake.rows_now]),)
        return FileDiff(added, gone if removed else None, every, 6)

    lake.diff = diff


def applied(table: Table) -> list[str]:
    return [how for how, *_ in table.shop.commits]


@pytest.mark.parametrize("kind", LossKind)
def test_a_lost_history_is_made_up_by_comparing_files_and_told(kind: LossKind) -> None:
    table = changed()
    table.lake.loss = replace(CLEANED, kind=kind)
    files(table)
    table.catch_up()
    table.assert_equal()
    assert applied(table) == ["replace", "apply"]
    assert table.state.notice == (
        "the log of version 1 is gone; caught up with version 1 by comparing files"
    )
    assert "rows" not in table.lake.calls


def test_where_removed_files_are_vacuumed_keys_tell_what_has_gone() -> None:
    table = changed()
    files(table, removed=False)
    table.catch_up()
    table.assert_equal()
    assert applied(table) == ["replace", "apply"]


def test_keys_that_are_masked_and_renamed_are_found_gone_too() -> None:
    rules = RowRules(rename={"id": "no"}, masks={"id": Mask(MaskKind.SHA256)})
    schema = table_schema({"id": "text", "name": "text"}, ["id"])
    keys = table_schema({"id": "text"}, ["id"])
    rows = [{"id": key, "name": "a"} for key in "xyz"]
    table = Table(Lake.of(schema, *rows), rules=rules)
    table.catch_up()
    table.lake.write(("delete", rows[0]))
    table.lake.loss = CLEANED
    every = table.lake.part(keys, [{"id": "y"}, {"id": "z"}])
    table.lake.diff = lambda after, to: FileDiff((), None, (every,), 0)
    before = dict(table.shop.rows)
    table.catch_up()
    assert applied(table) == ["replace", "apply"]
    assert list(table.shop.rows) == list(before)[1:]


def test_without_files_all_rows_are_compared_and_only_the_different_ones_applied() -> None:
    table = changed()
    table.catch_up()
    table.assert_equal()
    assert applied(table) == ["replace", "apply"]
    assert "comparing all rows" in (table.state.notice or "")
    assert table.state.applied_rows == 4 + 3  # the load; then 2 and 5 put, and 3 deleted


def test_too_many_rows_to_compare_are_loaded_instead() -> None:
    table = changed(limits=replace(MERGES, diff_rows=7))
    table.catch_up()
    table.assert_equal()
    assert applied(table) == ["replace", "replace"]
    assert table.state.notice == (
        "built anew as of version 1: the log of version 1 is gone; too many rows to compare"
    )


def test_more_differences_than_are_worth_a_merge_are_loaded_instead() -> None:
    table = changed(limits=Limits(rebuild_rows=2), delivery=Delivery(rebuild_above=0.5))
    table.catch_up()
    table.assert_equal()
    assert applied(table) == ["replace", "replace"]


def test_files_that_are_more_than_may_be_held_are_not_read() -> None:
    table = changed(limits=replace(MERGES, merge_rows=5))
    files(table)
    table.catch_up()
    table.assert_equal()
    assert "comparing all rows" in (table.state.notice or "")


@pytest.mark.parametrize("by_files", [True, False])
def test_healing_goes_through_the_rules(by_files: bool) -> None:
    table = changed(rules=RowRules(where="id <> 2", masks={"name": Mask(MaskKind.REDACT)}))
    if by_files:
        files(table)
    table.catch_up()
    assert table.shop.content == content([row(key, "***") for key in (1, 4, 5)])
    assert table.shop.at == at(1)


@pytest.mark.parametrize("by_files", [True, False])
def test_duplicate_key_in_source_is_parked_by_healing_and_its_row_left_alone(
    by_files: bool,
) -> None:
    table = loaded(row(1), row(2))
    table.lake.versions.append(Version(SCHEMA, (row(1, "x"), row(1, "y"), row(2), row(3))))
    table.lake.loss = CLEANED
    if by_files:
        added = table.lake.part(SCHEMA, [row(1, "x"), row(1, "y"), row(3)])
        table.lake.diff = lambda after, to: FileDiff((added,), (), (), 3)
    table.catch_up()
    assert table.shop.content == content([row(1), row(2), row(3)])
    (parked,) = table.shop.parked
    assert (parked.code, parked.rows.num_rows) == ("duplicate_key", 2)


def test_after_healing_the_feed_is_followed_again() -> None:
    table = changed()
    table.catch_up()
    table.lake.loss = None
    table.lake.write(("delete", row(4)))
    table.catch_up()
    table.assert_equal()
    assert applied(table) == ["replace", "apply", "apply"]


def test_feed_toggled_off_and_on_is_healed_once() -> None:
    table = changed()
    table.lake.loss = Loss(LossKind.FEED_OFF, "the feed was off from version 1 to 1")
    table.catch_up()
    table.lake.loss = None
    table.lake.write(("insert", row(9)))
    table.catch_up()
    table.assert_equal()
    assert table.lake.calls.count("file_diff") == 1


# -- tables that are other tables now --------------------------------------------------------------


def test_a_replaced_table_is_compared_and_its_versions_counted_anew() -> None:
    table = loaded(row(1), row(2))
    for key in (3, 4, 5):
        table.lake.write(("insert", row(key)))
    table.catch_up()
    table.lake.versions[:] = [Version(SCHEMA, (row(1), row(7)))]
    table.lake.log_id, table.lake.loss = "log-2", Loss(LossKind.REPLACED, "another table")
    table.catch_up()
    table.assert_equal()
    assert applied(table)[-1] == "apply"
    assert (table.state.version, table.state.lag_versions) == (0, 0)


def test_a_table_that_went_back_in_its_own_log_is_built_anew() -> None:
    """An apply at or before the checkpoint of its log does nothing."""
    table = loaded(row(1))
    table.lake.write(("insert", row(2)))
    table.lake.write(("insert", row(3)))
    table.catch_up()
    del table.lake.versions[2:]
    table.lake.loss = Loss(LossKind.REPLACED, "version 2 was applied, and there are 1")
    table.catch_up()
    table.assert_equal()
    assert applied(table)[-1] == "replace"


def test_delete_by_deletion_vector_then_restore_is_found_by_comparing() -> None:
    table = loaded(row(1), row(2), row(3))
    table.lake.write(("delete", row(2)))
    table.catch_up()
    table.lake.write(("insert", row(2)))
    table.lake.loss = Loss(LossKind.RESTORED, "version 2 restored version 0")
    table.catch_up()
    table.assert_equal()


@pytest.mark.parametrize(
    "faults", [{}, {"evolve": [LOST]}, {"evolve": [LOST] * 2, "apply": [LOST]}]
)
def test_a_loss_with_a_schema_change_lets_the_destination_follow_first(
    faults: dict[str, list[Exception]],
) -> None:
    table = changed()
    table.lake.write(("insert", {**row(6), "city": "x"}), schema=WIDER)
    table.shop.faults = {step: list(errors) for step, errors in faults.items()}
    assert insist(table) == sum(map(len, faults.values()))
    table.assert_equal()
    assert applied(table) == ["replace", "apply"]


def test_a_loss_with_a_change_that_cannot_be_followed_builds_anew() -> None:
    table = changed()
    table.lake.write(("insert", {**row(6), "city": "x"}), schema=WIDER)
    table.shop.refuses = lambda schema: UnsupportedSchemaChangeError("cannot follow")
    table.catch_up()
    table.assert_equal()
    assert applied(table) == ["replace", "replace"]
    assert "cannot follow" in (table.state.notice or "")


def test_a_loss_with_a_schema_change_stops_a_frozen_table() -> None:
    table = changed(delivery=Delivery(schema_policy=SchemaPolicy.FREEZE))
    table.lake.write(("insert", {**row(6), "city": "x"}), schema=WIDER)
    with pytest.raises(UnsupportedSchemaChangeError):
        table.catch_up()
    assert applied(table) == ["replace"]


def test_a_table_without_a_key_is_built_anew() -> None:
    schema = replace(SCHEMA, key=())
    table = Table(Lake.of(schema, row(1), row(1)))
    table.catch_up()
    table.lake.write(("delete", row(1)))
    table.lake.loss = CLEANED
    table.catch_up()
    table.assert_equal()
    assert applied(table) == ["replace", "replace"]


def test_a_lost_history_stops_a_table_that_keeps_every_change() -> None:
    table = loaded(row(1), mode=Mode.APPEND)
    table.lake.write(("insert", row(2)))
    table.lake.loss = CLEANED
    with pytest.raises(HistoryLostError, match="the log of version 1 is gone") as lost:
        table.catch_up()
    assert "headrace resync public.t" in lost.value.hint
    assert "raise the retention" in lost.value.hint
    assert applied(table) == ["replace"]
    table.restart()
    table.state.resync = True
    table.catch_up()
    assert applied(table) == ["replace", "replace"]
    assert [r["id"] for r in table.shop.rows.values()] == [1, 2]


# -- rules that changed ----------------------------------------------------------------------------


def with_rules(table: Table, rules: RowRules, **target: Any) -> Table:
    """A later run, of a file in which the rules were edited."""
    return Table(table.lake, table.shop, rules=rules, **target)


def test_rules_that_changed_reach_the_rows_that_stand() -> None:
    table = loaded(row(1, "x"), row(2, "secret"))
    table.lake.write(("insert", row(3)))
    again = with_rules(table, RowRules(where="name <> 'secret'"))
    files(again)
    again.catch_up()
    assert again.shop.content == content([row(1, "x"), row(3)])
    assert applied(again) == ["replace", "apply"]
    again.restart()
    again.catch_up()
    assert applied(again) == ["replace", "apply"]


def test_rules_that_changed_reach_a_source_that_rests() -> None:
    table = loaded(row(1, "x"))
    again = with_rules(table, RowRules(masks={"name": Mask(MaskKind.REDACT)}))
    again.catch_up()
    assert again.shop.content == content([row(1, "***")])
    assert "rules of the table changed" in (again.state.notice or "")
    again.catch_up()
    assert applied(again) == ["replace", "replace"]


def test_rules_that_changed_leave_appended_rows_as_they_are_and_say_so() -> None:
    table = loaded(row(1, "x"), mode=Mode.APPEND)
    table.lake.write(("insert", row(2, "y")))
    masked = RowRules(masks={"name": Mask(MaskKind.REDACT)})
    again = with_rules(table, masked, mode=Mode.APPEND)
    again.catch_up()
    assert [r["name"] for r in again.shop.rows.values()] == ["x", "***"]
    assert "stay as they are" in (again.state.notice or "")


def test_the_digest_of_rules_does_not_tell_the_order_in_the_file() -> None:
    one = RowRules(rename={"a": "b", "c": "d"})
    two = RowRules(rename={"c": "d", "a": "b"})
    assert digest(one, Delivery()) == digest(two, Delivery()) != digest(RowRules(), Delivery())


def test_the_digest_of_rules_tells_another_secret() -> None:
    """Old rows under one, new ones under another would never be joined."""
    one, two = (RowRules(masks={"x": Mask(MaskKind.HMAC, key=key)}) for key in ("s3cret", "other"))
    assert digest(one, Delivery()) != digest(two, Delivery())


# -- crashes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["standing", "apply", "apply.done", "read"])
@pytest.mark.parametrize("by_files", [True, False])
def test_healing_that_fails_at_any_step_is_done_once(step: str, by_files: bool) -> None:
    """DESIGN §13, invariant 3."""
    table = changed()
    if by_files:
        files(table, removed=False)
    table.shop.faults = {step: [LOST]}
    assert insist(table) == 1
    table.assert_equal()
    assert applied(table) == ["replace", "apply"]


def test_state_tells_all_of_it_as_json() -> None:
    table = changed()
    table.catch_up()
    told = table.state.describe()
    assert told["notice"] == table.state.notice
    fresh = SyncState(table.state.target).describe()
    assert set(fresh) == set(told)


def test_a_shop_that_stands_elsewhere_is_compared_as_it_is() -> None:
    """The rows that stand need not be those of the version that they are said to be."""
    shop = Shop()
    shop.put(SCHEMA, at(0, "log-0"), row(1, "else"), row(9))
    table = Table(Lake.of(SCHEMA, row(1), row(2)), shop)
    table.lake.loss = Loss(LossKind.REPLACED, "another table")
    table.catch_up()
    table.assert_equal()
    assert applied(table) == ["apply"]


def test_columns_in_another_order_are_no_change() -> None:
    table = loaded(row(1), delivery=Delivery(schema_policy=SchemaPolicy.FREEZE))
    table.lake.write(("insert", row(2)), schema=replace(SCHEMA, columns=SCHEMA.columns[::-1]))
    table.catch_up()
    assert table.shop.at == at(1)
