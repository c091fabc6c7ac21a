"""An interrupt of whoever holds a condition leaves it free for others."""

from __future__ import annotations

import signal
import threading
import time

from kos_cluster.tasks.conditions import Answer, Condition

INTERRUPTS = 300  # of which some tens leave a `threading.Condition` held
WAIT_S = 60.0


def interrupted(condition: threading.Condition) -> None:
    """Enter and leave it until an interrupt comes."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.001, signal.pthread_kill, (main, signal.SIGINT))
    try:
        timer.start()
        while True:
            with condition:
                pass
    except KeyboardInterrupt:
        timer.join()


def is_free(condition: threading.Condition) -> bool:
    """Whether another thread can have it."""
    had: list[bool] = []

    def have() -> None:
        if condition.acquire(timeout=0.1):
            condition.release()
            had.append(True)

    thread = threading.Thread(target=have)
    thread.start()
    thread.join()
    return bool(had)


def test_an_interrupt_at_any_moment_leaves_it_free() -> None:
    for _ in range(INTERRUPTS):
        condition = Condition()
        interrupted(condition)
        assert is_free(condition)


def test_what_waits_for_an_answer_uses_it() -> None:
    answer: Answer[int] = Answer()
    assert isinstance(answer._condition, Condition)
    threading.Timer(0.01, answer.set_result, (7,)).start()
    assert answer.result(WAIT_S) == 7


def test_it_is_a_condition() -> None:
    condition, ready = Condition(), False

    def make_ready() -> None:
        nonlocal ready
        time.sleep(0.01)
        with condition:
            ready = True
            condition.notify_all()

    thread = threading.Thread(target=make_ready)
    thread.start()
    with condition:
        assert condition.wait_for(lambda: ready, WAIT_S)
        assert not condition.wait_for(lambda: False, 0.01)
    thread.join()
