"""SIGTERM is a command's own only while the command runs, as one may run in a kernel."""

from __future__ import annotations

import signal
import threading

from kos_cluster.cli import sigterm


def test_it_is_handled_within_the_block_and_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    come: list[int] = []
    with sigterm.handled(lambda number, _: come.append(number)):
        signal.raise_signal(signal.SIGTERM)
    assert come == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_leaves_it_alone() -> None:
    seen = []

    def run() -> None:
        with sigterm.handled(lambda *_: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
