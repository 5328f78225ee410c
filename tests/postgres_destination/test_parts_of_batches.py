"""Parts of a batch that Postgres refuses for want of later ones, and truncates between parts."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from target_place import NAME, PIPELINE, Place, at, net, schema_of

from headrace.errors import LogCorruptError
from headrace.model import NetChanges

SCHEMA = schema_of({"id": pa.int64(), "v": pa.string()})


def test_a_row_that_a_later_part_makes_room_for_is_not_parked(place: Place) -> None:
    """A source whose constraint is looked at when it commits lets values change hands."""
    table = place.prepared(SCHEMA)
    place.database.execute("alter table shop.customers add unique (v)")
    table.apply(net(SCHEMA, [{"id": 1, "v": "a"}, {"id": 2, "v": "b"}]), at(1))
    table.apply(net(SCHEMA, [{"id": 2, "v": "a"}]), at(2), [net(SCHEMA, [{"id": 1, "v": "b"}])])
    assert place.rows() == [(1, "b"), (2, "a")]
    assert not place.destination.quarantined_counts(PIPELINE)


def test_a_row_that_no_part_makes_room_for_is_parked_once(place: Place) -> None:
    table = place.prepared(SCHEMA)
    place.database.execute("alter table shop.customers add unique (v)")
    table.apply(net(SCHEMA, [{"id": 1, "v": "a"}, {"id": 2, "v": "b"}]), at(1))
    table.apply(net(SCHEMA, [{"id": 3, "v": "c"}]), at(2), [net(SCHEMA, [{"id": 1, "v": "b"}])])
    assert place.rows() == [(1, "a"), (2, "b"), (3, "c")]
    assert place.destination.quarantined_counts(PIPELINE) == {NAME: 1}


def test_a_truncate_in_a_part_takes_the_rows_of_those_before_it(place: Place) -> None:
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [{"id": 1, "v": "a"}]), at(1))
    parts = [net(SCHEMA, [{"id": 2, "v": "b"}]), net(SCHEMA, [{"id": 3, "v": "c"}], truncate=True)]
    table.apply(net(SCHEMA, [{"id": 4, "v": "d"}]), at(2), parts)
    assert place.rows() == [(3, "c"), (4, "d")]


def test_parts_of_which_one_cannot_be_made_leave_nothing(place: Place) -> None:
    """The next part is made while one is written: what fails there fails the batch."""

    def parts() -> Iterator[NetChanges]:
        yield net(SCHEMA, [{"id": 2, "v": "b"}])
        yield net(SCHEMA, [{"id": 3, "v": "c"}])
        raise LogCorruptError("a file is damaged", hint="headrace resync shop.customers")

    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [{"id": 1, "v": "a"}]), at(1))
    with pytest.raises(LogCorruptError):
        table.apply(net(SCHEMA, [{"id": 4, "v": "d"}]), at(2), parts())
    assert place.rows() == [(1, "a")]
    assert table.standing() == at(1)
