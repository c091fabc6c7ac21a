"""A worker as its daemon meets it: a real process forked by a real fork server."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kos_cluster.core.records import indices_of
from kos_cluster.net import local, scoreboard
from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.tasks import failures, serialise
from kos_cluster.tasks import worker as worker_module
from kos_cluster.tasks.failures import to_exception
from tests.tasks.fork_daemon import ForkDaemon, TestedWorker, interrupt, until


def started(worker: TestedWorker) -> None:
    """Wait until the running task has printed something."""

    def told() -> bool:
        worker.read_streams()
        return bool(worker.out)

    until(told)


class TestRunning:
    def test_values_come_back_by_index(self, worker: TestedWorker) -> None:
        batch = worker.run(lambda x: x * x, [(n,) for n in range(5)], runs=[(3, 2), (10, 3)])
        assert batch.values == {3: 0, 4: 1, 10: 4, 11: 9, 12: 16}
        assert not batch.failures and not batch.retire

    def test_a_task_sees_the_gpus_that_its_worker_was_given(self, worker: TestedWorker) -> None:
        seen = worker.run(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"), [()], gpus="1,GPU-7").values
        assert seen == {0: "1,GPU-7"}

    def test_a_task_knows_who_it_is(self, worker: TestedWorker) -> None:
        def who(_: int) -> Any:
            import subprocess

            from kos_cluster.tasks.context import current

            shell = subprocess.check_output("echo $KOS_NODE $KOS_TASK $KOS_ATTEMPT", shell=True, text=True)
            return os.environ["KOS_TASK"], shell.strip(), current()

        batch = worker.run(who, [(0,), (1,)])
        assert batch.values[0] == ("job.0", "node-a job.0 1", ("node-a", "job.0", 1))
        assert batch.values[1] == ("job.1", "node-a job.1 1", ("node-a", "job.1", 1))

    def test_a_function_is_loaded_once_a_worker(self, worker: TestedWorker) -> None:
        def count(calls: list[int] = []) -> int:  # noqa: B006 (what is tested is that it is kept)
            calls.append(1)
            return len(calls)

        data = serialise.dumps_callable(count)
        assert [worker.run(data, [()]).values[0] for _ in range(3)] == [1, 2, 3]

    def test_small_tasks_share_messages_and_slow_ones_do_not_wait_for_each_other(self, worker: TestedWorker) -> None:
        def pause(seconds: float) -> None:
            import time

            if seconds:
                time.sleep(seconds)

        assert len(worker.run(pause, [(2 * worker_module.NOT_TINY_S,)] * 4).messages) == 4
        many = worker.run(pause, [(0,)] * 500)
        assert len(many.messages) < 100
        assert [message.last for message in many.messages].count(True) == 1

    def test_progress_is_noted_before_each_task(self, worker: TestedWorker) -> None:
        batch = worker.start(lambda n: None, [(n,) for n in range(7)])
        worker.finish()
        assert worker.progress() == (batch, 6)

    def test_a_large_argument_is_a_part(self, worker: TestedWorker) -> None:
        part = worker.part(serialise.dumps_args(("x" * 10,), {}))
        batch = worker.run(lambda x: len(x), [(1,)], large={0: part})
        assert batch.values == {0: 10}

    def test_an_array_in_a_file_part_can_be_written_to_and_is_new_for_each_task(self, worker: TestedWorker) -> None:
        def spoil(array: Any) -> float:
            array += 1
            return float(array[0])

        file = worker.daemon.folder / "argument"
        file.write_bytes(serialise.dumps_args((np.zeros(BULK_BYTES // 4),), {}))
        worker.send(local.Part("a" * 64, str(file)))
        batch = worker.run(spoil, [(), ()], large={0: "a" * 64, 1: "a" * 64})
        assert batch.values == {0: 1.0, 1: 1.0}

    def test_a_part_that_did_not_come_is_a_failure(self, worker: TestedWorker) -> None:
        batch = worker.run(lambda x: x, [()], large={0: "b" * 64})
        assert "did not reach this worker" in batch.failures[0].message

    def test_a_process_that_the_task_forks_reports_nothing(self, worker: TestedWorker) -> None:
        def fork(n: int) -> int:
            return os.fork() if n == 0 else n

        batch = worker.run(fork, [(n,) for n in range(5)])
        assert batch.values[0] > 0
        assert batch.values == {0: batch.values[0], 1: 1, 2: 2, 3: 3, 4: 4}
        assert worker.value(lambda: "alone") == "alone"


class TestLargeResults:
    def test_it_lies_in_the_spool_and_nowhere_else(self, worker: TestedWorker) -> None:
        batch = worker.run(lambda n: b"x" * n, [(10,), (BULK_BYTES,)])
        name, size = batch.spooled[1]
        path = worker.daemon.spool / name
        assert len(bytes.fromhex(name)) == 16
        assert path.stat().st_size == size > BULK_BYTES
        assert path.stat().st_mode & 0o777 == 0o600
        assert batch.values[1] == b"x" * BULK_BYTES
        assert list(batch.spooled) == [1]

    def test_where_there_is_no_arena_it_lies_in_the_spool_too(self, worker: TestedWorker) -> None:
        batch = worker.run(lambda n: b"x" * n, [(BULK_BYTES,)], stays={})
        assert batch.values[0] == b"x" * BULK_BYTES
        assert list(batch.spooled) == [0] and not batch.messages[0].stayed

    def test_an_array(self, worker: TestedWorker) -> None:
        def make() -> Any:
            import numpy

            return {"a": numpy.arange(BULK_BYTES)}

        np.testing.assert_array_equal(worker.value(make)["a"], np.arange(BULK_BYTES))

    def test_a_full_spool_is_a_failure_that_says_so(self, daemon: ForkDaemon) -> None:
        worker = daemon.worker()

        def fill() -> bytes:
            import resource
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            return b"x" * (2 << 20)

        before = set(daemon.spool.iterdir())
        batch = worker.run(fill, [()])
        assert "could not be written on node node-a" in batch.failures[0].message
        assert set(daemon.spool.iterdir()) == before


class TestFailing:
    def test_an_exception_comes_back_with_its_remote_traceback(self, worker: TestedWorker) -> None:
        def divide(by: int) -> float:
            return 1 / by

        batch = worker.run(divide, [(1,), (0,), (2,)])
        assert batch.values == {0: 1.0, 2: 0.5}
        exc = to_exception(batch.failures[1])
        assert type(exc) is ZeroDivisionError
        text = str(exc.__cause__)
        assert "node node-a, task job.1, attempt 1" in text
        assert "in divide" in text
        assert "kos_cluster" not in text

    def test_a_result_that_cannot_be_pickled_names_the_object(self, worker: TestedWorker) -> None:
        batch = worker.run(lambda: {"rows": (x for x in [])}, [()])
        assert batch.failures[0].message.startswith("The result cannot be pickled: key 'rows': a generator.")

    def test_exit_fails_the_task_and_not_the_worker(self, worker: TestedWorker) -> None:

        batch = worker.run(lambda n: sys.exit(n), [(3,), (0,)])
        assert [batch.failures[n].exit_code for n in (0, 1)] == [3, 0]
        assert worker.value(lambda: "alive") == "alive"

    def test_a_function_that_needs_a_missing_package(self, worker: TestedWorker) -> None:
        data = b"\x80\x05cno_such_package\nfn\n."
        batch = worker.run(data, [(), ()])
        for failure in batch.failures.values():
            exc = to_exception(failure)
            assert isinstance(exc, ModuleNotFoundError)
            assert "'no_such_package' on node 'node-a'" in str(exc)
            assert "pip install no_such_package" in str(exc)

    def test_arguments_that_cannot_be_read(self, worker: TestedWorker) -> None:
        part = worker.part(b"not a pickle")
        batch = worker.run(lambda: 1, [(), ()], large={0: part})
        assert "UnpicklingError" in batch.failures[0].type_name
        assert batch.values == {1: 1}

    def test_output_before_an_exit_is_not_lost(self, worker: TestedWorker) -> None:

        def fn() -> None:
            sys.stdout.write("no newline")
            raise ValueError

        worker.run(fn, [()])
        assert worker.out == "no newline"

    def test_a_closed_stdout_harms_nobody(self, worker: TestedWorker) -> None:

        worker.run(lambda: sys.stdout.close(), [()])
        assert worker.value(lambda: 1) == 1


class TestGivingBack:
    def waiting(self, path: Path) -> Any:
        def fn(n: int) -> int:
            import os
            import time

            while n == 1 and not os.path.exists(path):
                time.sleep(0.005)
            return n

        return fn

    def test_what_the_daemon_takes_out_of_the_pipe_is_not_run(self, worker: TestedWorker, tmp_path: Path) -> None:
        path = tmp_path / "go"
        number = worker.start(self.waiting(path), [(n,) for n in range(5)])
        until(lambda: worker.progress() == (number, 1))
        assert len(os.read(worker.claims[0], 100)) == 3
        path.touch()
        assert worker.finish().values == {0: 0, 1: 1}
        assert worker.run(lambda n: n, [(6,), (7,)]).values == {0: 6, 1: 7}

    def test_outcomes_that_wait_for_the_next_task_are_on_the_scoreboard(
        self, worker: TestedWorker, tmp_path: Path
    ) -> None:
        found: list[set[int]] = []
        while not any(found):  # on a slow machine these tasks are not tiny, and nothing is kept
            path = tmp_path / f"go{len(found)}"
            number = worker.start(self.waiting(path), [(2,), (3,), (4,), (1,)])
            until(lambda number=number: worker.progress() == (number, 3))  # type: ignore[misc]
            kept, _ = scoreboard.outcomes(worker.board, scoreboard.glance(worker.board))
            path.touch()
            batch = worker.finish()
            assert batch.values == {0: 2, 1: 3, 2: 4, 3: 1}
            assert {each.position: serialise.loads_result(bytearray(each.data)) for each in kept}.items() <= (
                batch.values.items()
            )
            sent = {index for message in batch.messages[:-1] for index in indices_of(message.runs)}
            found.append({each.position for each in kept})
            assert sent | found[-1] >= {0, 1, 2}
            until(lambda: scoreboard.glance(worker.board).kept_bytes == 0)

    def test_a_set_up_that_fails_fails_what_was_not_given_back(self, daemon: ForkDaemon) -> None:
        def fail() -> None:
            raise ValueError("no set-up")

        worker = daemon.worker()
        initializer = worker.part(serialise.dumps_callable((fail, ())))  # type: ignore[arg-type]
        batch = worker.run(lambda n: n, [(0,), (1,), (2,)], env=worker.environment(initializer=initializer))
        assert set(batch.failures) == {0, 1, 2} and batch.retire


class TestCancelling:
    def sleeper(self) -> Any:
        def fn(seconds: float) -> None:
            import time

            print("started")
            time.sleep(seconds)

        return fn

    def test_the_running_task_and_the_rest_of_its_batch_are_cancelled(self, worker: TestedWorker) -> None:
        worker.start(self.sleeper(), [(1000,)] * 3)
        started(worker)
        interrupt(worker)
        batch = worker.finish()
        assert [batch.failures[n].cancelled for n in range(3)] == [True] * 3
        assert worker.out == "started\n"
        assert worker.value(lambda: "alive") == "alive"

    def test_an_interrupted_import_retires_the_worker(self, worker: TestedWorker, tmp_path: Path) -> None:
        (tmp_path / "slow_module.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")

        def load(folder: str) -> None:

            sys.path.insert(0, folder)
            import slow_module  # noqa: F401

        worker.start(load, [(str(tmp_path),)])
        started(worker)
        interrupt(worker)
        batch = worker.finish()
        assert batch.failures[0].cancelled and batch.retire

    def test_an_interrupt_while_idle_is_ignored(self, worker: TestedWorker) -> None:
        worker.value(lambda: 1)
        interrupt(worker)
        assert worker.value(lambda: 2) == 2

    def test_a_task_may_clean_up(self, worker: TestedWorker) -> None:
        def tidy() -> None:
            import time

            try:
                print("started")
                time.sleep(1000)
            finally:
                print("tidied")

        worker.start(tidy, [()])
        started(worker)
        interrupt(worker)
        assert worker.finish().failures[0].cancelled
        assert worker.out == "started\ntidied\n"

    def test_an_interrupt_that_user_code_raises_itself_is_a_plain_failure(self, worker: TestedWorker) -> None:
        def fn() -> None:
            raise KeyboardInterrupt

        batch = worker.run(fn, [()])
        assert not batch.failures[0].cancelled
        assert type(to_exception(batch.failures[0])) is KeyboardInterrupt

    def test_an_interrupt_between_tasks_cancels_the_rest_of_the_batch(self, worker: TestedWorker) -> None:
        """The tasks are so short that the signal mostly strikes the worker's own loop."""

        count = 10_000

        def fn(n: int) -> None:
            import time

            if n == 0:
                print("started")
            if n == count - 1:
                time.sleep(1000)

        for _ in range(3):
            worker.out = ""
            worker.start(fn, [(n,) for n in range(count)])
            started(worker)
            interrupt(worker)
            batch = worker.finish()
            cancelled = [n for n, failure in batch.failures.items() if failure.cancelled]
            assert cancelled
            assert cancelled == list(range(count - len(cancelled), count))
            assert len(batch.values) == count - len(cancelled)

    def test_an_interrupt_during_a_display_leaves_the_socket_whole(self, worker: TestedWorker) -> None:
        def show() -> None:
            from kos_cluster.tasks.context import display

            print("started")
            while True:
                display({})

        worker.start(show, [()])
        started(worker)
        interrupt(worker)
        assert worker.finish().failures[0].cancelled
        assert worker.value(lambda: "alive") == "alive"

    def test_set_up_can_be_cancelled(self, daemon: ForkDaemon) -> None:
        worker = daemon.worker()
        initializer = worker.part(serialise.dumps_callable((self.sleeper(), (1000,))))  # type: ignore[arg-type]
        worker.start(lambda: 1, [()], env=worker.environment(initializer=initializer))
        started(worker)
        interrupt(worker)
        batch = worker.finish()
        assert batch.failures[0].cancelled and batch.retire


