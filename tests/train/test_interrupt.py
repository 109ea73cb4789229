"""Signals: the first asks, the second interrupts, and afterwards all is as before."""

import signal
import threading

import pytest

from trisparse.train.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    """Guards both a step that is saved and a way out of one that hangs."""
    before = signal.getsignal(number)
    with StopRequest() as request:
        signal.raise_signal(number)
        assert request.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_other_threads_leave_signals_alone() -> None:
    """Guards training from a notebook's or a server's thread, where Python refuses handlers."""
    requests = []

    def enter() -> None:
        with StopRequest() as request:
            requests.append(request.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert requests == [False]
