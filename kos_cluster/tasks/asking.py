"""Requests of a client to nodes, and their replies."""

from __future__ import annotations

import asyncio

from kos_cluster.errors import KosError, UnreachableError
from kos_cluster.net import wire
from kos_cluster.net.outcome import from_wire
from kos_cluster.tasks.attachment import Attachment

REQUEST_TIMEOUT_S = 5.0
VIEWS_ENOUGH_S = 1.0  # for the nodes' views of the cluster, once there is one: it tells of the others too
DECISION_TIMEOUT_S = 12.0  # for what the cluster has to agree on: longer than a node tries, so that it says why not


class Asking:
    """The requests that wait for a reply. Used in the mesh thread."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._waiting: dict[int, asyncio.Future[wire.Reply]] = {}
        self._asked: dict[int, str] = {}  # the id of the node that each was sent to
        self._next = 1

    async def one(self, question: wire.Asked, node: str = "", timeout_s: float = REQUEST_TIMEOUT_S) -> bytes:
        """Ask one node (any, unless named); its answer's MessagePack. Raises what it answers, UnreachableError."""
        link = self._attachment.choose(node)
        number, self._next = self._next, self._next + 1
        answer: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._asked[number] = link.peer.id if link.peer is not None else ""
        try:
            link.send(wire.Request(number, question))
            async with asyncio.timeout(timeout_s):
                reply = await answer
        except TimeoutError:
            raise UnreachableError(
                f"Node {link.peer.name if link.peer else link.address} did not answer within {timeout_s:.0f} s.",
                "Type 'kos cluster nodes' to see which nodes are alive.",
            ) from None
        finally:
            self._waiting.pop(number, None)
            del self._asked[number]
        if reply.error is not None:
            raise from_wire(reply.error)
        return bytes(reply.value)

    async def all(self, question: wire.Asked, enough_s: float = REQUEST_TIMEOUT_S) -> dict[str, bytes]:
        """Ask every node; by name. Those that do not answer are left out; a refusal is raised if all refuse.

        Once one has answered, the others are waited for until `enough_s` from the beginning.
        """
        names = [link.peer.name for link in self._attachment.by_node.values() if link.peer is not None]
        if not names:
            raise self._attachment.unreachable()
        asked = {name: asyncio.create_task(self.one(question, name)) for name in names}
        _, late = await asyncio.wait(asked.values(), timeout=enough_s)
        while late and not any(task.done() and task.exception() is None for task in asked.values()):
            _, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        for task in late:
            task.cancel()
        told: dict[str, bytes] = {}
        refusals: list[KosError] = []
        for name, task in asked.items():
            if task in late:
                continue
            try:
                told[name] = task.result()
            except KosError as error:
                refusals.append(error)
        refused = [error for error in refusals if not isinstance(error, UnreachableError)]
        if (refused and len(refused) == len(refusals) + len(told)) or (refusals and not told):
            raise (refused or refusals)[0]
        return told

    def lost(self, id_: str, why: str) -> None:
        """A node is down: it will not answer any more."""
        for number, node in self._asked.items():
            waiting = self._waiting.get(number)
            if node == id_ and waiting is not None and not waiting.done():
                sentence = f"The node that was asked is lost: {why.rstrip('.')}."
                waiting.set_exception(UnreachableError(sentence, "Ask again, if another node is alive ('kos nodes')."))

    def answered(self, reply: wire.Reply) -> None:
        waiting = self._waiting.pop(reply.id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)
