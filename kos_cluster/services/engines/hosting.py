"""KOS workers beneath a process of an engine: they run the calls that this process is given.

Theory of operation. The process of an engine's worker has, from its first call on, a fork server and workers as a node
has them (`node.workers`), in an event loop of its own. Each thread of the engine that is given a call waits here for
its end. A worker serves one environment and one call at a time, and is kept for the next of that environment. The call
prints, shows and fails as any task; who asks it to stop interrupts the worker, and kills it `GRACE_S` later.

Rules. Nothing is unpickled here. Workers end with this process, however it ends, as their fork server notices. Large
results lie for a moment in the spool of the node beneath, where its daemon clears what a crash has left.

Limits: `IDLE_LIMIT` workers wait for more calls. A call's output is read at `OUTPUT_RATE_BYTES_S`, so one that prints
without end waits for that. Blocks that a call has laid are held for `BLOCKS_HELD_S`, if nobody keeps them sooner.
"""

from __future__ import annotations

import asyncio
import codecs
import functools
import importlib.util
import logging
import os
import signal
import tempfile
import threading
import time
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from kos_cluster.core.queue import GRACE_S
from kos_cluster.core.records import AttemptEnd
from kos_cluster.errors import EngineError
from kos_cluster.net import local
from kos_cluster.node.workers import Last, Workers
from kos_cluster.services.engines import references
from kos_cluster.services.engines.calls import BEGUN, DISPLAY, DISPLAY_END, Ended, HostedCall
from kos_cluster.services.engines.engine import Task
from kos_cluster.tasks.job import part_hash

log = logging.getLogger(__name__)

IDLE_LIMIT = 8
STOP_POLL_S = 0.05  # between two looks whether a call is to stop
OUTPUT_RATE_BYTES_S = 8 << 20
START_TIMEOUT_S = 30.0  # for the loop of a host to run
BLOCKS_HELD_S = 60.0  # that a call has laid on its node, until whoever submitted it keeps them
PRELOADED = ("numpy", "kos_kernel.magics.warm", "kos_cluster.tasks.coroutines")

_payloads = msgspec.msgpack.Decoder(list[bytes])


_making = threading.Lock()


def host() -> Host:
    """This process's own, made for its first call: one, however many threads begin with calls at once."""
    with _making:
        return _host()


@functools.cache
def _host() -> Host:
    return Host(references.run_folder(), os.environ.get("KOS_NODE", os.uname().nodename))


@dataclass(eq=False)
class _Running:
    """A call in its worker."""

    call: HostedCall
    task: Task
    ended: asyncio.Future[Ended]
    batch: int
    decoders: dict[str, Any] = field(
        default_factory=lambda: {
            stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in ("stdout", "stderr")
        }
    )
    ends_s: float = float("inf")  # when its time is over; it begins when it is sent
    stopping: AttemptEnd | None = None  # why it is being stopped


@dataclass(eq=False)
class _Worker:
    number: int
    environment: str  # the hash of the one that it serves
    ready: asyncio.Future[None]
    batches: int = 0
    running: _Running | None = None


