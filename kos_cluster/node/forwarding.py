"""Proposals that one node has another offer: to the coordinator from all others.

Rules: what is not answered in time may have been offered all the same; whoever repeats it must make that harmless (see
`node.session`). When another coordinates, those who wait for the former one stop to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kos_cluster.core.replicated import replies
from kos_cluster.core.replicated.commands import Proposal
from kos_cluster.net import wire
from kos_cluster.net.controlplane import Propose, Proposed


class Forwarding:
    """One node's. `offer` puts a proposal into this node's own log; its reply is None where that cannot be."""

    def __init__(
        self,
        send: Callable[[str, wire.Message], object],
        offer: Callable[[Proposal], Awaitable[replies.Reply | None]],
    ) -> None:
        self._send = send
        self._offer = offer
        self._asked: dict[int, asyncio.Future[Proposed | None]] = {}
        self._next = 1

    async def ask(self, leader: str, proposal: Proposal, timeout_s: float) -> Proposed | None:
        """Have this node offer it; None when it does not answer, or does not coordinate any more."""
        id_, self._next = self._next, self._next + 1
        answer: asyncio.Future[Proposed | None] = asyncio.get_running_loop().create_future()
        self._asked[id_] = answer
        try:
            self._send(leader, Propose(id_, proposal))
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            return None
        finally:
            del self._asked[id_]

    def said(self, sender: str, message: Propose | Proposed) -> None:
        """Another node asks, or answers."""
        match message:
            case Propose(id_, proposal):
                asyncio.get_running_loop().create_task(self._answer(sender, id_, proposal), name="propose")
            case Proposed(id_):
                self._settle(self._asked.get(id_), message)

    def give_up(self) -> None:
        """Whoever was asked does not coordinate any more."""
        for answer in self._asked.values():
            self._settle(answer, None)

    async def _answer(self, sender: str, id_: int, proposal: Proposal) -> None:
        self._send(sender, Proposed(id_, await self._offer(proposal)))

    def _settle(self, answer: asyncio.Future[Proposed | None] | None, value: Proposed | None) -> None:
        if answer is not None and not answer.done():
            answer.set_result(value)
