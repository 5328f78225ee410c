"""What `headrace verify` answers to a shell and to a program."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from lakeside import Lakeside, people

TABLE = "crm.people"


@pytest.fixture
def loaded(shop: Lakeside) -> Lakeside:
    shop.source(TABLE).write(people(1, 2, 3))
    shop.carry({"source": TABLE, "key": ["id"], "columns": {"types": {"name": "varchar(4)"}}})
    return shop


def verify(shop: Lakeside, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["verify", "-c", str(shop.file), *options])
    return done.exit_code, done.stdout


def test_equal_is_0_and_different_is_4(loaded: Lakeside) -> None:
    assert verify(loaded)[0] == 0
    loaded.sql("delete from crm.people where id = 2")
    code, out = verify(loaded)
    assert code == 4
    assert "crm.people differs at id=2" in out
    code, out = verify(loaded, "--json")
    assert code == 4
    told = json.loads(out)
    assert (told["version"], told["lsn"], told["missing"], told["samples"]) == (
        0,
        None,
        1,
        ["id=2"],
    )


def test_parked_rows_are_4(loaded: Lakeside) -> None:
    verify(loaded)
    loaded.source(TABLE).update("id = 1", name="'far too long'")
    code, out = verify(loaded)
    assert code == 4
    assert "1 row in quarantine" in out
    told = json.loads(verify(loaded, "--json")[1])
    assert (told["missing"], told["extra"], told["quarantined"]) == (0, 0, 1)


def test_what_cannot_be_compared_is_1_and_beside_a_difference_4(loaded: Lakeside) -> None:
    verify(loaded)
    loaded.source("crm.other").write(people(1))
    loaded.carry(TABLE, "crm.other")
    verify(loaded)
    loaded.sql("drop table crm.other")
    code, out = verify(loaded)
    assert code == 1
    assert "crm.other is not there" in out
    told = [json.loads(line) for line in verify(loaded, "--json")[1].splitlines()]
    assert ["error" in (table["problem"] or {}) for table in told] == [True, False]
    loaded.sql("delete from crm.people where id = 2")
    assert verify(loaded)[0] == 4
