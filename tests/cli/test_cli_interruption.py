"""Signals: the first asks, the second ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from headrace.cli.interruption import stopping_on_signals

DEAF = """
import os, signal, threading
from headrace.cli.interruption import stopping_on_signals
with stopping_on_signals() as asked:
    os.kill(os.getpid(), signal.SIGTERM)
    asked.wait()
    assert asked.stop.is_set()
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_for_a_clean_stop(number):
    started_with = signal.getsignal(number)
    before = signal.default_int_handler
    signal.signal(number, before)  # these tests may themselves be run by nohup
    try:
        with stopping_on_signals() as asked:
            assert not asked.signalled
            os.kill(os.getpid(), number)
            assert asked.stop.wait(10)
            assert asked.signalled
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, started_with)


def test_a_closed_terminal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals() as asked:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.signalled
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_that_nobody_signalled_is_told_apart():
    with stopping_on_signals() as asked:
        threading.Thread(target=asked.stop.set).start()
        assert asked.stop.wait(10)
        assert not asked.signalled


def test_the_second_signal_ends_a_process_that_does_not_stop():
    done = subprocess.run([sys.executable, "-c", DEAF], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, b"")
