"""Delta tables on a store that throttles, breaks off, loses answers, and refuses credentials."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest
from delta_samples import (
    LOG_ID,
    NAME,
    PIPELINE,
    Lake,
    Model,
    Row,
    at,
    changes,
    multiset,
    row_of,
    schema_of,
)

from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.maintenance import clean_log, write_checkpoint
from headrace.errors import DestinationError, HeadraceError
from headrace.log import open_storage
from object_proxy import Fault, ObjectProxy, object_proxy

SCHEMA = schema_of("int64")
COMMIT = r"PUT .*/_delta_log/0+1\.json"  # of version 1
TOKEN = "IQoJb3JpZ2luX2VjEXAMPLE"
KEY = "s3cr3t-value"

THROTTLED = {"status": 503, "code": "SlowDown"}
FAULTS = {
    "throttled by 503": THROTTLED,
    "throttled by 429": {"status": 429, "code": "TooManyRequests"},
    "internal error": {"status": 500, "code": "InternalError"},
    "reset": {"status": 0},
}


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[ObjectProxy]:
    with object_proxy(s3_endpoint) as made:
        yield made


@pytest.fixture
def through(proxy: ObjectProxy, s3_options: dict[str, str]) -> dict[str, str]:
    """Options that lead through the proxy."""
    return {**s3_options, "AWS_ENDPOINT_URL": proxy.endpoint, "AWS_SESSION_TOKEN": TOKEN}


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://bucket/{abs(hash(request.node.name))}"


def rows(*keys: int, value: int = 1) -> list[Row]:
    return [row_of("int64", key, value) for key in keys]


def until_it_succeeds(act: Callable[[], None]) -> int:
    """As the engine does with what passes by itself; gives how often it had to be tried again."""
    for tries in range(5):
        try:
            act()
        except HeadraceError as error:
            if not (error.transient and error.hint):
                raise
        else:
            return tries
    raise AssertionError("it never succeeded")


def held(url: str, options: dict[str, str]) -> Any:
    frame = pl.scan_delta(f"{url}/{NAME.schema}/{NAME.name}", storage_options=options)
    return multiset(frame.select(SCHEMA.names).collect().iter_rows())


@pytest.mark.parametrize("done", [False, True], ids=["not done", "answer lost"])
@pytest.mark.parametrize("fault", FAULTS)
def test_3_a_commit_that_the_store_fails_is_made_once(
    lake: Lake,
    proxy: ObjectProxy,
    through: dict[str, str],
    s3_options: dict[str, str],
    url: str,
    fault: str,
    done: bool,
) -> None:
    """Invariant 3: neither lost nor doubled, whether the failed put took effect or not."""
    table = DeltaDestination(url, through).table(NAME, PIPELINE)
    table.load(SCHEMA, lake.snapshot(SCHEMA, rows(*range(5))), at(1))
    times = 1 if done else 2
    (met,) = proxy.plan(Fault(COMMIT, times, done=done, **FAULTS[fault]))
    tried = until_it_succeeds(
        lambda: table.apply(changes(SCHEMA, rows(1, 9, value=2), rows(2)), at(2))
    )
    assert met.met == times
    if FAULTS[fault]["status"]:  # the client tries again by itself
        assert tried == 0
        assert len([seen for seen in proxy.seen if re.search(COMMIT, seen)]) == times + 1
    model = Model(SCHEMA)
    model.apply(rows(*range(5)), [])
    model.apply(rows(1, 9, value=2), rows(2))
    assert held(url, s3_options) == multiset(model.rows.elements())
    assert DeltaDestination(url, s3_options).open(NAME).version() == 1
    assert table.checkpoint(LOG_ID) == at(2)


def test_upkeep_by_deltalake_survives_throttling_and_broken_connections(
    lake: Lake, proxy: ObjectProxy, through: dict[str, str], s3_options: dict[str, str], url: str
) -> None:
    destination = DeltaDestination(url, through)
    table = destination.table(NAME, PIPELINE)
    table.load(SCHEMA, lake.snapshot(SCHEMA, rows(*range(5))), at(1))
    place = f"{url}/{NAME.schema}/{NAME.name}"
    faults = proxy.plan(
        Fault("PUT .*checkpoint", 2, **THROTTLED),
        Fault("GET .*_delta_log", 1, status=500, code="InternalError"),
        Fault("GET .*list-type", 1),
    )
    write_checkpoint(place, through)
    clean_log(place, through)
    assert [fault.met for fault in faults] == [2, 1, 1]
    assert held(url, s3_options) == multiset(rows(*range(5)))


def test_a_store_that_stays_away_is_told_within_the_time_that_the_user_allows(
    lake: Lake, proxy: ObjectProxy, through: dict[str, str], url: str
) -> None:
    limits = {"retry_timeout": "1s", "backoff_config.max_backoff": "200ms"}
    table = DeltaDestination(url, {**through, **limits}).table(NAME, PIPELINE)
    table.load(SCHEMA, lake.snapshot(SCHEMA, rows(1)), at(1))
    (fault,) = proxy.plan(Fault("PUT", 1000, **THROTTLED))
    with pytest.raises(HeadraceError, match=f"cannot put {url}") as error:
        table.apply(changes(SCHEMA, rows(2)), at(2))
    assert error.value.transient
    assert "SlowDown" in error.value.message
    assert 2 < fault.met <= 11
    proxy.plan()
    table.apply(changes(SCHEMA, rows(2)), at(2))
    assert table.checkpoint(LOG_ID) == at(2)


def test_a_store_that_does_not_answer_is_asked_again_after_the_timeout(
    lake: Lake, proxy: ObjectProxy, through: dict[str, str], url: str
) -> None:
    table = DeltaDestination(url, {**through, "timeout": "300ms"}).table(NAME, PIPELINE)
    (fault,) = proxy.plan(Fault("GET", 1, silent=30))
    before = time.monotonic()
    assert table.checkpoint(LOG_ID) is None
    assert fault.met == 1
    assert time.monotonic() - before < 20  # it did not wait for the answer


@pytest.mark.parametrize("status", [400, 403])
def test_14_expired_credentials_are_told_with_their_cure_and_without_the_token(
    proxy: ObjectProxy, through: dict[str, str], url: str, status: int
) -> None:
    """Invariant 14: S3's answer holds the very token."""
    message = f"The provided token has expired.</Message><Token-0>{TOKEN}</Token-0><Message>"
    code = f"ExpiredToken</Code><Message>{message}</Message><Code>"
    proxy.plan(Fault("PUT", 100, status=status, code=code))
    with pytest.raises(DestinationError) as error:
        DeltaDestination(url, through).check_writable()
    assert not error.value.transient
    assert f"cannot write to {url}: cannot put {url}" in error.value.message
    assert "ExpiredToken: The provided token has expired." in error.value.message
    assert "new credentials" in error.value.hint
    for secret in (TOKEN, KEY):
        assert secret not in str(error.value)


