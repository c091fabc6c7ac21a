"""Blocks that come from other nodes, when somebody here asks for them.

Theory of operation. The node where a block was made is asked first. It gives the block, or, when it gives it to several
already, names nodes that have it or are receiving it: so many readers form a tree, and no node sends a block more often
than `lending.FANOUT` times at once. When that node is gone, the others that are alive are asked, one after the other. A
block comes over TLS straight into its memory, and is sent on from there while it still comes. Before that, a node of
this machine and KOS_HOME is asked to share what it has whole (`dmem.sharing`), which copies nothing.

    a fetch      event                              next
    asking       the node shares it                 over: sealed, kept here for the owners that this node knows
    asking       the node has it                    receiving
    asking       the node names others              asking those, then that node once more, which then gives it
    asking,      the node fails, or has it not      asking the next; nothing half received is ever seen
    receiving    it is complete                     over: sealed, kept here for the owners that this node knows
    asking       there is nobody more to ask        over: who waits for it is told why

Rules: a block is fetched once, however many here wait for it. Memory for it is asked of the arena like anybody's, and a
refusal ends the fetch. A transfer runs in a thread of its own, at most `FETCHES_LIMIT` at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from kos_cluster.core.arena import Owner
from kos_cluster.core.linkrates import LinkRates
from kos_cluster.core.records import Member
from kos_cluster.dmem import sharing
from kos_cluster.dmem.segments import Segment
from kos_cluster.dmem.store import BlockStore
from kos_cluster.errors import ArenaFullError, KosError, UnreachableError
from kos_cluster.net.blocks import nowhere
from kos_cluster.net.identity import Credentials
from kos_cluster.net.transfers import CHUNK_BYTES, GetBlock, Outcome, Take, get_block
from kos_cluster.node.membership import ALIVE, Membership

FETCHES_LIMIT = 16  # transfers at once
ROOM_TIMEOUT_S = 120.0  # for the arena to make room, which may mean to spill as much
STALLED_S = 60.0  # without a byte, after which who is sent on a block that still comes gives up
DROPPED_LIMIT = 4096  # blocks that were dropped lately, and are not kept when they come late

T = TypeVar("T")
log = logging.getLogger(__name__)


class Receiving:
    """A block of which a part is here. Any thread may follow it."""

    def __init__(self, segment: Segment) -> None:
        self._content = memoryview(segment.map())
        self.size_bytes = segment.size_bytes
        self.came_bytes = 0
        self._failed = False
        self._changed = threading.Condition()

    def came(self, count_bytes: int) -> None:
        with self._changed:
            self.came_bytes = count_bytes
            self._changed.notify_all()

    def failed(self) -> None:
        with self._changed:
            self._failed = self.came_bytes < self.size_bytes
            self._changed.notify_all()

    def chunks(self) -> Iterator[memoryview]:
        """What is here, and then what comes. Raises ConnectionError when it does not come."""
        done = 0
        while done < self.size_bytes:
            there = min(self._more_than(done), done + CHUNK_BYTES)
            yield self._content[done:there]
            done = there

    def _more_than(self, done: int) -> int:
        """Wait until more bytes are here than were read; how many there are."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._failed or self.came_bytes > done, STALLED_S):
                raise ConnectionError("the block does not come")
            if self._failed:
                raise ConnectionError("the block did not come")
            return self.came_bytes


@dataclass(eq=False)
class Fetch:
    """A block on its way, and how many wait for it. `receiving` is set once there is memory for it."""

    block: str
    holder: int
    task: asyncio.Task[None] | None = None
    waiting: int = 0
    receiving: Receiving | None = None
    began: asyncio.Event = field(default_factory=asyncio.Event)
    keepers: list[Owner] = field(default_factory=list)


