"""A cluster of processes on this machine in the place of the mesh, for tests of what is built on `Cluster.launch`.

Everything but the network is the real thing: parts, environments, workers' set-up, futures, failures. Run as a
program it is one worker.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import secrets
import signal
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kos_cluster.core.records import MemberState, Story, TaskState
from kos_cluster.errors import KosError, TaskLostError
from kos_cluster.tasks import environment, failures, serialise
from kos_cluster.tasks.context import here
from kos_cluster.tasks.futures import Future, Outcome
from kos_cluster.tasks.job import JobSpec
from kos_cluster.tasks.why import Why

WORKERS = 2
_SIZE = struct.Struct("<Q")


class StandIn:
    """Has what redirect and launching use of `Cluster`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[StandInJob] = []

    def launch(self, spec: JobSpec) -> StandInJob:
        job = StandInJob(f"j{len(self.jobs)}", spec, self.folder)
        self.jobs.append(job)
        return job

    def heard(self) -> types.SimpleNamespace:
        """Two nodes, of one slot each."""
        nodes = [types.SimpleNamespace(slots=1, state=MemberState.ALIVE) for _ in range(WORKERS)]
        return types.SimpleNamespace(members=nodes)

    def why(self, id: str) -> list[Why]:
        """Nothing waits here."""
        return []

    def stop(self) -> None:
        """End what still runs."""
        for job in self.jobs:
            job.stop()


class StandInJob:
    def __init__(self, id_: str, spec: JobSpec, folder: Path) -> None:
        self.id, self.spec = id_, spec
        self._folder = folder
        self._count = 0
        self._waiting: queue.SimpleQueue[tuple[int, bytes, Future] | None] = queue.SimpleQueue()
        self._states: dict[int, TaskState] = {}
        self._futures: dict[int, Future] = {}
        self.owner = None
        self._cancelled = threading.Event()
        self._threads: list[threading.Thread] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        self._busy: set[subprocess.Popen[bytes]] = set()
        for number in range(min(WORKERS, spec.options.max_parallel or WORKERS)):
            thread = threading.Thread(target=self._serve, args=(f"n{number}",), daemon=True)
            thread.start()
            self._threads.append(thread)

    def add(self, payload: bytes) -> Future:
        index = self._count
        self._count += 1
        future = self._futures[index] = Future(self, index)
        self._states[index] = TaskState.WAITING
        self._waiting.put((index, payload, future))
        return future

    def cancel(self) -> None:
        """What runs ends with its worker, as in a mesh."""
        self._cancelled.set()
        for worker in list(self._busy):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(worker.pid, signal.SIGKILL)

    @property
    def was_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def close(self) -> None:
        self._waiting.put(None)

    def stop(self) -> None:
        self.close()
        for worker in self._workers:
            os.killpg(worker.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join()

    def cancel_task(self, index: int) -> None:
        """A task that runs goes on here, which a mesh would take for a node that does not answer."""
        if self._states[index] is TaskState.WAITING:
            self._states[index] = TaskState.CANCELLED
            self._futures[index].settle(None)

    def story(self, index: int) -> Story:
        return Story(f"{self.id}.{index}", "", self._states[index], ())

    def _serve(self, node: str) -> None:
        worker: subprocess.Popen[bytes] | None = None
        while (item := self._waiting.get()) is not None:
            index, payload, future = item
            if self._cancelled.is_set() or self._states[index] is TaskState.CANCELLED:
                future.settle(None)
                continue
            self._states[index] = TaskState.RUNNING
            if worker is None:
                worker = self._start(node)
            self._busy.add(worker)
            outcome = None if self._cancelled.is_set() else _ask(worker, self.id, index, payload)
            self._busy.discard(worker)
            future.settle(None if self._cancelled.is_set() else outcome)
        self._waiting.put(None)
        if worker is not None:
            with worker:
                self._workers.remove(worker)

    def _start(self, node: str) -> subprocess.Popen[bytes]:
        workspaces = self._folder / f"{node}-{secrets.token_hex(4)}"
        set_up = pickle.dumps((self.spec.environment, dict(self.spec.parts), self.spec.fn, node, workspaces))
        words = [sys.executable, "-P", os.path.abspath(__file__)]
        # A worker's environment is its node's, not the script's.
        worker = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_node_environ(),
            cwd="/",
            process_group=0,
        )
        self._workers.append(worker)
        _put(worker.stdin, set_up)  # type: ignore[arg-type]
        return worker


def _node_environ() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def _ask(worker: subprocess.Popen[bytes], job: str, index: int, payload: bytes) -> Outcome | BaseException:
    try:
        _put(worker.stdin, pickle.dumps((job, index, payload)))  # type: ignore[arg-type]
        failed, data = pickle.loads(_get(worker.stdout))  # type: ignore[arg-type]
    except (BrokenPipeError, EOFError):
        return TaskLostError(f"Task {job}.{index} was lost with its worker, 1 time.")
    return Outcome(data, failed)


def _put(file: BinaryIO, data: bytes) -> None:
    file.write(_SIZE.pack(len(data)) + data)
    file.flush()


def _get(file: BinaryIO) -> bytes:
    head = file.read(_SIZE.size)
    if len(head) < _SIZE.size:
        raise EOFError
    return file.read(_SIZE.unpack(head)[0])


def worker() -> None:
    """Serve over descriptors 0 and 1; what tasks print goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    wanted, parts, fn, here.node, workspaces = pickle.loads(_get(requests))
    refusal: BaseException | None = None
    try:
        environment.apply(wanted, parts.__getitem__, node=here.node, key="k" * 64, workspaces=workspaces)
    except KosError as error:
        refusal = error
    function: Callable[..., object] = serialise.loads(fn)
    with contextlib.suppress(EOFError):
        while True:
            here.job, here.index, payload = pickle.loads(_get(requests))
            try:
                if refusal is not None:
                    raise refusal
                args, kwargs = serialise.loads(payload)
                data = serialise.dumps_result(function(*args, **kwargs))
                answer = (False, data if isinstance(data, bytes) else b"".join(data))
            except BaseException as error:
                task = f"{here.job}.{here.index}"
                answer = (True, pickle.dumps(failures.failure_of(error, node=here.node, task=task, attempt=1)))
            _put(answers, pickle.dumps(answer))


@contextlib.contextmanager
def connected(folder: Path) -> Iterator[StandIn]:
    """`kos_cluster.connect()` gives a stand-in meanwhile."""
    import kos_cluster

    cluster = StandIn(folder)
    kos_cluster.connect = lambda name=None: cluster  # type: ignore[assignment, return-value]
    try:
        yield cluster
    finally:
        del kos_cluster.connect


def script() -> None:
    """Run a script as on a node: `stand_in.py FOLDER SCRIPT ARGUMENT...` in an unpacked workspace."""
    from kos_cluster.tasks import script as runner

    with connected(Path(sys.argv[1])):
        runner.main(sys.argv[2:])


if __name__ == "__main__":
    # The worker's `__main__` becomes the user's script, so this module must not be it.
    import importlib

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    module = importlib.import_module("stand_in")
    sys.path.pop(0)
    module.script() if len(sys.argv) > 1 else module.worker()
