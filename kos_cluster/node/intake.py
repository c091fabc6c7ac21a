"""What a node does for peers on its bulk port: takes certificates, parts and joiners, hands out large results.

Rules. These calls come from the threads of the TLS server; anything that touches the daemon's state is done in its
loop, and waited for, at most `LOOP_TIMEOUT_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kos_cluster.errors import JoinError, UnreachableError
from kos_cluster.net.admission import Admitted
from kos_cluster.net.identity import Peer
from kos_cluster.net.joining import JoinReply, JoinRequest
from kos_cluster.node.batches import Batches
from kos_cluster.node.joining import Admission
from kos_cluster.node.parts import Parts

log = logging.getLogger(__name__)

LOOP_TIMEOUT_S = 10.0

T = TypeVar("T")


class Intake:
    """The handler of a node's `BulkServer`."""

    def __init__(
        self,
        admitted: Admitted,
        parts: Parts,
        batches: Batches,
        keeper: tuple[str, int] | None,
        admission: Admission | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._admitted = admitted
        self._parts = parts
        self._batches = batches
        self._keeper = keeper
        self._admission = admission

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

    def authority(self) -> tuple[str, int] | None:
        return self._keeper

    def join(self, request: JoinRequest, source_host: str) -> JoinReply:
        admission = self._admission
        if admission is None:
            raise JoinError("This node does not keep the registry.", "Join at the founding node.")
        return self._in_loop(lambda: admission.admit(request, source_host))

    def _in_loop(self, call: Callable[[], T]) -> T:
        async def run() -> T:
            return call()

        waiting = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return waiting.result(LOOP_TIMEOUT_S)
        except TimeoutError:
            waiting.cancel()
            raise UnreachableError(f"The node's loop did not answer within {LOOP_TIMEOUT_S:.0f} s.") from None
