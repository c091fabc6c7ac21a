"""What a program sees of tasks on a real cluster: results, errors, options, nesting."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import kos_cluster as kos
from kos_cluster import errors
from kos_cluster.core.records import AttemptEnd, TaskState
from kos_cluster.tasks.failures import RemoteTraceback
from tests.mesh.conftest import Mesh, until


def test_a_result_comes_back(mesh: Mesh):
    assert mesh.cluster.submit(lambda a, b: a + b, 40, b=2).result() == 42


def test_map_keeps_the_order_and_uses_every_node(mesh: Mesh):
    def where(number: int) -> tuple[int, str]:
        time.sleep(0.02)
        return number, os.environ["KOS_NODE"]

    results = list(mesh.cluster.map(where, range(40)))
    assert [number for number, _ in results] == list(range(40))
    assert {node for _, node in results} == {"node1", "node2"}


def test_map_of_many_small_tasks(mesh: Mesh):
    assert list(mesh.cluster.map(lambda x, y: x * y, range(20_000), range(20_000))) == [x * x for x in range(20_000)]


def test_many_separate_submits(mesh: Mesh):
    futures = [mesh.cluster.submit(pow, number, 2) for number in range(2_000)]
    assert mesh.cluster.gather(futures) == [number**2 for number in range(2_000)]


def test_an_exception_keeps_its_type_and_shows_where_it_was_raised(mesh: Mesh):
    def fail() -> None:
        raise KeyError("no such thing")

    future = mesh.cluster.submit(fail)
    with pytest.raises(KeyError, match="no such thing") as caught:
        future.result()
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert f"task {future.task}, attempt 1" in str(caught.value.__cause__)
    assert "raise KeyError" in str(caught.value.__cause__)
    assert isinstance(future.exception(), KeyError)


def test_a_failure_in_a_map_is_raised_at_its_place(mesh: Mesh):
    results = mesh.cluster.map(lambda x: 1 // x, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert next(results) == 1


def test_futures_of_a_map_and_as_completed(mesh: Mesh):
    futures = mesh.cluster.map(abs, [-1, -2, -3]).futures
    assert sorted(f.result() for f in mesh.cluster.as_completed(futures)) == [1, 2, 3]


def test_a_future_can_be_awaited(mesh: Mesh):
    async def main() -> list[int]:
        return await asyncio.gather(*(mesh.cluster.submit(pow, 2, n) for n in range(5)))

    assert asyncio.run(main()) == [1, 2, 4, 8, 16]


def test_the_executor_is_a_standard_one(mesh: Mesh):
    with kos.Executor() as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        assert list(pool.map(pow, [2, 3], [3, 2])) == [8, 9]
        done, _ = concurrent.futures.wait([pool.submit(int, "7")])
        assert done.pop().result() == 7
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


def test_an_executors_initializer_runs_once_a_worker_before_its_calls(mesh: Mesh):
    def prepare(value: int) -> None:
        import builtins

        builtins.prepared = getattr(builtins, "prepared", 0) + value  # type: ignore[attr-defined]

    def seen(_: int) -> int:
        import builtins

        return builtins.prepared  # type: ignore[attr-defined,no-any-return]

    with kos.Executor(initializer=prepare, initargs=(5,)) as pool:
        assert set(pool.map(seen, range(20))) == {5}


def test_max_workers_caps_what_runs_at_once(mesh: Mesh, tmp_path: Path):
    def overlap(folder: str, number: int) -> int:
        mark = Path(folder) / str(number)
        mark.touch()
        time.sleep(0.03)
        count = len(list(Path(folder).iterdir()))
        mark.unlink()
        return count

    with kos.Executor(max_workers=1) as pool:
        assert set(pool.map(overlap, [str(tmp_path)] * 6, range(6))) == {1}


def test_on_names_a_node(mesh: Mesh):
    assert mesh.cluster.submit(os.getenv, "KOS_NODE", on="node2").result() == "node2"


def test_an_unknown_node_and_impossible_needs_are_refused_at_once(mesh: Mesh):
    with pytest.raises(errors.NoSuchNodeError, match="node9"):
        mesh.cluster.submit(int, on="node9")
    with pytest.raises(errors.PlacementError, match="needs 1000 slots"):
        mesh.cluster.submit(int, cpus=1000)
    with pytest.raises(errors.UsageError, match="amount of memory"):
        mesh.cluster.submit(int, memory="lots")


def test_a_task_knows_who_it_is(mesh: Mesh):
    def who() -> tuple[str | None, ...]:
        return tuple(os.environ.get(name) for name in ("KOS_NODE", "KOS_TASK", "KOS_ATTEMPT", "OMP_NUM_THREADS"))

    future = mesh.cluster.submit(who)
    node, task, attempt, threads = future.result()
    assert node in ("node1", "node2")
    assert (task, attempt, threads) == (future.task, "1", "1")


def test_environment_variables_travel(mesh: Mesh):
    assert mesh.cluster.submit(os.getenv, "COLOUR", env={"COLOUR": "blue"}).result() == "blue"


def test_workers_draw_different_random_numbers_and_a_seed_makes_them_repeat(mesh: Mesh):
    def draw(_: int) -> tuple[float, float]:
        time.sleep(0.02)
        return random.random(), float(np.random.random())

    free = list(mesh.cluster.map(draw, range(8)))
    assert len({number for pair in free for number in pair}) == 16
    assert list(mesh.cluster.map(draw, range(8), seed=7)) == list(mesh.cluster.map(draw, range(8), seed=7))


def test_large_arguments_and_results_take_the_bulk_port(mesh: Mesh):
    array = np.arange(1_000_000, dtype=np.float64)
    doubled = mesh.cluster.submit(lambda a: a * 2, array).result()
    assert np.array_equal(doubled, array * 2)


def test_an_argument_over_the_limit_is_refused_with_its_size(mesh: Mesh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kos_cluster.tasks.job.ARGUMENT_LIMIT_BYTES", 1000)
    with pytest.raises(errors.LimitError, match="over the limit of 1,000"):
        mesh.cluster.submit(len, b"x" * 2000)


def test_what_cannot_be_pickled_is_named(mesh: Mesh):
    lock = threading.Lock()
    with pytest.raises(errors.NotPicklableError, match="lock"):
        mesh.cluster.submit(lambda: lock)


def test_tasks_that_submit_tasks_do_not_deadlock(mesh: Mesh):
    def parent(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(kos.connect().map(parent, [depth - 1] * 2))

    # More parents wait at once than the cluster has slots.
    assert list(mesh.cluster.map(parent, [2, 2, 2])) == [4, 4, 4]


def test_local_modules_travel_and_so_do_their_edits(mesh: Mesh, tmp_path: Path):
    module = tmp_path / "mylocal.py"
    source = """
        import sys, time, importlib, pathlib
        sys.path.insert(0, {folder!r})
        import kos_cluster as kos, mylocal
        cluster = kos.connect()
        print(cluster.submit(mylocal.answer).result())
        pathlib.Path({file!r}).write_text("def answer(): return 'edited, and longer'")
        importlib.reload(mylocal)
        print(cluster.submit(mylocal.answer).result())
        """
    module.write_text("def answer(): return 'first'")
    program = mesh.program(source.format(folder=str(tmp_path), file=str(module)))
    out, err = program.communicate(timeout=30)
    assert out.split("\n")[:2] == ["first", "edited, and longer"], err


def test_output_of_tasks_appears_where_they_were_submitted(mesh: Mesh):
    program = mesh.program(
        """
        import sys, os, kos_cluster as kos
        def speak(n):
            print("out", n)
            os.write(2, b"err %d\\n" % n)
        kos.connect().submit(speak, 5).result()
        """
    )
    out, err = program.communicate(timeout=30)
    assert out == "out 5\n"
    assert "err 5\n" in err


def test_a_missing_package_is_named_with_what_to_type(mesh: Mesh):
    def use() -> None:
        import a_package_that_nobody_has  # noqa: F401

    with pytest.raises(ModuleNotFoundError, match=r"on node 'node\d'.*pip install a_package_that_nobody_has"):
        mesh.cluster.submit(use).result()


def test_a_worker_that_dies_is_tried_again_and_the_story_tells(mesh: Mesh, tmp_path: Path):
    def die_once(folder: str) -> str:
        mark = Path(folder) / "mark"
        if not mark.exists():
            mark.touch()
            print("last words")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    future = mesh.cluster.submit(die_once, str(tmp_path))
    assert future.result(20) == "survived"
    story = future.story()
    assert story is not None and story.state is TaskState.DONE
    assert [a.end for a in story.attempts] == [AttemptEnd.WORKER_LOST, AttemptEnd.DONE]
    assert story.attempts[0].cause.startswith("SIGKILL")
    (told,) = mesh.cluster.stories(future.task)
    assert [a.end for a in told.attempts] == [AttemptEnd.WORKER_LOST, AttemptEnd.DONE]


def test_a_worker_that_always_dies_fails_with_its_last_words(mesh: Mesh):
    def die() -> None:
        print("last words")
        sys.stdout.flush()
        os._exit(7)

    with pytest.raises(errors.TaskLostError, match=r"(?s)2 attempts; exit code 7.*last words"):
        mesh.cluster.submit(die, retries=1).result(20)


def test_a_callback_may_submit_while_another_thread_does(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A submit of a new function asks the mesh thread, in which the callback runs."""
    go, again, called = tmp_path / "go", [], threading.Event()
    possible = mesh.cluster._submission.possible

    def when_called(*args):
        if threading.current_thread() is threading.main_thread():
            go.touch()
            assert called.wait(30)
        return possible(*args)

    def then(_: kos.Future) -> None:
        called.set()
        again.append(mesh.cluster.submit(lambda: "again"))

    def waits() -> None:
        while not go.exists():
            time.sleep(0.01)

    mesh.cluster.submit(waits).add_done_callback(then)
    monkeypatch.setattr(mesh.cluster._submission, "possible", when_called)
    assert mesh.cluster.submit(lambda: "first").result(30) == "first"
    until(lambda: again, "the callback has submitted")
    assert again[0].result(30) == "again"


