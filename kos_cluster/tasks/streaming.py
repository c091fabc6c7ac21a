"""Tasks that yield, on the owner's side: the stream that `submit` of a generator function gives, and what feeds it.

Theory of operation. Items come in the mesh thread, are kept pickled until they are taken, and are released to their
node once they are here. The node is told how far its task may go on, now and then and with each beat, since a message
may get lost. The task's own outcome is taken in only when all of its items are here: else a node that dies between the
two would take them with it.

Rules: items are unpickled in the thread that takes them, in order, each once. A stream that nobody holds any more is
closed. After a first attempt was lost, its items that have not come yet are those of the second.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kos_cluster.core.ownerevents import BatchWaits, Dispatch
from kos_cluster.core.streaming import Reception
from kos_cluster.errors import KosError, NotPicklableError
from kos_cluster.net import wire
from kos_cluster.net.streams import Item, ItemsWanted
from kos_cluster.tasks import serialise
from kos_cluster.tasks.conditions import Answer

if TYPE_CHECKING:
    from kos_cluster.net.nodelink import NodeLink
    from kos_cluster.net.transport import Payload
    from kos_cluster.tasks.futures import Future
    from kos_cluster.tasks.job import Job
    from kos_cluster.tasks.mesh import Mesh
    from kos_cluster.tasks.returns import Returns


_YIELDING = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def yields(fn: object) -> bool:
    """Whether calling this gives a generator."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if type(fn) is types.FunctionType:
        return bool(fn.__code__.co_flags & _YIELDING)
    if not inspect.isroutine(fn) and not inspect.isclass(fn):
        fn = getattr(fn, "__call__", fn)  # noqa: B004 (it is not asked whether it can be called, but what it is)
    return inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)


