"""A whole run whose lake is on an object store: killed while it commits, and refused where commits
would not be safe."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import Shop

import run_project
from headrace.errors import CheckFailedError
from headrace.model.finding import Severity
from headrace.testing.database import Database
from object_proxy import Fault, ObjectProxy, object_proxy

PATIENCE = 60.0
READERS = ("deltalake", "polars")  # those that can be led to the server


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[ObjectProxy]:
    with object_proxy(s3_endpoint) as made:
        yield made


@pytest.fixture
def shop(database: Database, tmp_path, proxy: ObjectProxy, s3_options: dict[str, str]) -> Shop:
    options = {**s3_options, "AWS_ENDPOINT_URL": proxy.endpoint}
    shop = Shop(database, tmp_path, f"s3://bucket/{database.name}/lake", options)
    shop.sql("create table orders (id int primary key, v text)")
    shop.sql("insert into orders select g, 'o' || g from generate_series(1, 200) g")
    shop.carry("public.orders")
    return shop


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_3_a_run_killed_while_the_store_takes_its_commit_goes_on_exactly_there(
    shop: Shop, proxy: ObjectProxy, done: bool
) -> None:
    """Invariant 3: the process dies before it hears whether its commit was taken."""
    shop.catch_up()
    (deadly,) = proxy.plan(Fault(r"PUT .*orders/_delta_log/0+1\.json", done=done, silent=PATIENCE))
    shop.sql("update orders set v = v || '.' where id % 3 = 0")
    shop.sql("delete from orders where id % 10 = 1")
    run = subprocess.Popen([sys.executable, run_project.__file__, str(shop.file)])
    try:
        assert deadly.struck.wait(PATIENCE)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait(PATIENCE)
    before = shop.version("public.orders")
    assert before == done
    proxy.plan(
        Fault("PUT .*json", 2, status=503, code="SlowDown"),
        Fault("GET", 2, status=500, code="InternalError"),
        Fault("PUT .*parquet", 1),
    )
    shop.sql("insert into orders values (999, 'after the kill')")
    shop.catch_up()
    assert all(fault.met for fault in proxy.faults)
    shop.assert_equal("public.orders", readers=READERS)


def test_a_run_is_refused_on_a_store_that_ignores_put_if_absent(
    shop: Shop, proxy: ObjectProxy
) -> None:
    proxy.dropped.add("if-none-match")
    (finding,) = [f for f in shop.project.check() if f.name == "destination-commits"]
    assert finding.severity is Severity.BLOCKER
    assert "ignores If-None-Match" in finding.message
    assert shop.lake in finding.message
    assert "conditional writes" in finding.fix
    with pytest.raises(CheckFailedError, match="ignores If-None-Match"):
        shop.run()
    assert shop.sql("select 1 from pg_replication_slots where database = current_database()") == []
    proxy.dropped.clear()
    shop.catch_up()
    shop.assert_equal("public.orders", readers=READERS)


def test_change_logs_are_not_kept_where_two_runs_could_write_them(
    shop: Shop, proxy: ObjectProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shop.options.items():
        monkeypatch.setenv(name.upper(), value)
    shop.carry("public.orders", state=f"{shop.lake}/state")
    findings = {}
    for dropped in ({"if-none-match"}, set()):
        proxy.dropped = dropped
        (found,) = [f for f in shop.project.check() if f.name == "state-commits"]
        findings[found.severity] = found.message
    assert "ignores If-None-Match" in findings[Severity.BLOCKER]
    assert Severity.OK in findings