def test_a_silent_submitter_catches_up(mesh: Mesh):
    program = mesh.program(
        """
        import ctypes, sys, time, kos_cluster as kos
        cluster = kos.connect()
        futures = [cluster.submit(lambda n: n, n) for n in range(50)]
        time.sleep(0.03)  # they are sent, and the new job is about to be told to the nodes
        ctypes.PyDLL(None).sleep(6)  # holds the GIL, for longer than a node may be silent
        for _ in range(3):
            ctypes.PyDLL(None).sleep(1)
        print(sorted(cluster.gather(futures)) == list(range(50)))
        attempts = [a for f in futures for a in f.story().attempts]
        print({a.end.value for a in attempts})
        print({a.cause for a in attempts}, file=sys.stderr)
        """
    )
    out, err = program.communicate(timeout=60)
    assert out == "True\n{'done'}\n", err


def test_a_forked_child_connects_anew(mesh: Mesh):
    program = mesh.program(
        """
        import os, kos_cluster as kos
        print(kos.connect().submit(int, 1).result(), flush=True)
        if (pid := os.fork()) == 0:
            print(kos.connect().submit(int, 2).result(), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print(kos.connect().submit(int, 3).result())
        """
    )
    out, err = program.communicate(timeout=30)
    assert out.split() == ["1", "2", "3"], err


