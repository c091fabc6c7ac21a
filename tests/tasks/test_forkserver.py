"""The fork server as a process: what it forks, what it reports, and what is left when something is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kos_cluster.net import local
from kos_cluster.tasks import memory_kills
from tests.tasks.fork_daemon import ForkDaemon, TestedWorker, gone, until


@pytest.fixture
def daemon(short_folder: Path) -> Iterator[ForkDaemon]:
    daemon = ForkDaemon(short_folder)
    yield daemon
    daemon.close()


def holding(worker: TestedWorker, fn: Any) -> int:
    """Start a task that writes a number (a pid) to its output and goes on; the number."""
    worker.start(fn, [()])

    def told() -> bool:
        worker.read_streams()
        return worker.out.endswith("\n")

    until(told)
    return int(worker.out)


def sleep_for_ever() -> Any:
    def fn() -> None:
        import os
        import time

        print(os.getpid())
        time.sleep(1000)

    return fn


def start_grandchild(**options: Any) -> Any:
    def fn() -> None:
        import subprocess
        import time

        print(subprocess.Popen(["sleep", "1000"], **options).pid)
        time.sleep(1000)

    return fn


def test_a_worker_has_only_what_it_was_given(daemon: ForkDaemon) -> None:
    def look() -> Any:
        import os

        links = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) < 3}
        inherited = [
            fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}")
        ]
        inherited = [fd for fd in inherited if os.get_inheritable(fd)]
        return links, inherited, os.getcwd(), os.getpgrp() == os.getpid(), os.environ["KOS_NODE"]

    links, inherited, folder, leads, node = daemon.worker().value(look)
    assert links["0"] == os.devnull
    assert links["1"].startswith("pipe:") and links["2"].startswith("pipe:") and links["1"] != links["2"]
    assert inherited == []
    assert (folder, leads, node) == (str(daemon.folder), True, "node-a")


def test_the_output_ends_when_the_worker_does(daemon: ForkDaemon) -> None:
    """Nobody else holds the write ends: not the fork server, and not a later worker."""
    first, second = daemon.worker(), daemon.worker()
    first.send(local.Stop())
    assert daemon.exited(first).status == 0
    assert os.read(first._stdout, 10) == b""  # end of file, not "would block"
    assert second.value(lambda: 1) == 1


def test_a_killed_worker_is_reported_and_its_progress_is_readable(daemon: ForkDaemon) -> None:
    worker = daemon.worker()

    def fn(item: int) -> None:
        import os
        import signal

        if item == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    batch = worker.start(fn, [(0,), (1,), (2,), (3,)])
    exited = daemon.exited(worker)
    assert os.WTERMSIG(exited.status) == signal.SIGKILL
    assert not exited.out_of_memory
    assert worker.progress() == (batch, 2)


def test_an_exit_code_and_a_crash_are_reported(daemon: ForkDaemon) -> None:
    leaving, crashing = daemon.worker(), daemon.worker()
    leaving.start(lambda: os._exit(3), [()])
    assert os.waitstatus_to_exitcode(daemon.exited(leaving).status) == 3
    crashing.start(lambda: os.kill(os.getpid(), signal.SIGSEGV), [()])
    assert os.WTERMSIG(daemon.exited(crashing).status) == signal.SIGSEGV


def test_killing_the_fork_server_kills_its_workers(daemon: ForkDaemon) -> None:
    workers = [daemon.worker(), daemon.worker()]
    holding(workers[0], sleep_for_ever())
    daemon.process.kill()
    assert all(gone(worker.pid) for worker in workers)


@pytest.mark.parametrize("options", [{}, {"start_new_session": True}], ids=["its group", "a session of its own"])
def test_when_the_daemon_is_gone_all_processes_end(daemon: ForkDaemon, options: dict[str, Any]) -> None:
    worker = daemon.worker()
    grandchild = holding(worker, start_grandchild(**options))
    daemon.server.close()
    assert gone(worker.pid)
    assert gone(grandchild)
    assert gone(daemon.process.pid)
    assert daemon.process.wait() == 0


def test_what_a_killed_worker_started_ends_with_it(daemon: ForkDaemon) -> None:
    worker = daemon.worker()
    grandchild = holding(worker, start_grandchild())
    os.kill(worker.pid, signal.SIGKILL)
    daemon.exited(worker)
    assert gone(grandchild)


def make_semaphore() -> Any:
    def fn() -> None:
        import multiprocessing
        import os
        import signal
        import time
        from multiprocessing import resource_tracker

        lock = multiprocessing.get_context("spawn").Lock()
        os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)  # as the worker's end does, sooner or later
        with open("/proc/self/maps") as maps:
            print(*{line.split()[4] for line in maps if "/dev/shm/" in line})
        time.sleep(1000)
        os._exit(lock.acquire())

    return fn


def shared() -> set[int]:
    return {each.inode() for each in os.scandir("/dev/shm")}


def test_semaphores_end_with_their_worker(daemon: ForkDaemon) -> None:
    """Python's resource tracker, which would remove them, is killed, too."""
    worker = daemon.worker()
    semaphore = holding(worker, make_semaphore())
    assert semaphore in shared()
    os.kill(worker.pid, signal.SIGKILL)
    daemon.exited(worker)
    until(lambda: semaphore not in shared())


