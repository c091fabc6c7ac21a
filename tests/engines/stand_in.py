"""A connection to an engine that is threads of this process: what KOS does with a `Connection`, without an engine."""

from __future__ import annotations

import concurrent.futures
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pytest

from kos_cluster import Cluster
from kos_cluster.home import Home
from kos_cluster.services.engines import hosting, launching
from kos_cluster.services.engines.engine import Standing, Task, Write
from kos_cluster.services.engines.owner import EngineOwner

T = TypeVar("T")
NODE = "node1"  # beneath which the calls run


@contextmanager
def on_stand_in(cluster: Cluster) -> Iterator[StandIn]:
    """The cluster has an engine meanwhile, of whatever name."""
    host = hosting.Host(Home().cluster().run(NODE), NODE)
    connection = StandIn()
    owner = EngineOwner("stand-in", 1, connection, cluster._mesh)
    launcher = launching.Launcher(cluster._submission, owner)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hosting, "host", lambda: host)
            patch.setattr(launching, "launcher", lambda *_: launcher)
            yield connection
    finally:
        owner.close()
        host.close()


class _Task:
    def __init__(self, write: Write | None) -> None:
        self.stopped = threading.Event()
        self._write = write

    def write(self, stream: str, text: str) -> None:
        if self._write is not None:
            self._write(stream, text)


class StandIn:
    """See `services.engines.engine.Connection`."""

    def __init__(self, workers: int = 2) -> None:
        self._pool = ThreadPoolExecutor(workers)
        self.client: Any = self
        self.usable = True
        self.submitted: list[int] = []  # bytes of each call

    def submit(
        self, call: Callable[[Task], T], /, *, cpus: int = 1, retries: int = 0, write: Write | None = None
    ) -> concurrent.futures.Future[T]:
        data = pickle.dumps(call)
        self.submitted.append(len(data))
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        task = _Task(write)

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = pickle.loads(data)(task)
            except Exception as error:
                with suppress(concurrent.futures.InvalidStateError):
                    future.set_exception(error)
            else:
                with suppress(concurrent.futures.InvalidStateError):
                    future.set_result(result)

        future.add_done_callback(lambda done: task.stopped.set() if done.cancelled() else None)
        self._pool.submit(work)
        return future

    def standing(self) -> Standing:
        return Standing([], 0, 0, 0)

    def retire(self, count: int) -> list[str]:
        return []

    def close(self) -> None:
        self.usable = False
        self._pool.shutdown(cancel_futures=True)
