"""A user's rules applied to changes and to loads: no row, key or value goes another way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.engine.judging import RuleCount
from headrace.engine.transform import BATCH_ROWS, Transform
from headrace.errors import (
    ConfigError,
    ExpectationFailedError,
    HeadraceError,
    QuarantineFullError,
    RuleError,
)
from headrace.model import (
    FEED_COLUMNS,
    Column,
    Expectation,
    Fill,
    Mask,
    MaskKind,
    NetChanges,
    OnBreach,
    Rejected,
    RowPart,
    RowRules,
    TableId,
    TableSchema,
)

COLUMNS = (
    Column("id", pa.int64(), "bigint", 1),
    Column("email", pa.string(), "string", 2),
    Column("age", pa.int32(), "int", 3),
    Column("notes", pa.string(), "string", 5),
)
PEOPLE = TableSchema(TableId("crm", "people"), 7, COLUMNS, ("id",))
EVENTS = TableSchema(TableId("crm", "people"), 7, COLUMNS)
ADULT = Expectation("adult", "age >= 18", OnBreach.QUARANTINE)
SHA256 = Mask(MaskKind.SHA256)
# printf 1 | sha256sum, and so on
SHA_OF_1 = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
SHA_OF_2 = "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"

Row = dict[str, Any]


def person(key: int, age: int | None = 30, email: str | None = "a@b", notes: str = "-") -> Row:
    return {"id": key, "email": email, "age": age, "notes": notes}


def table(rows: Iterable[Row], schema: TableSchema = PEOPLE) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema.arrow())


def keys(*values: int) -> pa.Table:
    return table(map(person, values)).select(["id"])


def net(upserts: Iterable[Row] = (), deletes: Sequence[int] = (), **more: Any) -> NetChanges:
    return NetChanges(PEOPLE, table(upserts), keys(*deletes), **more)


def part(*rows: Row) -> RowPart:
    return RowPart(lambda: iter(table(rows).to_batches()), len(rows))


def read(parts: Sequence[RowPart]) -> list[Row]:
    return [row for part in parts for batch in part.read() for row in batch.to_pylist()]


def refusal(rules: RowRules, schema: TableSchema = PEOPLE, **more: Any) -> HeadraceError:
    with pytest.raises(ConfigError) as caught:
        Transform(rules, schema, **more)
    assert "crm.people" in caught.value.message
    assert caught.value.hint
    return caught.value


# -- without rules ---------------------------------------------------------------------------------


def test_without_rules_changes_and_parts_are_the_same_objects() -> None:
    transform = Transform(RowRules(), PEOPLE)
    changes, parts = net([person(1)]), [part(person(1))]
    assert transform.changes(changes) is changes
    same, rejected = transform.parts(parts)
    assert same is parts
    assert list(rejected()) == []
    assert transform.schema == PEOPLE
    assert transform.is_identity


# -- columns ---------------------------------------------------------------------------------------


def test_chosen_columns_keep_their_order_their_numbers_and_take_their_new_names() -> None:
    rules = RowRules(include=("notes", "id"), rename={"id": "person_id", "notes": "remarks"})
    transform = Transform(rules, PEOPLE)
    assert transform.schema == TableSchema(
        TableId("crm", "people"),
        7,
        (
            Column("person_id", pa.int64(), "bigint", 1),
            Column("remarks", pa.string(), "string", 5),
        ),
        ("person_id",),
    )
    changes = transform.changes(net([person(1)], [2]))
    assert changes.schema == transform.schema
    assert changes.upserts.to_pylist() == [{"person_id": 1, "remarks": "-"}]
    assert changes.deletes.to_pylist() == [{"person_id": 2}]


def test_names_can_be_exchanged() -> None:
    transform = Transform(RowRules(rename={"email": "notes", "notes": "email"}), PEOPLE)
    [row] = transform.changes(net([person(1, email="a@b", notes="n")])).upserts.to_pylist()
    assert row == {"id": 1, "notes": "a@b", "age": 30, "email": "n"}


def test_excluded_columns_never_arrive() -> None:
    transform = Transform(RowRules(exclude=("email", "age")), PEOPLE)
    assert transform.schema.names == ("id", "notes")
    parts, _ = transform.parts([part(person(1))])
    assert read(parts) == [{"id": 1, "notes": "-"}]


def test_the_feeds_columns_are_always_kept_and_rules_can_use_them() -> None:
    feed = tuple(Column(field.name, field.type, "") for field in FEED_COLUMNS)
    schema = TableSchema(PEOPLE.table, 7, (*COLUMNS, *feed))
    rules = RowRules(include=("id",), where="_change_type <> 'update_preimage'")
    transform = Transform(rules, schema)
    assert transform.schema.names == ("id", *(field.name for field in FEED_COLUMNS))
    rows = [
        {**person(1), "_change_type": "update_preimage", "_commit_version": 4},
        {**person(2), "_change_type": "update_postimage", "_commit_version": 4},
    ]
    changes = transform.changes(NetChanges(schema, table(rows, schema), table([], schema)))
    assert changes.upserts.column("id").to_pylist() == [2]


def test_what_older_rows_have_in_a_new_column_is_masked_and_renamed_too() -> None:
    missing = {"notes": pa.scalar("1"), "age": pa.scalar(3, pa.int32())}
    schema = TableSchema(PEOPLE.table, 8, COLUMNS, ("id",), missing=missing)
    rules = RowRules(exclude=("age",), rename={"notes": "n"}, masks={"notes": SHA256})
    assert Transform(rules, schema).schema.missing == {"n": pa.scalar(SHA_OF_1)}


@pytest.mark.parametrize(
    ("rules", "said", "hint"),
    [
        (RowRules(include=("id", "emial")), "columns", "did you mean email?"),
        (RowRules(exclude=("emial",)), "columns", "did you mean email?"),
        (RowRules(rename={"emial": "x"}), "rename", "did you mean email?"),
        (RowRules(masks={"emial": SHA256}), "mask", "did you mean email?"),
        (RowRules(newest_by="agee"), "newest_by", "did you mean age?"),
        (RowRules(include=("email",)), "id is part of the key, but include leaves it out", "key"),
        (RowRules(exclude=("id",)), "id is part of the key, but exclude names it", "key"),
        (RowRules(rename={"email": "notes"}), "email and notes would both be notes", "exclude"),
        (RowRules(masks={"id": Mask(MaskKind.REDACT)}), "id is part of the key", "sha256 or hmac"),
        (RowRules(masks={"id": Mask(MaskKind.NULL)}), "id is part of the key", "sha256 or hmac"),
        (
            RowRules(masks={"id": Mask(MaskKind.TRUNCATE, length=1)}),
            "id is part of the key",
            "sha256 or hmac",
        ),
    ],
)
def test_rules_that_do_not_fit_the_table_are_refused_before_any_row(
    rules: RowRules, said: str, hint: str
) -> None:
    error = refusal(rules)
    assert said in error.message
    assert hint in error.hint


def test_a_table_without_columns_is_refused() -> None:
    assert "none is left" in refusal(RowRules(include=()), EVENTS).message


# -- masks -----------------------------------------------------------------------------------------


def test_a_masked_key_is_masked_in_deletes_and_fills_and_of_rows_that_leave() -> None:
    rules = RowRules(masks={"id": SHA256}, rename={"id": "who"}, where="age > 18")
    transform = Transform(rules, PEOPLE)
    assert transform.schema.columns[0] == Column("who", pa.string(), "text", 1)
    changes = transform.changes(net([person(1, age=3)], [2]))
    assert changes.upserts.num_rows == 0
    assert changes.deletes.to_pylist() == [{"who": SHA_OF_2}, {"who": SHA_OF_1}]
    assert transform.keys(keys(1)).to_pylist() == [{"who": SHA_OF_1}]


def test_rules_see_values_before_they_are_masked_and_under_their_old_names() -> None:
    rules = RowRules(
        masks={"email": Mask(MaskKind.REDACT)},
        rename={"email": "mail"},
        where="email = 'a@b'",
        expectations=(Expectation("at", "email LIKE '%@%'", OnBreach.FAIL),),
    )
    changes = Transform(rules, PEOPLE).changes(net([person(1), person(2, email="c")]))
    assert [row["mail"] for row in changes.upserts.to_pylist()] == ["***"]


def test_a_column_masked_by_null_keeps_its_type() -> None:
    transform = Transform(RowRules(masks={"age": Mask(MaskKind.NULL)}), PEOPLE)
    assert transform.schema == PEOPLE
    assert not transform.is_identity
    assert transform.changes(net([person(1)])).upserts.column("age").to_pylist() == [None]


# -- where -----------------------------------------------------------------------------------------


def test_a_row_that_no_longer_passes_leaves_the_destination() -> None:
    transform = Transform(RowRules(where="age >= 18"), PEOPLE)
    changes = transform.changes(net([person(1), person(2, age=3), person(3, age=None)], [4]))
    assert changes.upserts.to_pylist() == [person(1)]
    assert changes.deletes.to_pylist() == [{"id": 4}, {"id": 2}, {"id": 3}]


def test_a_truncate_stays_one() -> None:
    assert Transform(RowRules(where="age > 1"), PEOPLE).changes(net(truncate=True)).truncate


def test_a_load_holds_only_rows_that_pass() -> None:
    transform = Transform(RowRules(where="age >= 18"), PEOPLE)
    parts, rejected = transform.parts([part(person(1), person(2, age=3)), part(person(3, age=1))])
    assert read(parts) == [person(1)]
    assert list(rejected()) == []


def test_deletes_of_a_table_without_a_key_take_away_only_what_was_applied() -> None:
    """Invariant 4: of rows (1, 30) and (1, 3) that are equal in `id` only one was ever applied."""
    rules = RowRules(include=("id",), where="age >= 18")
    transform = Transform(rules, EVENTS)
    gone = table([person(1, age=3), person(2)], EVENTS)
    changes = transform.changes(NetChanges(EVENTS, table([person(5, age=3)], EVENTS), gone))
    assert changes.deletes.to_pylist() == [{"id": 2}]
    assert changes.upserts.num_rows == 0


def test_rows_that_netting_rejected_are_masked_and_left_out_where_nobody_wants_them() -> None:
    rules = RowRules(where="age >= 18", masks={"email": Mask(MaskKind.REDACT)})
    twins = Rejected(table([person(1), person(1, age=3)]), "duplicate_key", "two rows")
    unwanted = Rejected(table([person(2, age=3)]), "null_key", "no key")
    changes = Transform(rules, PEOPLE).changes(net(rejected=(twins, unwanted)))
    [rejected] = changes.rejected
    assert (rejected.code, rejected.reason) == ("duplicate_key", "two rows")
    assert rejected.rows.to_pylist() == [person(1, email="***")]


# -- expectations ----------------------------------------------------------------------------------


def test_a_warning_counts_and_changes_nothing() -> None:
    rules = RowRules(expectations=(Expectation("adult", "age >= 18"),))
    transform = Transform(rules, PEOPLE)
    rows = [person(1), person(2, age=3), person(3, age=None)]
    changes = transform.changes(net(rows))
    assert changes.upserts.to_pylist() == rows
    assert changes.rejected == ()
    assert transform.counts == {"adult": RuleCount(checked=3, breaches=1)}


def test_only_rows_that_pass_where_are_judged() -> None:
    rules = RowRules(where="email IS NOT NULL", expectations=(ADULT,))
    transform = Transform(rules, PEOPLE)
    changes = transform.changes(net([person(1, age=3, email=None), person(2, age=4)]))
    assert transform.counts == {"adult": RuleCount(checked=1, breaches=1)}
    assert [r.rows.column("id").to_pylist() for r in changes.rejected] == [[2]]
    assert changes.deletes.to_pylist() == [{"id": 1}]


def test_an_expectation_is_not_even_computed_for_rows_left_out() -> None:
    rules = RowRules(
        where="email <> 'none'", expectations=(Expectation("n", "CAST(email AS INTEGER) > 0"),)
    )
    changes = Transform(rules, PEOPLE).changes(net([person(1, email="none"), person(2, email="5")]))
    assert changes.upserts.column("id").to_pylist() == [2]


def test_invariant_12_a_parked_row_is_kept_masked_with_its_rule() -> None:
    rules = RowRules(expectations=(ADULT,), masks={"email": SHA256}, rename={"id": "who"})
    changes = Transform(rules, PEOPLE).changes(net([person(1), person(2, age=3, email="1")]))
    [rejected] = changes.rejected
    assert rejected.code == "expect:adult"
    assert "adult" in rejected.reason
    assert "age >= 18" in rejected.reason
    assert rejected.rows.to_pylist() == [{"who": 2, "email": SHA_OF_1, "age": 3, "notes": "-"}]
    assert changes.upserts.column("who").to_pylist() == [1]
    assert changes.deletes.num_rows == 0  # the former row stays, as when the destination refuses


def test_a_row_that_breaks_two_rules_is_parked_once_and_counted_twice() -> None:
    mail = Expectation("mail", "email IS NOT NULL", OnBreach.QUARANTINE)
    transform = Transform(RowRules(expectations=(ADULT, mail)), PEOPLE)
    rows = [person(1, age=3, email=None), person(2, email=None), person(3)]
    changes = transform.changes(net(rows))
    parked = {r.code: r.rows.column("id").to_pylist() for r in changes.rejected}
    assert parked == {"expect:adult": [1], "expect:mail": [2]}
    assert transform.counts == {"adult": RuleCount(3, 1), "mail": RuleCount(3, 2)}


def test_a_rule_that_fails_names_itself_the_table_the_rows_and_the_first_key_masked() -> None:
    rules = RowRules(
        expectations=(ADULT, Expectation("mail", "email IS NOT NULL", OnBreach.FAIL)),
        masks={"id": SHA256},
    )
    transform = Transform(rules, PEOPLE)
    with pytest.raises(ExpectationFailedError) as caught:
        transform.changes(net([person(3), person(1, age=2, email=None), person(2, email=None)]))
    error = caught.value
    for said in ("crm.people", "mail", "email IS NOT NULL", "2 of 3 rows", f"id = {SHA_OF_1}"):
        assert said in error.message
    assert "on_breach" in error.hint
    assert transform.counts["mail"] == RuleCount()  # nothing was applied: it will be asked again


def test_a_load_with_a_row_that_breaks_a_failing_rule_stops() -> None:
    rules = RowRules(expectations=(Expectation("adult", "age >= 18", OnBreach.FAIL),))
    parts, _ = Transform(rules, PEOPLE).parts([part(person(1)), part(person(2, age=3))])
    assert list(parts[0].read())
    with pytest.raises(ExpectationFailedError, match="1 of 1 rows, the first with id = 2"):
        list(parts[1].read())


def test_a_rule_that_cannot_be_computed_is_told_without_the_value() -> None:
    """Invariant 14: the value may be one that is masked."""
    rules = RowRules(
        where="age > 1",
        expectations=(ADULT, Expectation("number", "CAST(email AS INTEGER) > 0")),
        masks={"email": SHA256},
    )
    with pytest.raises(RuleError) as caught:
        Transform(rules, PEOPLE).changes(net([person(1, email="s3cret")]))
    error = caught.value
    assert "expect rule number of crm.people" in error.message
    assert "Conversion Error" in error.message
    assert "TRY_CAST" in error.hint
    assert "s3cret" not in f"{error}{error.__cause__}{error.__context__}"


# -- loads -----------------------------------------------------------------------------------------


def test_a_load_parks_rows_of_all_parts_under_their_rule() -> None:
    transform = Transform(RowRules(expectations=(ADULT,)), PEOPLE)
    parts, rejected = transform.parts([part(person(1), person(2, age=3)), part(person(4, age=5))])
    assert read(parts) == [person(1)]
    [parked] = rejected()
    assert parked.code == "expect:adult"
    assert parked.rows.to_pylist() == [person(2, age=3), person(4, age=5)]


def test_a_part_that_is_read_again_parks_and_counts_once() -> None:
    transform = Transform(RowRules(expectations=(ADULT,)), PEOPLE)
    parts, rejected = transform.parts([part(person(1), person(2, age=3))])
    first = parts[0].read()
    next(first)  # and given up, as when a connection is lost
    assert read(parts) == read(parts) == [person(1)]
    assert [r.rows.num_rows for r in rejected()] == [1]
    assert transform.counts == {"adult": RuleCount(2, 1)}


def test_a_part_that_is_read_again_does_not_fill_the_quarantine_twice() -> None:
    transform = Transform(RowRules(expectations=(ADULT,)), PEOPLE, quarantine_rows=3)
    parts, rejected = transform.parts([part(person(1, age=3), person(2, age=3))])
    assert read(parts) == read(parts) == []
    assert [r.rows.num_rows for r in rejected()] == [2]


def test_parts_are_read_side_by_side() -> None:
    """Each thread's rows are its own, however the threads take turns."""
    transform = Transform(
        RowRules(where="id % 3 <> 0", expectations=(ADULT,), masks={"email": SHA256}), PEOPLE
    )
    sources = [[person(n * 100 + i, age=i % 20 + 15) for i in range(100)] for n in range(4)]
    parts, rejected = transform.parts([part(*rows) for rows in sources])
    barrier = Barrier(len(parts))
    found: list[list[int]] = [[] for _ in parts]

    def read_part(number: int) -> None:
        barrier.wait()
        found[number] = [row["id"] for row in read([parts[number]])]

    threads = [Thread(target=read_part, args=[number]) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = [[r for r in rows if r["id"] % 3] for rows in sources]
    assert found == [[r["id"] for r in rows if r["age"] >= 18] for rows in wanted]
    minors = [r["id"] for rows in wanted for r in rows if r["age"] < 18]
    assert [r.rows.column("id").to_pylist() for r in rejected()] == [minors]
    checked = sum(map(len, wanted))
    assert transform.counts == {"adult": RuleCount(checked, len(minors))}


def test_invariant_10_a_load_that_parks_too_much_stops_before_it_holds_it_all() -> None:
    transform = Transform(RowRules(expectations=(ADULT,)), PEOPLE, quarantine_rows=3)
    minors = [part(person(n, age=1), person(n + 10, age=1)) for n in range(3)]
    parts, _ = transform.parts(minors)
    assert list(parts[0].read()) == []
    with pytest.raises(QuarantineFullError, match=r"more than 3 rows .*expect:adult") as caught:
        list(parts[1].read())
    assert "max_rows" in caught.value.hint


def test_small_batches_are_gathered_and_every_row_comes_once() -> None:
    rows = table(map(person, range(BATCH_ROWS + 5000)))
    small = RowPart(lambda: iter(rows.to_batches(max_chunksize=1000)))
    parts, _ = Transform(RowRules(where="id >= 0"), PEOPLE).parts([small])
    batches = list(parts[0].read())
    assert pa.Table.from_batches(batches).equals(rows)


# -- values that the source did not send -----------------------------------------------------------


def unsent(*columns: str, rows: Sequence[int] = (1,)) -> Fill:
    return Fill(columns, np.array(rows), keys(*(10 + row for row in rows)))


def test_fills_follow_their_rows_names_and_masked_keys() -> None:
    rules = RowRules(exclude=("email",), rename={"notes": "n", "id": "k"}, masks={"id": SHA256})
    transform = Transform(rules, PEOPLE)
    fill = Fill(("notes", "email"), np.array([1]), keys(2))
    changes = transform.changes(net([person(5), person(1)], fills=(fill, unsent("email"))))
    [kept] = changes.fills
    assert (kept.columns, kept.rows.tolist()) == (("n",), [1])
    assert kept.keys.to_pylist() == [{"k": SHA_OF_2}]


def test_rules_about_columns_that_are_always_sent_are_judged_beside_fills() -> None:
    rules = RowRules(expectations=(Expectation("adult", "age >= 18"),))
    transform = Transform(rules, PEOPLE, unsent=True)
    changes = transform.changes(net([person(1, age=3), person(2)], fills=(unsent("notes"),)))
    assert [fill.rows.tolist() for fill in changes.fills] == [[1]]
    assert transform.counts == {"adult": RuleCount(2, 1)}


@pytest.mark.parametrize(
    "rules",
    [
        RowRules(expectations=(Expectation("n", "notes <> ''"),)),  # cannot be computed
        RowRules(where="age > 3"),  # the destination may have no row to take the notes from
        RowRules(expectations=(ADULT,)),  # or an older one
    ],
)
def test_invariant_6_rules_that_unsent_values_would_make_wrong_are_refused(rules: RowRules) -> None:
    assert "REPLICA IDENTITY FULL" in refusal(rules, unsent=True).hint
    with pytest.raises(ConfigError, match="notes"):
        Transform(rules, PEOPLE).changes(net([person(1), person(2)], fills=(unsent("notes"),)))


def test_where_is_exact_if_what_may_be_unsent_does_not_arrive() -> None:
    rules = RowRules(include=("id", "age"), where="age > 3")
    transform = Transform(rules, PEOPLE, unsent=True)
    changes = transform.changes(net([person(1), person(2, age=1)], fills=(unsent("notes"),)))
    assert (changes.upserts.num_rows, changes.fills) == (1, ())


def test_where_is_exact_if_every_column_is_always_sent() -> None:
    short = TableSchema(PEOPLE.table, 1, (COLUMNS[0], COLUMNS[2]), ("id",))
    assert Transform(RowRules(where="age > 3"), short, unsent=True).schema == short