def test_semaphores_of_a_killed_fork_server_end_when_the_next_begins(daemon: ForkDaemon) -> None:
    semaphore = holding(worker := daemon.worker(), make_semaphore())
    daemon.process.kill()
    daemon.process.wait()
    assert gone(worker.pid)
    assert semaphore in shared()
    (daemon.folder / "following").mkdir()
    following = ForkDaemon(daemon.folder / "following")
    try:
        until(lambda: semaphore not in shared())
    finally:
        following.close()


def test_a_workspace_ends_with_its_worker(daemon: ForkDaemon) -> None:
    worker = daemon.worker()
    theirs = daemon.folder / "workspaces" / f"abc-{worker.pid}"
    other = daemon.folder / "workspaces" / "abc-1"
    for folder in (theirs, other):
        (folder / "sub").mkdir(parents=True)
    os.kill(worker.pid, signal.SIGKILL)
    daemon.exited(worker)
    until(lambda: not theirs.exists())
    assert other.exists()


def test_preloading_warms_later_workers_and_reports_what_failed(daemon: ForkDaemon) -> None:
    warm = daemon.preload("wave", "no_such_module")
    assert warm.modules == ["wave", "no_such_module"]
    assert warm.failed == {"no_such_module": "ModuleNotFoundError: No module named 'no_such_module'"}

    def loaded() -> bool:
        import sys

        return "wave" in sys.modules

    assert daemon.worker().value(loaded)


def test_work_goes_before_preloading(short_folder: Path) -> None:
    """A fork that is asked for while modules are imported waits for one of them, not for all."""
    daemon = ForkDaemon(short_folder, PYTHONPATH=str(short_folder))
    modules = [f"slow_{number}" for number in range(3)]
    for name in modules:
        (short_folder / f"{name}.py").write_text("import time; time.sleep(0.2)")
    daemon.server.send(msgspec.msgpack.encode(local.Preload(modules)))
    daemon.workers.append(TestedWorker(daemon, 0))
    assert isinstance(daemon.hear(), local.Forked)
    assert daemon.hear() == local.Warm(modules, {})
    daemon.close()


def test_preloaded_numpy_runs_with_one_thread_until_a_worker_may_use_more(daemon: ForkDaemon) -> None:
    daemon.preload("numpy")

    def threads() -> list[int]:
        import threadpoolctl

        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]

    one, two = daemon.worker(), daemon.worker()
    assert set(one.value(threads)) == {1}
    assert set(two.value(threads, env=two.environment(threads=2))) == {2}


def test_an_interrupt_from_the_terminal_does_not_end_it(daemon: ForkDaemon) -> None:
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.worker().value(lambda: 1) == 1


def test_a_worker_that_cannot_start_says_why(daemon: ForkDaemon) -> None:
    spool, daemon.folder = daemon.folder, daemon.folder / "missing"
    worker = TestedWorker(daemon, 0)
    daemon.workers.append(worker)
    daemon.folder = spool
    assert isinstance(daemon.hear(), local.Forked)
    assert os.waitstatus_to_exitcode(daemon.exited(worker).status) == 70
    worker.read_streams()
    assert "FileNotFoundError" in worker.err


class TestMemoryKills:
    def counter(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[memory_kills.Counter, Path]:
        events = folder / "memory.events"
        events.write_text("low 0\noom 0\noom_kill 4\n")
        monkeypatch.setattr(memory_kills, "_events_file", lambda: events)
        return memory_kills.Counter(), events

    def test_no_kill_counted_no_kill_charged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        counter, _ = self.counter(tmp_path, monkeypatch)
        assert not counter.take(counter.read())

    def test_one_kill_is_credited_to_one_death(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        counter, events = self.counter(tmp_path, monkeypatch)
        events.write_text("oom_kill 5\n")
        assert [counter.take(4), counter.take(4)] == [True, False]

    def test_a_kill_before_the_fork_is_not_credited(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        counter, events = self.counter(tmp_path, monkeypatch)
        events.write_text("oom_kill 5\n")
        assert not counter.take(counter.read())

    def test_this_machine_has_a_counter(self) -> None:
        assert memory_kills.Counter().read() >= 0


def test_it_starts_without_numpy_or_the_network(daemon: ForkDaemon) -> None:
    maps = subprocess.run(
        ["cat", f"/proc/{daemon.process.pid}/maps"], capture_output=True, text=True, check=True
    ).stdout
    assert "numpy" not in maps
    assert len(os.listdir(f"/proc/{daemon.process.pid}/task")) == 1


def test_it_imports_nothing_that_its_workers_do_not_need() -> None:
    """Each node has one, and its memory is the node's: what the daemon alone needs stays out."""
    code = "import sys, kos_cluster.tasks.forkserver; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"zmq", "cryptography", "ssl", "asyncio", "psutil", "numpy", "IPython"}.isdisjoint(loaded)
    assert "kos_cluster" in loaded