def test_a_store_that_ignores_put_if_absent_is_refused(
    proxy: ObjectProxy, through: dict[str, str], url: str
) -> None:
    destination = DeltaDestination(url, through)
    destination.check_commits()
    proxy.dropped.add("if-none-match")
    with pytest.raises(DestinationError, match=f"cannot commit safely to {url}") as error:
        destination.check_commits()
    assert "ignores If-None-Match" in error.value.message
    assert "conditional writes" in error.value.hint
    assert not open_storage(url, through).list("")  # nothing is left behind


def test_put_if_absent_that_the_user_switched_off_or_the_store_does_not_know_is_refused(
    proxy: ObjectProxy, through: dict[str, str], url: str
) -> None:
    off = DeltaDestination(url, {**through, "aws_conditional_put": "disabled"})
    unknown = DeltaDestination(url, {**through, "max_retries": "1"})
    proxy.plan(Fault("PUT", 100, status=501, code="NotImplemented"))
    for destination in (off, unknown):
        with pytest.raises(DestinationError) as error:
            destination.check_commits()
        assert "conditional puts" in error.value.hint
        assert not error.value.transient


def test_a_bucket_that_is_not_there_is_named(proxy: ObjectProxy, through: dict[str, str]) -> None:
    proxy.plan(Fault("PUT", status=404, code="NoSuchBucket"))
    with pytest.raises(DestinationError, match="bucket or container does not exist") as error:
        DeltaDestination("s3://no-such-bucket/lake", through).check_writable()
    assert "s3://no-such-bucket/lake" in error.value.message
