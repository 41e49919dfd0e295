"""A signal as a flag: what it ends at once, and what it lets come to its end."""

import os
import signal
import threading
import time

import pytest

from fast_train.common.signals import Interrupt


def _wait():
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(60)


def test_a_signal_ends_a_wait_and_lets_the_rest_come_to_its_end():
    with Interrupt() as interrupt:
        assert interrupt.unless_stopped(lambda: 5) == 5
        assert interrupt.unless_stopped(_wait) is None
        assert interrupt.signum == signal.SIGTERM
        done = []
        assert interrupt.unless_stopped(lambda: done.append(1)) is None
        assert not done


@pytest.mark.parametrize("waits", [True, False])
def test_items_come_up_to_a_signal_also_while_the_next_is_waited_for(waits):
    def items():
        yield from (1, 2)
        if waits:
            _wait()
        yield 3

    seen = []
    with Interrupt() as interrupt:
        for item in interrupt.until_stopped(items()):
            seen.append(item)
            if item == 2 and not waits:
                signal.raise_signal(signal.SIGTERM)
    assert seen == [1, 2]


def test_a_second_signal_acts_as_before_the_block():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
