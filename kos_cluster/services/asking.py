"""Asking a node of the cluster something without being a client of it, over a link of one's own.

Rules: nothing is submitted and nothing is watched over such a link. Its user says how long an answer is worth waiting
for; without that a node that does not answer is waited for for ever.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from kos_cluster.net import wire
from kos_cluster.net.identity import Credentials
from kos_cluster.net.presenting import present
from kos_cluster.net.transport import Context, Link

UP_POLL_S = 0.02  # between two tries to send while the link comes up

T = TypeVar("T")
Ask = Callable[[wire.Asked], Awaitable[wire.Reply]]


def run_within(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Run a coroutine to its end, also where a loop runs already, as in a notebook's cell. Raises TimeoutError."""
    limited = asyncio.wait_for(work, timeout_s)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(limited)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as apart:
        return apart.submit(asyncio.run, limited).result()


@contextlib.asynccontextmanager
async def asking(credentials: Credentials, address: str) -> AsyncIterator[Ask]:
    """A link to the node at this address (HOST:PORT), and what asks over it, one question at a time.

    Raises UnreachableError or AuthError.
    """
    host, _, port = address.rpartition(":")
    peer = await present(host, int(port), credentials)
    answers: asyncio.Queue[wire.Reply] = asyncio.Queue()
    asked = 0

    def said(message: wire.Message, _: memoryview) -> None:
        if isinstance(message, wire.Reply) and message.id == asked:
            answers.put_nowait(message)

    async def ask(question: wire.Asked) -> wire.Reply:
        nonlocal asked
        asked += 1
        while not link.send(wire.Request(asked, question)):
            await asyncio.sleep(UP_POLL_S)
        return await answers.get()

    context = Context()
    link = Link(context, credentials, peer.curve_public, host, int(port), said, lambda _: None)
    try:
        yield ask
    finally:
        link.close()
        context.term()
