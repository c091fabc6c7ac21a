"""What a node does for peers on its bulk port: takes certificates, parts and joiners, hands out what it holds.

Rules. These calls come from the threads of the TLS server; anything that touches the daemon's state is done in its
loop, and waited for, at most `LOOP_TIMEOUT_S`; for a block, which may be on the disk, at most
`net.transfers.LEND_TIMEOUT_S`. What comes later is given back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from kos_cluster.errors import UnreachableError
from kos_cluster.net.admission import Admitted
from kos_cluster.net.identity import Peer
from kos_cluster.net.joining import JoinReply, JoinRequest
from kos_cluster.net.transfers import LEND_TIMEOUT_S
from kos_cluster.net.tunnel import End, Open
from kos_cluster.node.batches import Batches
from kos_cluster.node.blocks import Blocks
from kos_cluster.node.controlplane import ControlPlane
from kos_cluster.node.keeping import Kept
from kos_cluster.node.kernels import Kernels
from kos_cluster.node.lending import Lending
from kos_cluster.node.loopbackports import LoopbackPorts
from kos_cluster.node.parts import Parts

log = logging.getLogger(__name__)

LOOP_TIMEOUT_S = 15.0  # longer than a proposal takes at most

T = TypeVar("T")


class Intake:
    """The handler of a node's `BulkServer`."""

    def __init__(
        self,
        admitted: Admitted,
        parts: Parts,
        kept: Kept,
        batches: Batches,
        control: ControlPlane,
        kernels: Kernels,
        blocks: Blocks,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._admitted = admitted
        self._parts = parts
        self._kept = kept
        self._batches = batches
        self._control = control
        self._kernels = kernels
        self._blocks = blocks
        self._ports = LoopbackPorts()

    def presented(self, peer: Peer) -> None:
        self._admitted.admit(peer)

    def part_wanted(self, peer: Peer, hash_: str, size: int) -> Path | None:
        def decide() -> Path | None:
            return None if hash_ in self._parts else self._parts.incoming(size)

        return self._in_loop(decide)

    def part_arrived(self, peer: Peer, hash_: str, path: Path) -> None:
        def take() -> None:
            self._parts.add_file(hash_, path)
            self._batches.part_arrived(hash_)

        self._in_loop(take)

    def result_path(self, peer: Peer, name: str) -> Path | None:
        return self._in_loop(lambda: self._batches.result_path(peer.id, name))

    def keep_wanted(self, peer: Peer, hash_: str, size: int) -> Path | None:
        if self._kept.intact(hash_):  # in this thread, for it may be large
            return None
        return self._in_loop(lambda: self._kept.incoming(size))

    def keep_arrived(self, peer: Peer, hash_: str, path: Path) -> None:
        self._kept.add(hash_, path)  # in this thread, for the disk takes its time

    def kept_path(self, peer: Peer, hash_: str) -> Path | None:
        return self._in_loop(lambda: self._kept.path(hash_) if hash_ in self._kept else None)

    def lend(self, peer: Peer, block: str, insist: bool) -> Lending | list[str]:
        taken = threading.Lock()  # by whom the answer is, or that it is late

        async def lend() -> Lending | list[str]:
            found = await self._blocks.lend(peer, block, insist)
            if not taken.acquire(blocking=False) and isinstance(found, Lending):
                found.close()
            return found

        waiting = asyncio.run_coroutine_threadsafe(lend(), self._loop)
        try:
            return waiting.result(LEND_TIMEOUT_S)
        except TimeoutError:
            if not taken.acquire(blocking=False):  # it has come at this moment
                return waiting.result()
            waiting.cancel()
            late = f"A node had the block {block[:12]} not in memory within {LEND_TIMEOUT_S:.0f} s."
            raise UnreachableError(late, "See what its arena holds: 'kos mem status'.") from None

    def tunnel(self, peer: Peer, wanted: Open) -> End:
        if wanted.port:
            return self._ports.tunnel(wanted.port)
        return self._kernels.tunnel(peer, wanted)  # in this thread, which connects

    def coordinator(self) -> tuple[str, int] | None:
        member = self._in_loop(self._control.coordinator)
        return (member.host, member.port) if member is not None else None

    def join(self, request: JoinRequest, source_host: str) -> JoinReply:
        return self._wait(self._control.certifier.admit(request, source_host))

    def _in_loop(self, call: Callable[[], T]) -> T:
        async def run() -> T:
            return call()

        return self._wait(run())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return waiting.result(LOOP_TIMEOUT_S)
        except TimeoutError:
            waiting.cancel()
            raise UnreachableError(f"The node's loop did not answer within {LOOP_TIMEOUT_S:.0f} s.") from None