def test_nothing_is_left_in_the_spool_when_results_were_taken(mesh: Mesh):
    mesh.cluster.submit(bytes, 3_000_000).result()
    spools = [mesh.home.path / f"clusters/local/run/node{n}/spool" for n in (1, 2)]
    until(lambda: not [p for s in spools for p in s.iterdir() if p.is_file()], "large results are removed")


def test_a_program_without_a_cluster_gets_a_sentence(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", "import kos_cluster as kos; kos.connect()"],
        env={**os.environ, "KOS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "This machine is in no cluster. Type 'kos up'" in done.stderr


def test_large_arguments_are_not_kept_when_their_tasks_are_done(mesh: Mesh):
    """A loop that submits large arrays must not grow its own memory."""
    program = mesh.program(
        """
        import os, psutil, kos_cluster as kos
        cluster = kos.connect()
        size = 20_000_000
        cluster.submit(len, os.urandom(size)).result()
        before = psutil.Process().memory_info().rss
        for _ in range(10):
            assert cluster.submit(len, os.urandom(size)).result() == size
        print((psutil.Process().memory_info().rss - before) // size)
        """
    )
    out, err = program.communicate(timeout=60)
    assert int(out) <= 3, err  # of ten


def test_many_failures_fold_into_one_with_a_count(mesh: Mesh):
    def fail(number: int) -> None:
        raise ValueError("out of range" if number else "first")

    futures = [mesh.cluster.submit(fail, number) for number in range(20)]
    concurrent.futures.wait(futures)
    with pytest.raises(ValueError, match="first") as caught:
        mesh.cluster.gather(futures)
    assert caught.value.__notes__ == ["19 other tasks had failed by then:\n19 times: ValueError: out of range"]


def test_functions_that_carry_instances_of_the_programs_own_classes(mesh: Mesh):
    program = mesh.program(
        """
        import collections, dataclasses, functools, kos_cluster as kos
        cluster = kos.connect()
        class Point:
            def __init__(self, x): self.x = x
            def add(self, y): return self.x + y
            def __call__(self, y): return self.x * y
        class Table(dict): pass
        class Row(list): pass
        @dataclasses.dataclass
        class Pair:
            a: int
            b: int
        point, table, row, pair = Point(3), Table(k=7), Row([8]), Pair(1, 2)
        works = [
            cluster.submit(lambda: point.x), cluster.submit(point.add, 4), cluster.submit(point, 5),
            cluster.submit(lambda q=point: q.x), cluster.submit(functools.partial(point.add, 6)),
            cluster.submit(lambda: table["k"]), cluster.submit(lambda: row[0]), cluster.submit(lambda: pair.b),
        ]
        print([work.result() for work in works])
        """
    )
    out, err = program.communicate(timeout=30)
    assert out == "[3, 7, 15, 3, 9, 7, 8, 2]\n", err


def test_stop_iteration_in_a_task_does_not_cut_a_map_short(mesh: Mesh):
    def stop(number: int) -> int:
        if number == 3:
            raise StopIteration
        return number

    results = mesh.cluster.map(stop, range(5))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        next(results)
    assert next(results) == 4


def test_exceptions_with_constructors_of_their_own_keep_their_type(mesh: Mesh):
    program = mesh.program(
        """
        import kos_cluster as kos
        class Odd(Exception):
            def __init__(self, left, *, right):
                self.left, self.right = left, right
                super().__init__(f"{left} and {right}")
        def fail(): raise Odd(1, right=2)
        try:
            kos.connect().submit(fail).result()
        except Odd as error:
            print(error, error.left, error.right)
        """
    )
    out, err = program.communicate(timeout=30)
    assert out == "1 and 2 1 2\n", err


def test_a_deleted_folder_is_no_obstacle(mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert mesh.cluster.submit(pow, 2, 3).result() == 8


def submits_before_its_node_is_linked() -> int:
    """As on a slow machine: the task has its answer only when its node lends its one slot."""
    here = os.environ["KOS_NODE"]
    mesh = kos.connect()._mesh
    member = next(member for member in mesh._attachment.members.values() if member.name == here)
    mesh.ask(lambda: mesh._attachment.down(member.id, "it is not linked yet"))
    return kos.connect().submit(abs, -5, on=here).result(timeout=15)


def test_a_task_that_waits_before_its_node_is_linked_lends_its_slot(mesh: Mesh) -> None:
    assert mesh.cluster.submit(submits_before_its_node_is_linked, on="node1", timeout=30).result(timeout=30) == 5


def test_what_a_task_of_a_detached_job_raised_comes_with_its_results(mesh: Mesh) -> None:
    job = mesh.cluster.detach(int, ["ten"])
    with pytest.raises(ValueError, match="invalid literal for int"):
        job.results(30)