class Host:
    """Runs calls. `run` may be called in any thread; everything else happens in the host's own."""

    def __init__(self, folder: Path | None, node: str) -> None:
        self._folder = folder
        self._node = node
        self._workers: dict[int, _Worker] = {}
        self._idle: OrderedDict[_Worker, None] = OrderedDict()  # the one that waits longest first
        self._numbers = 0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="kos-calls", daemon=True)
        self._thread.start()
        if not started.wait(START_TIMEOUT_S):
            raise EngineError(f"The workers beneath the engine's on node {node} could not be started.")

    def run(self, call: HostedCall, task: Task) -> Ended:
        """Run a call in a worker and wait for its end."""
        return asyncio.run_coroutine_threadsafe(self._run(call, task), self._loop).result()

    def close(self) -> None:
        """End all workers."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    # ---- the thread

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        with nullcontext(self._folder) if self._folder else tempfile.TemporaryDirectory(prefix="kos-calls-") as folder:
            self._loop.run_until_complete(self._start(Path(folder)))
            started.set()
            self._loop.run_forever()
            self._processes.close()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _start(self, folder: Path) -> None:
        self._processes = Workers(folder, dict(os.environ), self)
        self._processes.start()
        await self._processes.warm.wait()
        self._processes.warm.clear()
        self._processes.preload([name for name in PRELOADED if importlib.util.find_spec(name.partition(".")[0])])
        self._preloaded = self._processes.warm.wait  # again; workers before that would each load the same

    async def _run(self, call: HostedCall, task: Task) -> Ended:
        await self._preloaded()
        worker = self._taken(part_hash(call.environment))
        running = worker.running = _Running(call, task, self._loop.create_future(), worker.batches + 1)
        watching = self._loop.create_task(self._watch(worker, running))
        try:
            either: tuple[asyncio.Future[Any], ...] = (worker.ready, running.ended)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not running.ended.done():
                task.write(BEGUN, self._node)
                self._send(worker, running)
            return await running.ended
        finally:
            watching.cancel()

    def _taken(self, environment: str) -> _Worker:
        """A worker for that environment: one that is idle, or a new one."""
        for worker in reversed(self._idle):
            if worker.environment == environment:
                del self._idle[worker]
                return worker
        self._numbers += 1
        worker = self._workers[self._numbers] = _Worker(self._numbers, environment, self._loop.create_future())
        self._processes.fork(worker.number)
        return worker

    def _send(self, worker: _Worker, running: _Running) -> None:
        call = running.call
        worker.batches = running.batch
        fn = part_hash(call.fn)
        for hash_, data in ({fn: call.fn, worker.environment: call.environment} | call.parts).items():
            if self._processes.lacks(worker.number, (hash_,)):
                self._processes.give(worker.number, local.Part(hash_), data)
        self._processes.let_claim(worker.number, 0)
        run = local.Run(
            running.batch,
            call.job,
            [(call.index, 1)],
            call.attempt,
            fn,
            worker.environment,
            self._node,
            call.owner,
            seed=call.seed,
            hold_s=BLOCKS_HELD_S,
        )
        if call.timeout_s is not None:
            running.ends_s = time.monotonic() + call.timeout_s
        self._processes.send(worker.number, run, msgspec.msgpack.encode([call.args]))

    async def _watch(self, worker: _Worker, running: _Running) -> None:
        """Stop the call when it is asked to stop, or when its time is over."""
        while running.stopping is None and not running.ended.done():
            left_s = running.ends_s - time.monotonic()
            if running.task.stopped.is_set():
                running.stopping = AttemptEnd.CANCELLED
            elif left_s <= 0:
                running.stopping = AttemptEnd.TIMEOUT
            else:
                await asyncio.sleep(min(STOP_POLL_S, left_s))
        if running.ended.done():  # the worker is somebody else's by now
            return
        self._processes.signal(worker.number, signal.SIGINT if worker.ready.done() else signal.SIGKILL)
        await asyncio.sleep(GRACE_S)
        self._processes.signal(worker.number, signal.SIGKILL)

    # ---- node.workers.Listener

    def worker_ready(self, worker: int) -> None:
        ready = self._workers[worker].ready
        if not ready.done():
            ready.set_result(None)

    def worker_wrote(self, worker: int, stream: str, data: bytes) -> None:
        running = self._workers[worker].running
        if running is None:  # a process that a call has left behind
            return
        text = running.decoders[stream].decode(data)
        if text:
            running.task.write(stream, text)
        self._processes.pause_output(worker, len(data) / OUTPUT_RATE_BYTES_S)

    def worker_said(self, worker: int, message: local.FromTask, payload: bytes) -> None:
        known = self._workers[worker]
        running = known.running
        if isinstance(message, local.Display):
            if running is not None:
                running.task.write(DISPLAY, payload.decode() + DISPLAY_END)
            self._processes.send(worker, local.Displayed())
        elif isinstance(message, local.Done) and running is not None and message.batch == running.batch:
            self._done(known, running, message, payload)

    def worker_exited(self, worker: int, detail: str, out_of_memory: bool, last: Last) -> None:
        known = self._workers.pop(worker)
        self._idle.pop(known, None)
        if known.running is not None:
            end = AttemptEnd.OUT_OF_MEMORY if out_of_memory else AttemptEnd.WORKER_LOST
            self._end(known, known.running, Ended(known.running.stopping or end, b"", self._node, detail))

    def _done(self, worker: _Worker, running: _Running, done: local.Done, payload: bytes) -> None:
        (outcome,) = _payloads.decode(payload)
        for name, _ in done.large.values():
            spooled = self._processes.spool / name
            outcome = spooled.read_bytes()
            spooled.unlink()
        end = AttemptEnd.FAILED if done.failed else AttemptEnd.DONE
        if running.stopping is not None and done.failed:
            end = running.stopping
        self._end(worker, running, Ended(end, outcome, self._node, blocks=tuple(done.blocks)))
        if done.retire or running.stopping is not None:
            self._processes.send(worker.number, local.Stop())
            return
        self._idle[worker] = None
        while len(self._idle) > IDLE_LIMIT:
            self._processes.send(self._idle.popitem(last=False)[0].number, local.Stop())

    def _end(self, worker: _Worker, running: _Running, ended: Ended) -> None:
        worker.running = None
        for stream, decoder in running.decoders.items():
            if rest := decoder.decode(b"", final=True):
                running.task.write(stream, rest)
        if not running.ended.done():
            running.ended.set_result(ended)
