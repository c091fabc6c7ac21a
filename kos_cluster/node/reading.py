"""Reads of the replicated state that miss nothing that was decided before they were asked for.

Theory of operation (Ongaro, 2014, section 6.4, "read index"). The coordinator tells how far the log was committed when
it was asked, after a majority has confirmed that it still coordinates; a node that has applied as much may answer from
its own state. Those who ask in the same turn of the loop share one such question.

Rules: a read that nobody could confirm within its time is no read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kos_cluster.core import raft

AGAIN_S = 1.0  # after which a question that has no answer is asked again
REFUSED_PAUSE_S = 0.1  # before one that was refused is asked again, unless something moves


class Reads:
    """One node's. `ask` gives the machine a question, `applied` is how far the state is, `moved` waits for more,
    `stopped` says that there is no machine to ask."""

    def __init__(
        self,
        number: Callable[[], int],
        ask: Callable[[raft.ReadIndex], None],
        applied: Callable[[], int],
        moved: Callable[[float], Awaitable[None]],
        stopped: Callable[[], bool],
        longest_s: float,
    ) -> None:
        self._number = number
        self._ask = ask
        self._applied = applied
        self._moved = moved
        self._stopped = stopped
        self._longest_s = longest_s
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, asyncio.Future[raft.ReadReady | raft.Refused]] = {}
        self._next: asyncio.Task[bool] | None = None  # that serves all who ask until it begins

    async def up_to_date(self, timeout_s: float) -> bool:
        """Wait until the state has everything that was decided before this call; False when nobody could tell."""
        if self._next is None:
            self._next = self._loop.create_task(self._read(), name="read")
        try:
            return await asyncio.wait_for(asyncio.shield(self._next), timeout_s)
        except TimeoutError:
            return False

    def answered(self, verdict: raft.ReadReady | raft.Refused) -> None:
        """The machine has answered a question, perhaps one of these."""
        answer = self._asked.get(verdict.id)
        if answer is not None and not answer.done():
            answer.set_result(verdict)

    async def _read(self) -> bool:
        self._next = None  # who asks from now on needs a later one
        deadline = self._loop.time() + self._longest_s
        while not self._stopped() and (left_s := deadline - self._loop.time()) > 0:
            verdict = await self._verdict(min(AGAIN_S, left_s))
            if isinstance(verdict, raft.ReadReady):
                return await self._reached(verdict.index, deadline)
            if verdict is not None:
                await self._moved(REFUSED_PAUSE_S)
        return False

    async def _verdict(self, timeout_s: float) -> raft.ReadReady | raft.Refused | None:
        id_ = self._number()
        answer = self._asked[id_] = self._loop.create_future()
        try:
            self._ask(raft.ReadIndex(id_))
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            return None
        finally:
            del self._asked[id_]

    async def _reached(self, index: int, deadline: float) -> bool:
        while self._applied() < index and (left_s := deadline - self._loop.time()) > 0:
            await self._moved(left_s)
        return self._applied() >= index
