"""Values that a destination would change without a word, and rows that it would lose."""

from __future__ import annotations

import pyarrow as pa
import pytest

from headrace.errors import ConfigError
from lakeside import Lakeside, Source

TEXTS = pa.table(
    {
        "id": pa.array([1, 2, 3], pa.int64()),
        "name": ["abc", "ab    ", "ab "],
        "tags": [["abc"], ["x", "ab    "], [None, ""]],
    }
)


@pytest.mark.parametrize("kind", ["varchar(3)", "char(3)"])
def test_spaces_that_are_too_many_are_not_cut_off_unseen(lakeside: Lakeside, kind: str) -> None:
    """Postgres raises for any other text that is too long, but not for these."""
    source = lakeside.source("crm.people")
    source.write(TEXTS.slice(0, 2))
    types = {"name": kind, "tags": f"{kind}[]"}
    lakeside.carry({"source": "crm.people", "key": ["id"], "columns": {"types": types}})
    lakeside.catch_up()
    source.write(TEXTS.slice(2))
    source.update("id = 1", name="'x     '")
    lakeside.catch_up()
    assert lakeside.sql("select id, name from crm.people order by id") == [(1, "abc"), (3, "ab ")]
    assert sorted(row.key for row in lakeside.project.quarantine()) == [("1",), ("2",)]
    assert {row.code for row in lakeside.project.quarantine()} == {"string_data_right_truncation"}


def test_a_table_that_is_to_be_in_two_places_is_refused(lakeside: Lakeside, crm: Source) -> None:
    """Entries refine one another: the first place would get nothing, and nobody would know."""
    lakeside.carry(
        {"source": "crm.people", "key": ["id"], "name": "app.people"},
        {"source": "crm.people", "key": ["id"], "name": "app.persons"},
    )
    with pytest.raises(ConfigError, match=r"would be both app\.people and app\.persons"):
        lakeside.catch_up()
