"""What comes back from nodes: outcomes, large ones fetched over TLS, and the releases that let a node forget them.

Rules. An outcome is taken in before it is released. A result that cannot be fetched is not released, so the node
sends it again while it lives. Releases wait a moment and travel together, since nothing waits for them but the room
that a node keeps for outcomes: before much of it is taken, they go.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kos_cluster.core.records import indices_of
from kos_cluster.errors import KosError
from kos_cluster.net import wire
from kos_cluster.net.bulk import get_result
from kos_cluster.net.identity import Credentials
from kos_cluster.net.nodelink import NodeLink

RELEASE_AFTER_S = 0.2
RELEASES_LIMIT = 256  # serials that wait for one node
RELEASES_LIMIT_BYTES = 8 << 20  # that one node keeps for them, of its `node.owners.OUTBOX_LIMIT_BYTES`

Payloads = list[Any]  # bytes-like, in the order of the result's runs
Accept = Callable[[str, wire.Result, Payloads], None]

_payload_list = msgspec.msgpack.Decoder(list[bytes])


@dataclass(slots=True)
class _Releases:
    """What one node may forget, and has not been told of."""

    serials: list[int] = field(default_factory=list)
    size_bytes: int = 0  # of what it keeps for it


class Returns:
    """Takes results in. Used in the mesh thread; `accept(node id, result, payloads)` commits them."""

    def __init__(self, credentials: Credentials, accept: Accept) -> None:
        self._credentials = credentials
        self._accept = accept
        self._fetching: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._releases: dict[str, _Releases] = {}  # by the link's address

    def renewed(self, credentials: Credentials) -> None:
        """Show another certificate, of the same keys, from now on."""
        self._credentials = credentials

    def result(self, link: NodeLink, message: wire.Result, payload: memoryview) -> None:
        if link.peer is None or (message.runs and not payload):
            return
        payloads: Payloads = list(_payload_list.decode(payload)) if payload else []
        key = (link.peer.id, message.serial)
        if not message.large:
            self._accept(link.peer.id, message, payloads)
            self.release(link, message.serial, len(payload))
        elif key not in self._fetching:
            work = self._fetch(link, key, message, payloads)
            self._fetching[key] = asyncio.get_running_loop().create_task(work, name=f"fetch-{message.serial}")

    async def fetched(self, link: NodeLink, name: str, size: int) -> bytearray:
        """What was too large for a message, from the node that keeps it. Raises KosError."""
        return await asyncio.to_thread(get_result, link.host, link.port, self._credentials, name, size)

    def release(self, link: NodeLink, serial: int, size_bytes: int = 0) -> None:
        """Tell the node soon that it may forget a message of this size, with the files that it names."""
        waiting = self._releases.get(link.address)
        if waiting is None:
            waiting = self._releases[link.address] = _Releases()
            asyncio.get_running_loop().call_later(RELEASE_AFTER_S, self._send, link)
        waiting.serials.append(serial)
        waiting.size_bytes += size_bytes
        if len(waiting.serials) >= RELEASES_LIMIT or waiting.size_bytes >= RELEASES_LIMIT_BYTES:
            self._send(link)

    def _send(self, link: NodeLink) -> None:
        waiting = self._releases.pop(link.address, None)
        if waiting is not None:
            link.send(wire.Release(waiting.serials))

    async def _fetch(self, link: NodeLink, key: tuple[str, int], message: wire.Result, payloads: Payloads) -> None:
        """Get outcomes that were too large for a message, then take the result as a whole."""
        try:
            for position, index in enumerate(indices_of(message.runs)):
                if index in message.large:
                    name, size = message.large[index]
                    payloads[position] = await self.fetched(link, name, size)
            self._accept(key[0], message, payloads)
            self.release(link, message.serial, sum(map(len, payloads)))
        except KosError as error:
            sys.stderr.write(f"kos: a result could not be fetched from {link.address}: {error.message}\n")
        finally:
            del self._fetching[key]
