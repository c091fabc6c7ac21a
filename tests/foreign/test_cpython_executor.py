"""`kos.Executor` under CPython's own tests of executors, wait, as_completed, shutdown and initializers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import kos_cluster as kos
from tests.foreign import cpython

NAMES = ("executor", "util", "test_wait", "test_as_completed", "test_shutdown", "test_process_pool", "test_init")
PACKAGE = cpython.load(*(f"test_concurrent_futures.{name}" for name in NAMES)) or cpython.load(
    "test_concurrent_futures"
)

LOCAL_PROCESSES = "it looks at the executor's processes on this machine"
OTHER_CLASS = "it makes a ProcessPoolExecutor itself, whatever executor is under test"
SHARED_LOCK = "it shares a semaphore of this machine with its calls"
NOT_APPLICABLE = {
    "test_killed_child": f"{LOCAL_PROCESSES}; a lost worker's call runs again, and breaks nothing",
    "test_traceback": "it wants the private type that ProcessPoolExecutor gives a remote traceback",
    "test_ressources_gced_in_workers": "its argument is a proxy that only children of this process may use",
    "test_saturation": SHARED_LOCK,
    "test_idle_process_reuse_one": LOCAL_PROCESSES,
    "test_idle_process_reuse_multiple": LOCAL_PROCESSES,
    "test_max_tasks_per_child": "it asks for a multiprocessing context",
    "test_max_tasks_per_child_defaults_to_spawn_context": "it asks for a multiprocessing context",
    "test_max_tasks_early_shutdown": "it asks for a multiprocessing context",
    "test_python_finalization_error": "it asks for a multiprocessing context",
    "test_processes_terminate": SHARED_LOCK,
    "test_context_manager_shutdown": OTHER_CLASS,
    "test_del_shutdown": OTHER_CLASS,
    "test_shutdown_no_wait": OTHER_CLASS,
}
SLOW = {
    "test_free_reference",
    "test_free_reference_yielded_future",
    "test_first_completed",
    "test_future_times_out",
    "test_map_timeout",
    "test_20369",
    "test_first_exception",
    "test_first_exception_some_already_complete",
    "test_first_exception_one_already_failed",
    "test_first_completed_some_already_completed",
    "test_duplicate_futures",
    "test_hang_issue12364",
    "test_submit_after_interpreter_shutdown",
    "test_hang_gh83386",
}

if PACKAGE is None:
    pytest.skip("no Python on this machine has CPython's tests of executors", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def _installed(cluster: None) -> Iterator[None]:
    assert PACKAGE is not None
    with PACKAGE.installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_module_of("ExecutorShutdownTest"), "assert_python_ok", _with_our_executor)
        yield


def _module_of(name: str) -> Any:
    assert PACKAGE is not None
    return PACKAGE.modules[PACKAGE.find(name).__module__]


def _with_our_executor(*words: str) -> Any:
    """Run a program of theirs; what it takes from `concurrent.futures` is ours."""
    assert PACKAGE is not None
    *options, program = words
    program = program.replace("from concurrent.futures import Executor", "from kos_cluster import Executor")
    ok = PACKAGE.modules["test.support.script_helper"].assert_python_ok
    return ok(*options, cpython.LOAD.format(folder=str(PACKAGE.folder)) + program)


class Ours:
    """In the place of the mixins that choose a thread pool or a process pool."""

    executor_type = kos.Executor


def _adapted(name: str) -> type:
    assert PACKAGE is not None
    return cpython.adapted((Ours, PACKAGE.find(name), PACKAGE.find("ExecutorMixin")), NOT_APPLICABLE, SLOW)


TestExecutor = _adapted("ProcessPoolExecutorTest")  # with those of ExecutorTest
TestWait = _adapted("WaitTests")
TestAsCompleted = _adapted("AsCompletedTests")
TestShutdown = _adapted("ProcessPoolShutdownTest")  # with those of ExecutorShutdownTest
TestInitializer = _adapted("InitializerMixin")
