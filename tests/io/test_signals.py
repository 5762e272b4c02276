"""One list of stop signals, which every program and every training handles."""

import os
import signal
import threading

import pytest

from tokendetr.cli.program import program
from tokendetr.io.signals import STOP_SIGNALS, handle_signals, restore_signals
from tokendetr.train.stop import StopSignals, TrainingInterrupted


@pytest.fixture
def hangup():
    """Set what SIGHUP does; put back afterward what it did."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda action: signal.signal(signal.SIGHUP, action)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_ends_a_run_in_order(number, hangup):
    hangup(signal.SIG_DFL)
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted) as caught, StopSignals() as stop, stop.interruptible():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_the_end_of_a_terminal_cleans_up(hangup):
    hangup(signal.SIG_DFL)
    cleaned = []

    @program()
    def main():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, cleaned) == (128 + signal.SIGHUP, [True])
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_under_nohup_the_end_of_a_terminal_changes_nothing(hangup):
    hangup(signal.SIG_IGN)
    with StopSignals() as stop:
        program()(lambda: os.kill(os.getpid(), signal.SIGHUP))()
        assert stop.received is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_other_threads_install_nothing():
    found = []
    thread = threading.Thread(target=lambda: found.append(handle_signals(lambda *_: None)))
    thread.start()
    thread.join()
    restore_signals(found[0])
    assert found == [{}]