class TestShowing:
    def test_displays_keep_their_place_among_the_prints(self, worker: TestedWorker) -> None:
        def show() -> str:
            from kos_cluster.tasks.context import display

            print("before", end="")
            display({"n": 1})
            print("between")
            display({"n": 2})
            print("after")
            return "done"

        batch = worker.run(show, [()])
        assert batch.displays == [(0, {"n": 1}, "before"), (0, {"n": 2}, "beforebetween\n")]
        assert worker.out == "beforebetween\nafter\n"
        assert batch.values == {0: "done"}

    def test_from_threads_of_the_task(self, worker: TestedWorker) -> None:
        def show() -> None:
            from concurrent.futures import ThreadPoolExecutor

            from kos_cluster.tasks.context import current, display

            def one(n: int) -> None:
                print(f"line {n}")
                display({"n": n, "task": current().task})  # type: ignore[union-attr]

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(one, range(20)))

        batch = worker.run(show, [()])
        assert not batch.failures
        assert sorted(content["n"] for _, content, _ in batch.displays) == list(range(20))
        assert {content["task"] for _, content, _ in batch.displays} == {"job.0"}
        assert sorted(worker.out.splitlines()) == sorted(f"line {n}" for n in range(20))

    def test_what_json_cannot_hold_is_refused(self, worker: TestedWorker) -> None:
        def show() -> None:
            from kos_cluster.tasks.context import display

            display({"o": object()})

        batch = worker.run(show, [()])
        assert batch.failures[0].type_name.endswith("UsageError")
        assert "JSON" in batch.failures[0].message

    def test_outside_a_task(self) -> None:
        from kos_cluster.errors import UsageError
        from kos_cluster.tasks.context import current, display

        assert current() is None
        with pytest.raises(UsageError, match="outside a task"):
            display({})

    def test_work_that_arrives_while_a_display_waits_is_not_lost(self, worker: TestedWorker) -> None:
        def show() -> None:
            from kos_cluster.tasks.context import display

            display({})

        worker.start(show, [()])
        later = worker.part(serialise.dumps_args(("early part",), {}))
        worker.finish()
        assert worker.run(lambda x: x, [()], large={0: later}).values == {0: "early part"}


