"""Big tables copied in ranges of their key: what is finished survives, the join is exact."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from busy import TABLES, fill, writing
from harness import Shop, all_loaded

SMALL = {"ranges_above": "300kB"}  # the tables are larger, and are cut into a dozen ranges or more


@pytest.fixture
def ranged(shop: Shop) -> Shop:
    fill(shop)
    shop.declare({"shop_to_lake": TABLES}, source=SMALL)
    return shop


def unfinished(shop: Shop) -> dict[str, list[dict]]:
    """By table its ranges that are copied, as the log's documents tell."""
    documents = [json.loads(p.read_text()) for p in log(shop).glob("unfinished/*.json")]
    return {d["table"]: [r for r in d["ranges"] if "lsn" in r] for d in documents}


def log(shop: Shop) -> Path:
    return shop.state / "log/shop"


def names_of(shop: Shop) -> set[str]:
    return {path.name for path in log(shop).glob("snapshots/*/*/*.parquet")}


def cut_short(shop: Shop) -> None:
    """Run until some ranges of the biggest table are there and others are not."""
    with shop.running() as running:
        running.wait(lambda views: any(p.ranges_done > 2 for v in views for p in copies(v)))


def copies(view):
    return list(view.copier.progress.values())


def test_7_finished_ranges_survive_restarts_beside_a_busy_stream(ranged):
    """Invariant 7: keys move across ranges, values are not sent, rows go and come meanwhile."""
    with writing(ranged):
        cut_short(ranged)
        first = unfinished(ranged)
        assert first
        cut_short(ranged)
        with ranged.running() as running:
            running.wait(all_loaded)
    ranged.catch_up()
    for table in TABLES:
        ranged.assert_equal(table)
    assert not unfinished(ranged)