class Fetching:
    """One node's. Used in the daemon's loop. `knows` tells whether an owner lives as far as this node knows.

    `arena`: where a node of that name has its arena's socket, if it is one of this machine and KOS_HOME.
    """

    def __init__(
        self,
        node: str,
        store: BlockStore,
        membership: Membership,
        credentials: Callable[[], Credentials],
        knows: Callable[[Owner], bool],
        arena: Callable[[str], Path],
    ) -> None:
        self._node = node
        self._store = store
        self._membership = membership
        self._credentials = credentials
        self._knows = knows
        self._arena = arena
        self.rates = LinkRates()
        self._fetches: dict[str, Fetch] = {}
        self._dropped: OrderedDict[tuple[Owner, str], None] = OrderedDict()
        self._slots = asyncio.Semaphore(FETCHES_LIMIT)
        self._loop = asyncio.get_running_loop()

    def under_way(self, block: str) -> Fetch | None:
        """The fetch of a block that is not complete yet."""
        return self._fetches.get(block)

    def dropped(self, owner: Owner, blocks: list[str]) -> None:
        """An owner needs these no more, should they still come."""
        for block in blocks:
            if block in self._fetches:
                self._dropped[owner, block] = None
        while len(self._dropped) > DROPPED_LIMIT:
            self._dropped.popitem(last=False)

    async def obtain(self, block: str, home: str, holder: int) -> Segment:
        """Hold a block that is here, or get it. Raises BlockLostError, ArenaFullError."""
        if self._store.has(block):
            return await self._store.hold(block, holder)
        fetch = self._fetches.get(block)
        if fetch is None:
            fetch = self._fetches[block] = Fetch(block, self._store.new_holder())
            fetch.task = self._loop.create_task(self._run(fetch, home), name=f"fetch-{block[:8]}")
            fetch.task.add_done_callback(_looked_at)
        assert fetch.task is not None
        self.join(fetch)
        try:
            await asyncio.shield(fetch.task)
            return await self._store.hold(block, holder)
        finally:
            self.leave(fetch)

    def join(self, fetch: Fetch) -> None:
        """Somebody waits for a fetch, or follows it."""
        fetch.waiting += 1

    def leave(self, fetch: Fetch) -> None:
        """The last one that leaves a fetch that is over lets go of what came; others hold it, or keep it."""
        fetch.waiting -= 1
        if not fetch.waiting and fetch.task is not None and fetch.task.done():
            self._store.holder_gone(fetch.holder)

    def close(self) -> None:
        for fetch in self._fetches.values():
            if fetch.task is not None:
                fetch.task.cancel()

    # ---- inside

    async def _run(self, fetch: Fetch, home: str) -> None:
        self.join(fetch)
        try:
            async with self._slots:
                await self._ask_around(fetch, home)
            self._store.seal(fetch.block, fetch.holder)
            for owner in fetch.keepers:
                if self._knows(owner) and (owner, fetch.block) not in self._dropped:
                    self._store.keep(fetch.block, owner)
        except _NoRoomError as error:
            raise error.reason from None
        finally:
            del self._fetches[fetch.block]
            fetch.began.set()
            self._loop.call_soon(self.leave, fetch)  # after this task is done

    async def _ask_around(self, fetch: Fetch, home: str) -> None:
        """Returns when the block is here, not sealed. Raises BlockLostError when nobody has it, ArenaFullError."""
        line = deque([(home, False)] if home else [])
        asked = {(self._node, False), (self._node, True)}
        failures: dict[str, str] = {}
        others = iter([self._membership.alive])
        while True:
            if not line:
                line.extend((id_, True) for everybody in others for id_ in everybody())
            if not line:
                raise nowhere(fetch.block, failures.values())
            node, insist = line.popleft()
            if (node, insist) in asked:
                continue
            asked.add((node, insist))
            try:
                outcome = await self._ask(fetch, node, insist)
            except KosError as error:
                failures[node] = error.message.rstrip(".")
            else:
                if not outcome.elsewhere:
                    return
                line.extendleft([(node, True), *((id_, False) for id_ in reversed(outcome.elsewhere))])

    async def _ask(self, fetch: Fetch, node: str, insist: bool) -> Outcome:
        """Get the block from a node, or hear whom to ask. Raises KosError, or `_NoRoomError` when it is this node's."""
        member = self._membership.member(node)
        if member is None or member.state not in ALIVE:
            raise UnreachableError(f"Node {member.name if member is not None else node[:12]} is not alive.")
        try:
            return await self._in_thread(partial(self._get, fetch, member, GetBlock(fetch.block, insist)))
        except BaseException:
            if fetch.receiving is not None:
                fetch.receiving.failed()
                fetch.receiving = None
                self._store.holder_gone(fetch.holder)  # nothing half received is left
            raise

    def _get(self, fetch: Fetch, member: Member, request: GetBlock) -> Outcome:
        """Have the block shared, or else sent, in a thread of its own."""
        return self._shared(fetch, member) or self._received(fetch, member, request)

    def _shared(self, fetch: Fetch, member: Member) -> Outcome | None:
        """None when the node is none of this machine, or does not share it."""
        try:
            with sharing.shared(self._arena(member.name), fetch.block) as (segment, keepers):
                self._roomy(self._store.adopt(fetch.block, segment, fetch.holder), segment.size_bytes)
                outcome = Outcome(segment.size_bytes, keepers=keepers)
        except KosError as error:
            log.debug("Node %s does not share the block %s: %s", member.name, fetch.block[:12], error.message)
            return None
        fetch.keepers = outcome.keepers
        self._loop.call_soon_threadsafe(self.rates.shared, member.id)
        return outcome

    def _roomy(self, having: Coroutine[Any, Any, T], size_bytes: int) -> T:
        """What the arena gives, once it has room for so much. Raises `_NoRoomError`."""
        try:
            return asyncio.run_coroutine_threadsafe(having, self._loop).result(ROOM_TIMEOUT_S)
        except TimeoutError:
            late = f"A node's arena has made no room for {size_bytes:,} bytes in {ROOM_TIMEOUT_S:.0f} s."
            raise _NoRoomError(ArenaFullError(late, "See what it holds: 'kos mem status'.")) from None
        except KosError as error:
            raise _NoRoomError(error) from None

    def _received(self, fetch: Fetch, member: Member, request: GetBlock) -> Outcome:
        """One transfer."""
        with ExitStack() as opened:
            began_s = 0.0

            def room(outcome: Outcome) -> Take:
                nonlocal began_s
                segment = self._roomy(self._store.create(fetch.block, outcome.size, fetch.holder), outcome.size)
                fetch.keepers = outcome.keepers
                fetch.receiving = Receiving(segment)
                self._loop.call_soon_threadsafe(fetch.began.set)
                began_s = time.monotonic()
                writing = opened.enter_context(open(os.dup(segment.fd), "wb", buffering=0))
                return partial(_write, writing.fileno(), fetch.receiving)

            outcome = get_block(member.host, member.port, self._credentials(), request, room)
        if began_s:
            elapsed_s = time.monotonic() - began_s
            self._loop.call_soon_threadsafe(self.rates.measured, member.id, outcome.size, elapsed_s)
        return outcome

    def _in_thread(self, work: Callable[[], Outcome]) -> asyncio.Future[Outcome]:
        """Run something that may be stuck until a peer is given up; the process can end meanwhile."""
        answer: asyncio.Future[Outcome] = self._loop.create_future()

        def tell(outcome: Outcome | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            elif outcome is not None:
                answer.set_result(outcome)

        def run() -> None:
            outcome, failure = None, None
            try:
                outcome = work()
            except BaseException as error:
                failure = error
            with suppress(RuntimeError):  # the daemon's loop has ended meanwhile
                self._loop.call_soon_threadsafe(tell, outcome, failure)

        threading.Thread(target=run, name="fetch", daemon=True).start()
        return answer


class _NoRoomError(Exception):
    """This node has no room for what it fetches; no other node could change that."""

    def __init__(self, reason: KosError) -> None:
        super().__init__(reason)
        self.reason = reason


def _write(fd: int, receiving: Receiving, chunk: memoryview) -> None:
    """Write what comes next; by a call, as each page of a mapping would be cleared before, and cost a fault."""
    done = receiving.came_bytes
    while chunk:
        count = os.pwrite(fd, chunk, done)
        done, chunk = done + count, chunk[count:]
    receiving.came(done)


def _looked_at(task: asyncio.Task[None]) -> None:
    """Who waited for it may have gone, so nobody else may look at how it ended."""
    if not task.cancelled():
        task.exception()