def test_user_code_does_not_see_the_fork_servers_main(worker: TestedWorker) -> None:
    def look() -> Any:
        import __main__

        return sorted(name for name in vars(__main__) if not name.startswith("__"))

    assert worker.value(look) == []


def test_exit_handlers_of_user_code_run_at_the_end(daemon: ForkDaemon) -> None:
    def register() -> None:
        import atexit

        atexit.register(print, "goodbye")

    worker = daemon.worker()
    worker.run(register, [()])
    worker.send(local.Stop())
    assert daemon.exited(worker).status == 0
    worker.read_streams()
    assert worker.out == "goodbye\n"


def test_failures_keep_within_their_limit(worker: TestedWorker) -> None:
    def fail() -> None:
        raise ValueError("x" * 10_000_000)

    failure = worker.run(fail, [()]).failures[0]
    assert len(failure.message) < failures.TEXT_LIMIT + 100


def test_a_crash_while_others_run_harms_only_its_own(daemon: ForkDaemon) -> None:
    good, bad = daemon.worker(), daemon.worker()
    bad.start(lambda: os.kill(os.getpid(), signal.SIGSEGV), [()])
    assert os.WTERMSIG(daemon.exited(bad).status) == signal.SIGSEGV
    assert good.value(lambda: 1) == 1
