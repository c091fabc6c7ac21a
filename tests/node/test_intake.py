"""The bulk port's threads wait for the loop: how long, and what becomes of a block that comes too late."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Callable

import pytest

from kos_cluster.core.roles import Role
from kos_cluster.errors import UnreachableError
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Peer
from kos_cluster.node import intake as intake_module
from kos_cluster.node.intake import Intake
from kos_cluster.node.lending import Lending

WAIT_S = 60.0
BLOCK = secrets.token_hex(16)


@pytest.fixture(scope="module")
def peer() -> Peer:
    return CertificateAuthority.create("lab").local("n1", "n1", Role.NODE).peer


class Lender:
    """Blocks of a node that lends one, once `before` is over."""

    def __init__(self, before: Callable[[], Awaitable[None]]) -> None:
        self._before = before
        self.closed = threading.Event()

    async def lend(self, peer: Peer, block: str, insist: bool) -> Lending:
        await self._before()
        return Lending(1, [], iter([memoryview(b"x")]), self.closed.set)


def intake(lender: Lender) -> Intake:
    return Intake(*[None] * 6, lender)  # type: ignore[arg-type]  # nothing else is asked for


def test_a_lender_may_take_longer_than_anything_else_in_the_loop(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "LOOP_TIMEOUT_S", 0.001)

    async def scene() -> None:
        lender = Lender(lambda: asyncio.sleep(0.1))
        found = await asyncio.to_thread(intake(lender).lend, peer, BLOCK, False)
        assert isinstance(found, Lending) and not lender.closed.is_set()

    asyncio.run(scene())


@pytest.mark.parametrize("held_up", [True, False], ids=["the loop is held up", "the block is waited for"])
def test_a_block_that_comes_too_late_is_given_back(peer: Peer, monkeypatch: pytest.MonkeyPatch, held_up: bool) -> None:
    monkeypatch.setattr(intake_module, "LEND_TIMEOUT_S", 0.01)
    given_up = threading.Event()

    async def before() -> None:
        if held_up:  # so that it comes before the loop hears that nobody waits for it
            assert given_up.wait(WAIT_S)
        else:
            await asyncio.Event().wait()

    def ask(at: Intake) -> None:
        try:
            at.lend(peer, BLOCK, False)
        finally:
            given_up.set()

    async def scene() -> None:
        lender = Lender(before)
        with pytest.raises(UnreachableError, match=f"A node had the block {BLOCK[:12]} not in memory within"):
            await asyncio.to_thread(ask, intake(lender))
        assert lender.closed.is_set() == held_up

    asyncio.run(scene())
