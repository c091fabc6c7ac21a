"""A node's arena in a loop of its own thread, as a daemon has it, and the processes that come to its socket."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kos_cluster.core.arena import Usage
from kos_cluster.dmem import attached as attached_module
from kos_cluster.dmem.attached import Attached, attached
from kos_cluster.dmem.segments import Segment
from kos_cluster.dmem.serving import Serving
from kos_cluster.dmem.store import BlockStore

MIB = 1 << 20
WAIT_S = 60.0
OWNER = ("alice", "1")

T = TypeVar("T")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.005)


class Served:
    """An arena of `limit` and, on the disk, `spill` MiB, and what the daemon would do with it."""

    def __init__(self, folder: Path, limit: int, spill: int) -> None:
        self.folder = folder
        self._sizes = limit * MIB, spill * MIB, 100
        self._others: list[Attached] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.store = BlockStore("n1", self.folder, *self._sizes)
        serving = Serving("id of n1", self.store, self._obtain)
        self._ready.set()
        await self._stop.wait()
        serving.close()
        self.store.close()

    async def _obtain(self, block: str, home: str, holder: int) -> Segment:
        return await self.store.hold(block, holder)

    def call(self, work: Callable[[], T]) -> T:
        """Do something in the loop."""

        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_S)

    def wait_for(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something in the loop that takes a while."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(WAIT_S)

    def usage(self) -> Usage:
        return self.call(self.store.usage)

    def keep(self, block: str, *, pin: bool = False) -> None:
        self.call(lambda: self.store.keep(block, OWNER, pin=pin))

    def attach(self) -> Attached:
        return attached(self.folder)

    def another(self) -> Attached:
        """A second connection, as another process has it."""
        self._others.append(Attached(self.folder))
        return self._others[-1]

    def put(self, block: str, content: bytes, *, pin: bool = False) -> None:
        """A block that is kept, and that nobody holds."""
        here = self.attach()
        here.write(block, [content])
        self.keep(block, pin=pin)
        here.passed_on(block)

    def stop(self, *, keep_connections: bool = False) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(WAIT_S)
        if keep_connections:
            return
        known = attached_module._attached.pop(self.folder, None)
        for each in [*self._others, *([known] if known is not None else [])]:
            each.close()


@pytest.fixture
def served(short_folder: Path) -> Iterator[Served]:
    """4 MiB in memory, 8 MiB on the disk."""
    served = Served(short_folder / "arena", 4, 8)
    yield served
    served.stop()
