"""`kos.Executor` and `kos.Pool` beyond what the tests of others show."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import inspect
import itertools
import multiprocessing
import multiprocessing.pool
import os
import pickle
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

import kos_cluster as kos
from kos_cluster.errors import NotPicklableError, SetUpError
from kos_cluster.tasks import poolresults
from tests.mesh.conftest import Mesh, until

pytestmark = pytest.mark.usefixtures("mesh")


def waits_for(path: str) -> str:
    """A task that ends when the file is there."""
    Path(f"{path}.begun").touch()
    while not Path(path).exists():
        time.sleep(0.005)
    return path


def square(x: int) -> int:
    return x * x


# ---- the executor

Make = Callable[..., kos.Executor]


@pytest.fixture(params=["mesh", "engine"])
def Executor(request: pytest.FixtureRequest) -> Make:
    """What makes executors: on the mesh, and on an engine whose part threads of this process play."""
    if request.param == "mesh":
        return kos.Executor
    request.getfixturevalue("engine")
    return functools.partial(kos.Executor, engine="stand-in")


def test_a_cap_holds_for_all_functions_together(tmp_path: Path, Executor: Make):
    def overlap(folder: str, number: int) -> int:
        mark = Path(folder) / str(number)
        mark.touch()
        time.sleep(0.02)
        count = len(list(Path(folder).iterdir()))
        mark.unlink()
        return count

    with Executor(max_workers=1) as executor:
        mapped = executor.map(overlap, [str(tmp_path)] * 4, range(4))
        others = [executor.submit(lambda n: overlap(str(tmp_path), n), n) for n in (10, 11)]
        assert {*mapped, *(other.result() for other in others)} == {1}


def test_shutdown_cancels_what_waits_and_spares_what_runs(tmp_path: Path, Executor: Make):
    executor = Executor(max_workers=1)
    gate = tmp_path / "gate"
    first = executor.submit(waits_for, str(gate))
    until(lambda: (tmp_path / "gate.begun").exists(), "the first call runs")
    others = [executor.submit(waits_for, str(gate)) for _ in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    done, _ = concurrent.futures.wait(others, timeout=30)
    assert len(done) == 20 and all(other.cancelled() for other in others)
    assert not first.done()
    gate.touch()
    assert first.result(timeout=30) == str(gate)


def test_what_a_dropped_executor_has_begun_goes_on(tmp_path: Path, Executor: Make):
    executor = Executor()
    future = executor.submit(waits_for, str(tmp_path / "gate"))
    mapped = executor.map(square, range(5))
    dropped = weakref.ref(executor)
    del executor
    gc.collect()
    assert dropped() is None
    (tmp_path / "gate").touch()
    assert future.result(timeout=30) == str(tmp_path / "gate")
    assert list(mapped) == [0, 1, 4, 9, 16]


def test_calls_from_callbacks_do_not_block_new_functions(Executor: Make):
    """Callbacks run in the thread that answers whoever begins a job."""
    again: list[concurrent.futures.Future[int]] = []
    with Executor() as executor:
        for n in range(20):
            future = executor.submit(lambda k: k, n)
            future.add_done_callback(lambda done: again.append(executor.submit(square, 3)))
        until(lambda: len(again) == 20, "every callback has submitted")
        assert {future.result(timeout=30) for future in again} == {9}


def test_modules_that_only_arguments_name_travel_too(mesh: Mesh):
    (mesh.folder / "beside.py").write_text("class Box:\n    def __init__(self, x):\n        self.x = x\n")
    program = mesh.program(
        """
        import sys
        import kos_cluster as kos
        import beside

        def opened(box):
            return box.x + 1

        if __name__ == "__main__":
            with kos.Executor() as executor, kos.Pool() as pool:
                kos_folder = sys.path.pop(0)
                import os; os.chdir("/")  # the nodes share this machine's files: let them not find it by themselves
                print(executor.submit(opened, beside.Box(1)).result(), pool.map(opened, [beside.Box(2)]))
        """
    )
    out, err = program.communicate(timeout=60)
    assert (out, err) == ("2 [3]\n", "")


def test_functions_that_are_large_or_hold_a_block_of_memory_are_not_kept(mesh: Mesh, Executor: Make):
    numbers = mesh.cluster.put(numpy.arange(1000))
    table = bytes(1 << 19)
    with Executor() as executor:
        assert executor.submit(lambda: int(numbers.get().sum())).result(timeout=60) == 499_500
        assert executor.submit(lambda: len(table)).result(timeout=60) == 1 << 19
        assert executor.submit(numpy.sum, numbers).result(timeout=60) == 499_500
        assert list(executor.map(lambda n: len(table) + n, range(2))) == [(1 << 19), (1 << 19) + 1]


# ---- pools


def test_a_pools_calls():
    with kos.Pool(2) as pool:
        assert pool.apply(pow, (2, 5)) == 32
        assert pool.apply(int, ("ff",), {"base": 16}) == 255
        assert pool.map(square, range(5)) == pool.map(square, range(5), chunksize=2) == [0, 1, 4, 9, 16]
        assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
        assert list(pool.imap(square, range(7), chunksize=3)) == [0, 1, 4, 9, 16, 25, 36]
        assert sorted(pool.imap_unordered(square, range(4))) == [0, 1, 4, 9]
        assert pool.map(lambda x: x + 1, [1]) == [2]
        with pytest.raises(NotImplementedError):
            pickle.dumps(pool)


def test_a_pool_has_every_public_name_and_parameter_of_the_original():
    original = multiprocessing.pool.Pool
    public = {name for name in vars(original) if not name.startswith("_")} - {"Process"}  # that makes its own workers
    assert public and public <= vars(kos.Pool).keys()
    for name in (*public, "__init__"):
        theirs, ours = (
            list(inspect.signature(getattr(kind, name)).parameters.values()) for kind in (original, kos.Pool)
        )
        shown = [(one.name, one.kind) for one in ours if one.kind is not inspect.Parameter.KEYWORD_ONLY]
        assert shown == [(one.name, one.kind) for one in theirs], name
    given = inspect.signature(original.__init__).parameters
    assert {n: p.default for n, p in inspect.signature(kos.Pool).parameters.items() if n in given} == {
        n: p.default for n, p in given.items() if n != "self"
    }
    with kos.Pool(1, None, (), None, multiprocessing.get_context("spawn")) as pool:
        assert pool.apply(square, (3,)) == 9


def test_a_pool_refuses_what_the_original_refuses():
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            kos.Pool(wrong)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        kos.Pool(initializer=3)  # type: ignore[arg-type]
    pool = kos.Pool()
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    with pytest.raises(ValueError, match="Chunksize must be 1"):
        pool.imap(square, [1], chunksize=0)
    pool.close()
    pool.join()
    for call in (pool.apply_async, pool.map_async, pool.imap):
        with pytest.raises(ValueError, match="Pool not running"):
            call(square, [1])  # type: ignore[operator]


def test_results_can_be_waited_for_and_asked(tmp_path: Path):
    with kos.Pool() as pool:
        result = pool.apply_async(waits_for, (str(tmp_path / "gate"),))
        assert not result.ready()
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(timeout=0.01)
        iterator = pool.imap(waits_for, [str(tmp_path / "gate")])
        with pytest.raises(multiprocessing.TimeoutError):
            iterator.next(timeout=0.01)
        (tmp_path / "gate").touch()
        assert result.get(timeout=30) == iterator.next(timeout=30) == str(tmp_path / "gate")
        assert result.ready() and result.successful()
        failed = pool.map_async(int, ["1", "x"])
        failed.wait(30)
        assert failed.ready() and not failed.successful()
        with pytest.raises(ValueError, match="'x'"):
            failed.get()


def test_callbacks_have_run_when_a_result_is_there(capfd: pytest.CaptureFixture[str]):
    seen: list[object] = []
    with kos.Pool() as pool:
        pool.apply_async(square, (3,), callback=seen.append).wait(30)
        pool.map_async(square, [1, 2], callback=seen.append).wait(30)
        pool.apply_async(int, ("x",), callback=seen.append, error_callback=lambda error: seen.append(type(error))).wait(
            30
        )
        assert seen == [9, [1, 4], ValueError]
        assert pool.apply_async(square, (4,), callback=lambda _: 1 // 0).get(30) == 16
        assert pool.apply(square, (5,)) == 25
    assert "a pool's callback failed" in capfd.readouterr().err


def test_an_initializer_runs_once_a_worker_and_its_failure_is_told():
    def prepare(value: int) -> None:
        os.environ["PREPARED"] = os.environ.get("PREPARED", "") + str(value)

    def fail() -> None:
        raise RuntimeError("no start")

    with kos.Pool(initializer=prepare, initargs=(5,)) as pool:
        assert set(pool.map(os.getenv, ["PREPARED"] * 20)) == {"5"}
    with kos.Pool(initializer=fail) as pool, pytest.raises(SetUpError, match="no start"):
        pool.apply(square, (1,))


def test_a_worker_is_replaced_after_its_tasks():
    with kos.Pool(1, maxtasksperchild=3) as pool:
        served = pool.map(_pid, range(9), chunksize=1)
    assert len(served) == 9 and max(Counter(served).values()) <= 3


def _pid(_: int) -> tuple[str, int]:
    return os.environ["KOS_NODE"], os.getpid()


def test_terminating_stops_what_runs_and_tells_who_waits(tmp_path: Path):
    pool = kos.Pool()
    result = pool.apply_async(waits_for, (str(tmp_path / "never"),))
    iterator = pool.imap(waits_for, itertools.repeat(str(tmp_path / "never")))
    until(lambda: (tmp_path / "never.begun").exists(), "it runs")
    pool.terminate()
    pool.join()
    with pytest.raises(concurrent.futures.CancelledError):
        result.get(timeout=30)
    with pytest.raises((concurrent.futures.CancelledError, ValueError)):
        iterator.next(timeout=30)


def test_an_iterator_takes_no_more_than_it_may_be_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(poolresults, "AHEAD_LIMIT", 20)
    taken = itertools.count()
    with kos.Pool() as pool:
        iterator = pool.imap(square, taken)
        assert list(itertools.islice(iterator, 50)) == [n * n for n in range(50)]
        pool.terminate()
        pool.join()
    assert next(taken) <= 50 + 20 + 2
    pool = kos.Pool()
    rest = pool.imap_unordered(square, range(60))
    pool.close()
    pool.join()  # which waits for all of them
    assert sorted(rest) == [n * n for n in range(60)]


def test_what_cannot_be_pickled_fails_where_its_result_is_asked_for():
    with kos.Pool() as pool:
        unsent = pool.apply_async(square, (threading.Lock(),))
        with pytest.raises(TypeError, match="cannot pickle") as caught:
            unsent.get(timeout=30)
        assert any("argument 1: a _thread.lock" in note for note in caught.value.__notes__)
        with pytest.raises(NotPicklableError, match="The result"):
            pool.apply(threading.Lock)


def test_a_large_exception_keeps_its_type():
    def fail() -> None:
        raise ValueError("x" * (1 << 20))

    with kos.Pool() as pool, pytest.raises(ValueError, match="characters left out"):
        pool.apply(fail)


def test_a_pool_lives_as_long_as_its_results_and_is_warned_of_when_it_was_not_closed(tmp_path: Path):
    pool = kos.Pool()
    result = pool.apply_async(waits_for, (str(tmp_path / "gate"),))
    dropped = weakref.ref(pool)
    del pool
    (tmp_path / "gate").touch()
    assert result.get(timeout=30) == str(tmp_path / "gate")
    del result
    with pytest.warns(ResourceWarning, match="unclosed running"):
        until(lambda: gc.collect() >= 0 and dropped() is None, "nobody holds it")
    until(lambda: "kos-pool" not in {thread.name for thread in threading.enumerate()}, "its thread ends")


def test_the_end_of_an_executor_may_come_after_that_of_its_connection(mesh: Mesh):
    program = mesh.program(
        """
        import kos_cluster as kos

        with kos.connect() as cluster:
            executor, pool = kos.Executor(), kos.Pool()
            print(executor.submit(pow, 2, 3).result(), pool.apply(pow, (3, 2)))
        executor.shutdown()
        pool.terminate()
        pool.join()
        """
    )
    out, err = program.communicate(timeout=60)
    assert (out, err, program.returncode) == ("8 9\n", "", 0)
