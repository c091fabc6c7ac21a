"""`kos.Executor(engine=...)` under CPython's own tests of executors. Threads of this process play the engine's part."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

import kos_cluster as kos
from tests.engines.stand_in import on_stand_in
from tests.foreign import cpython
from tests.foreign.test_cpython_executor import NOT_APPLICABLE, PACKAGE, SLOW

OTHER_PROGRAM = "it is a program of its own, which has no engine"
PROGRAMS = ("test_interpreter_shutdown", "test_submit_after_interpreter_shutdown", "test_hang_gh83386")

pytestmark = pytest.mark.whole

assert PACKAGE is not None  # else the module that it comes from is skipped


@pytest.fixture(autouse=True, scope="module")
def _installed(cluster: None) -> Iterator[None]:
    assert PACKAGE is not None
    with PACKAGE.installed(), on_stand_in(kos.connect()):
        yield


class Ours:
    """In the place of the mixins that choose a thread pool or a process pool."""

    executor_type = functools.partial(kos.Executor, engine="stand-in")


def _adapted(name: str) -> type:
    assert PACKAGE is not None
    return cpython.adapted(
        (Ours, PACKAGE.find(name), PACKAGE.find("ExecutorMixin")),
        NOT_APPLICABLE | dict.fromkeys(PROGRAMS, OTHER_PROGRAM),
        SLOW.difference(PROGRAMS),
    )


TestExecutor = _adapted("ProcessPoolExecutorTest")  # with those of ExecutorTest
TestWait = _adapted("WaitTests")
TestAsCompleted = _adapted("AsCompletedTests")
TestShutdown = _adapted("ProcessPoolShutdownTest")  # with those of ExecutorShutdownTest
TestInitializer = _adapted("InitializerMixin")
