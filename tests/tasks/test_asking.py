"""How long a client waits for the answers of several nodes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec

from kos_cluster.net import wire
from kos_cluster.tasks.asking import REQUEST_TIMEOUT_S, Asking


class Nodes:
    """Stands for the attachment: nodes that answer a question with their names, some after a while, some never."""

    def __init__(self, **after_s: float | None) -> None:
        self.asking = Asking(self)  # type: ignore[arg-type]
        self.by_node = {name: self._link(name, late_s) for name, late_s in after_s.items()}

    def choose(self, node: str) -> Any:
        return self.by_node[node]

    def _link(self, name: str, late_s: float | None) -> Any:
        def send(request: wire.Request) -> None:
            if late_s is not None:
                reply = wire.Reply(request.id, msgspec.Raw(msgspec.msgpack.encode(name)))
                asyncio.get_running_loop().call_later(late_s, self.asking.answered, reply)

        return SimpleNamespace(peer=SimpleNamespace(id=name, name=name), send=send)


async def asked(nodes: Nodes, enough_s: float) -> set[str]:
    """Who answered, which takes less time than one node is waited for."""
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        return set(await nodes.asking.all(wire.Nodes(), enough_s))


def test_one_that_is_silent_is_not_waited_for_once_another_has_answered() -> None:
    assert asyncio.run(asked(Nodes(a=0.0, b=None), 0.1)) == {"a"}


def test_the_first_answer_is_waited_for_however_late() -> None:
    assert asyncio.run(asked(Nodes(a=0.5, b=None), 0.1)) == {"a"}
