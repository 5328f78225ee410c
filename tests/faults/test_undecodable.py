"""A server that fails to decode its own WAL: tried another way, then told, never read past.

What leads a real decoder astray is a matter of luck (`make torture` met it), so the error is a
terminated walsender's, taken for the other one.
"""

from __future__ import annotations

import pytest
from shop import SEED, Shop

from headrace.connectors.postgres import stream
from headrace.connectors.postgres.failures import command_error
from headrace.errors import DecodingError, HeadraceError
from live_run import LiveRun
from replicated import SLOT
from workload import Load

TERMINATE = "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s"
COMMAND = """
select a.query from pg_stat_activity a join pg_replication_slots s on s.active_pid = a.pid
 where s.slot_name = %s
"""
MET = (
    'could not map filenumber "base/5/16516" to relation OID',
    'could not map filenode "base/5/16516" to relation OID',
    "unexpected duplicate for tablespace 0, relfilenumber 25317",
)


class Answer:
    """A result of libpq with a state and a message."""

    def __init__(self, state: str, message: str) -> None:
        self._fields = {"SQLSTATE": state, "MESSAGE_PRIMARY": message}

    def error_field(self, field) -> bytes:
        return self._fields.get(field.name, "").encode()


@pytest.mark.parametrize("message", MET)
def test_what_decoders_were_met_to_say_is_tried_again(message: str) -> None:
    assert isinstance(command_error(Answer("XX000", message), b""), DecodingError)
    assert not command_error(Answer("XX000", "something else"), b"").transient


@pytest.mark.since(14)
def test_invariant_13_without_transactions_in_progress_first_then_told(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def astray(*_: object) -> HeadraceError:
        return command_error(Answer("XX000", MET[0]), b"")

    monkeypatch.setattr(stream, "stream_error", astray)

    def command() -> str:
        ((text,),) = shop.database.execute(COMMAND, [SLOT])
        return str(text)

    with LiveRun(shop.project) as run, Load(shop.database, SEED) as load:
        run.wait_for(lambda view: view.capture.progress.connected)
        assert "streaming" in command()
        load.wait_for(5)
        shop.database.execute(TERMINATE, [SLOT])
        run.wait_for_error(DecodingError)
        run.wait_for(lambda view: view.capture.progress.connected)
        assert "streaming" not in command()
        shop.database.execute(TERMINATE, [SLOT])
        failure = run.failure()
    assert not failure.transient
    assert "could not map" in failure.message
    assert f"pg_drop_replication_slot('{SLOT}'), then headrace destroy" in failure.hint