class Inflow:
    """The items of one task that are here and not taken yet."""

    def __init__(self) -> None:
        self.batch = 0  # that brings them now
        self.node = ""
        self.told = 0  # the last position that its node was told of
        self.outcome: tuple[NodeLink, wire.Result, bytes] | None = None  # that came before the last items
        self._reception = Reception()
        self._items: dict[int, Payload] = {}
        self._waiting: list[concurrent.futures.Future[None]] = []
        self.over = False  # no more items will come
        self._lock = threading.Lock()

    @property
    def complete(self) -> int:
        """How many items came, without a gap."""
        return self._reception.complete

    @property
    def until(self) -> int:
        """The task may yield up to this position."""
        return self._reception.until

    @property
    def drained(self) -> bool:
        """Whether all that came was taken."""
        return self._reception.taken == self._reception.complete

    @property
    def news(self) -> bool:
        """Whether the task may go on so much further that its node should hear of it."""
        return self.until - self.told >= max(1, self._reception.window // 2)

    def put(self, position: int, payload: Payload) -> None:
        with self._lock:
            if self._reception.arrived(position, len(payload)):
                self._items[position] = payload
                self._wake()

    def take(self) -> Payload | None:
        """The next item; None when it has not come."""
        with self._lock:
            position = self._reception.take()
            return None if position is None else self._items.pop(position)

    def end(self) -> None:
        """No more items will come."""
        with self._lock:
            self.over = True
            self._wake()

    def more(self) -> concurrent.futures.Future[None]:
        """Done when there is an item, or the end."""
        waiting: Answer[None] = Answer()
        with self._lock:
            self._waiting.append(waiting)
            if self.over or self._reception.taken < self._reception.complete:
                self._wake()
        return waiting

    def _wake(self) -> None:
        for waiting in self._waiting:
            if waiting.set_running_or_notify_cancel():  # else its waiter has gone
                waiting.set_result(None)
        self._waiting.clear()


class Stream:
    """What `submit` of a generator function gives: an iterator over what it yields, as it comes; see `docs/python.md`.

    `future` is the task's own: it is done when the generator has ended, and its result is what that returned.
    """

    def __init__(self, job: Job, future: Future, taken: Callable[[Inflow], None]) -> None:
        self.future = future
        index = int(future.task.partition(".")[2])
        self._inflow = inflow = job.inflow(index)
        self._taken = taken
        self._closed = False
        concurrent.futures.Future.add_done_callback(future, lambda _: inflow.end())
        self._finalizer = weakref.finalize(self, job.leave, index)
        self._finalizer.atexit = False

    @property
    def task(self) -> str:
        return self.future.task

    def close(self) -> None:
        """Stop the generator where it runs, as `close` of any generator does. Nothing more comes then."""
        self._closed = True
        self._finalizer()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        """The next item. Raises what the generator raised in its place, TaskLostError, CancelledError."""
        while (payload := self._take()) is None:
            if self._ended():
                raise StopIteration(self._returned())
            try:
                self._inflow.more().result()
            except KeyboardInterrupt:
                self.close()
                raise
        return serialise.loads(payload)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        while (payload := self._take()) is None:
            if self._ended():
                self._returned()
                raise StopAsyncIteration
            await asyncio.wrap_future(self._inflow.more())
        return serialise.loads(payload)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise NotPicklableError("a stream is taken where it was submitted: pass on its items")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "done" if self.future.done() else "open"
        return f"<kos Stream {self.task} {state}>"

    def _take(self) -> Payload | None:
        if self._closed:
            return None
        payload = self._inflow.take()
        if payload is not None and self._inflow.news:
            self._taken(self._inflow)
        return payload

    def _ended(self) -> bool:
        """Whether no item is left, and none will come."""
        return self._closed or (self.future.done() and self._inflow.drained)

    def _returned(self) -> Any:
        return None if self._closed else self.future.result()


class Streams:
    """The streams of one process whose tasks are with nodes. Used in the mesh thread, but for `taken`.

    `feed` tells the owner's table that a task waits for us, as its node sees it by itself; `post` runs a call in the
    mesh thread, soon.
    """

    def __init__(
        self,
        owner: Mesh,
        returns: Returns,
        links: Callable[[], Mapping[str, NodeLink]],
        feed: Callable[[BatchWaits], None],
        post: Callable[..., None],
    ) -> None:
        self._owner = owner
        self._post = post
        self._returns = returns
        self._feed = feed
        self._links = links
        self._by_batch: dict[int, Inflow] = {}
        self._fetching: dict[tuple[str, int], asyncio.Task[None]] = {}  # (node, serial) of large items on their way

    def sent(self, dispatch: Dispatch, job: Job) -> tuple[int, int]:
        """A batch with a task that yields goes to a node: how many items are here, and up to where more are wanted."""
        index = dispatch.runs[0][0]
        inflow = job.inflow(index)
        self._by_batch.pop(inflow.batch, None)
        self._by_batch[dispatch.batch] = inflow
        inflow.batch, inflow.node, inflow.told = dispatch.batch, dispatch.node, inflow.until
        return inflow.complete, inflow.told

    def item(self, link: NodeLink, message: Item, payload: memoryview) -> None:
        if link.peer is None:
            return
        inflow = self._by_batch.get(message.batch)
        key = (link.peer.id, message.serial)
        if inflow is None:  # of an attempt that is over
            self._returns.release(link, message.serial)
        elif message.large is None:
            self._put(link, message, inflow, bytes(payload))
        elif key not in self._fetching:
            work = self._fetch(link, message, key, inflow)
            self._fetching[key] = asyncio.get_running_loop().create_task(work, name=f"item-{message.serial}")

    def holds_back(self, link: NodeLink, message: wire.Result, payload: memoryview) -> bool:
        """Whether this outcome must wait for items before it; it is taken in again when they are here."""
        inflow = self._by_batch.get(message.batch)
        if inflow is None or message.items <= inflow.complete:
            return False
        inflow.outcome = (link, message, bytes(payload))
        return True

    def taken(self, inflow: Inflow) -> None:
        """Items of a stream were taken, so that its task may go on. Any thread."""
        if not self._owner.closed:
            self._post(self.tell, inflow)

    def tell(self, inflow: Inflow) -> None:
        """Tell the node of a stream how far its task may go on."""
        link = self._links().get(inflow.node)
        if link is not None and inflow.batch in self._by_batch:
            inflow.told = inflow.until
            link.send(ItemsWanted(inflow.batch, inflow.told))
            self._feed(BatchWaits(inflow.batch, inflow.complete >= inflow.told))

    def beat(self) -> None:
        """Tell all of them, as what was told before may have been lost; forget those that are over."""
        for batch, inflow in list(self._by_batch.items()):
            if inflow.over:
                del self._by_batch[batch]
            else:
                self.tell(inflow)

    async def _fetch(self, link: NodeLink, message: Item, key: tuple[str, int], inflow: Inflow) -> None:
        assert message.large is not None
        try:
            self._put(link, message, inflow, await self._returns.fetched(link, *message.large))
        except KosError as error:  # it is not released, so the node says it again while it lives
            sys.stderr.write(f"kos: an item could not be fetched from {link.address}: {error.message}\n")
        finally:
            del self._fetching[key]

    def _put(self, link: NodeLink, message: Item, inflow: Inflow, payload: Payload) -> None:
        inflow.put(message.position, payload)
        self._returns.release(link, message.serial, len(payload))
        if inflow.news:
            self.tell(inflow)
        elif inflow.complete >= inflow.told:
            self._feed(BatchWaits(inflow.batch, True))
        if inflow.outcome is not None and inflow.outcome[1].items <= inflow.complete:
            outcome, inflow.outcome = inflow.outcome, None
            self._returns.result(outcome[0], outcome[1], memoryview(outcome[2]))
