"""A slot that begins while somebody alters tables: Postgres 14 to 18 decode with the old ones."""

from __future__ import annotations

import pytest
from shop import Shop

from blind_ddl import BLIND_CHANGES, beginning_beside, write
from live_run import LiveRun
from replicated import assert_equal


@pytest.mark.versions
@pytest.mark.parametrize("change", BLIND_CHANGES)
def test_invariant_4_what_is_written_after_a_change_that_its_decoder_missed_is_all_there(
    shop: Shop, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    with beginning_beside(shop.database, change) as begin, LiveRun(shop.project) as run:
        begin()
        run.wait_for_copies()
        with shop.database.connect(autocommit=False) as session:
            write(session, 1001)
        run.catch_up(shop.database)
    assert_equal(shop.database, shop.folder)
    assert "slot_begun_anew" in caplog.text
    table = "customers" if "customers" in change else "events"
    assert f"'{table} was altered meanwhile'" in caplog.text
