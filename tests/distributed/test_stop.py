"""Signals as flags that work checks."""

import signal

import pytest

from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import Stopped


@pytest.fixture
def interrupts():
    """SIGINT as in a terminal; a job in a shell's background begins by ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_reaches_the_work_around_too(interrupts):
    """And a second one has its usual effect."""
    with StopRequest() as outer:
        with StopRequest() as inner:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(Stopped):
                inner.check()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            outer.check()
    with StopRequest() as outer, StopRequest():
        pass
    outer.check()
