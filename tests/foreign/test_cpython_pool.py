"""`kos.Pool` under CPython's own tests of multiprocessing's pools."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import types
from collections.abc import Iterator

import pytest

import kos_cluster as kos
from tests.foreign import cpython

PACKAGE = cpython.load("_test_multiprocessing")

LOCAL_PROCESSES = "it looks at the pool's processes on this machine"
NOT_APPLICABLE = {
    "test_make_pool": LOCAL_PROCESSES,
    "test_pool_worker_lifetime": LOCAL_PROCESSES,
    "test_traceback": "it wants the type that multiprocessing gives a remote traceback",
    "test_unpickleable_result": "its result, a lambda, can be pickled here",
    "test_worker_finalization_via_atexit_handler_of_multiprocessing": "it tests the end of multiprocessing itself",
}
SLOW = {"test_async", "test_map_no_failfast", "test_pool_worker_lifetime_early_close"}

if PACKAGE is None:
    pytest.skip("no Python on this machine has CPython's tests of multiprocessing", allow_module_level=True)

# What those tests, which do not ask for a pool class, use of the module.
OURS = types.SimpleNamespace(Pool=kos.Pool, TimeoutError=multiprocessing.TimeoutError, pool=multiprocessing.pool)


@pytest.fixture(autouse=True, scope="module")
def _installed(cluster: None) -> Iterator[None]:
    assert PACKAGE is not None
    with PACKAGE.installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(PACKAGE.modules["test._test_multiprocessing"], "multiprocessing", OURS)
        yield


class Ours:
    """In the place of the mixins that choose processes, threads or managers."""

    TYPE = "processes"
    Pool = kos.Pool


TestPool, TestPoolWorkerErrors, TestPoolWorkerLifetime = (
    cpython.adapted((Ours, PACKAGE.find(name)), NOT_APPLICABLE, SLOW)
    for name in ("_TestPool", "_TestPoolWorkerErrors", "_TestPoolWorkerLifetime")
)
