"""What holds for a control link of either kind, over the network and within a machine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from kos_cluster.core.roles import Role
from kos_cluster.errors import LimitError
from kos_cluster.net import wire
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Credentials
from kos_cluster.net.transport import HIGH_WATER_MESSAGES, READS_LIMIT
from tests.net.echoes import Echo, LocalEcho, NetworkEcho, running, still_serves, until

BURST = 3000
FULL_AFTER = 20 * HIGH_WATER_MESSAGES  # sends, by which a link to one who does not read is full

Node = Callable[[], Echo]  # to be called in the loop


@pytest.fixture(params=["network", "local"])
def start(request: pytest.FixtureRequest, node: Credentials, port: int, tmp_path: Path) -> Node:
    if request.param == "network":
        return lambda: NetworkEcho(node, port)
    return lambda: LocalEcho(node, tmp_path / "node.sock")


@pytest.fixture
def bad(authority: CertificateAuthority) -> Credentials:
    return authority.local("client-2", "mallory", Role.CLIENT)


def test_an_admitted_peer_is_heard_as_its_certificate_says(start: Node, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            link, heard, states = await echo.link(client)
            assert not link.send(wire.SyncRequest(view=1))  # not connected yet, and says so
            await until(lambda: states == ["up"])
            sizes = [0, 5, wire.INLINE_BYTES - 1, wire.INLINE_BYTES, 2 << 20, wire.MESSAGE_LIMIT_BYTES - 100]
            payloads = [bytes(size) for size in sizes]
            for payload in payloads:
                assert link.send(wire.SyncRequest(view=1), payload)
            await until(lambda: len(heard) == len(payloads))
            assert heard == [(wire.SyncRequest(view=1), payload) for payload in payloads]
            assert {origin.peer for origin in echo.origins} == {client.peer}
            assert {origin.host for origin in echo.origins} == {"127.0.0.1"}
            assert echo.server.dropped == 0
            link.close()
            assert not link.send(wire.SyncRequest(view=1))
            assert states == ["up"]

    asyncio.run(scene())


def test_a_burst_arrives_whole_and_in_order(start: Node, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["up"])
            for number in range(BURST):
                assert link.send(wire.SyncRequest(view=number))
            await until(lambda: len(heard) == BURST)
            assert [message.view for message, _ in heard] == list(range(BURST))  # type: ignore[union-attr]
            link.close()

    asyncio.run(scene())


def test_a_payload_of_any_kind_of_memory_arrives(start: Node, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["up"])
            data = bytes(range(256)) * (2 * wire.INLINE_BYTES // 256)
            for payload in (bytearray(data), memoryview(data), memoryview(data).cast("d")):
                assert link.send(wire.SyncRequest(view=1), payload)
            await until(lambda: len(heard) == 3)
            assert [payload for _, payload in heard] == [data] * 3
            link.close()

    asyncio.run(scene())


def test_a_link_to_one_who_does_not_read_takes_so_much_and_no_more(start: Node, client: Credentials) -> None:
    """Nobody reads before the loop has its turn; what was taken arrives then, and the link takes more."""

    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            link, _, states = await echo.link(client)
            await until(lambda: states == ["up"])
            came: list[wire.Message] = []
            echo.server._on_message = lambda _, message, payload: came.append(message)
            taken = 0
            while link.send(wire.SyncRequest(view=taken), bytes(1000)):
                taken += 1
                assert taken < FULL_AFTER
            assert taken >= HIGH_WATER_MESSAGES
            await until(lambda: len(came) == taken)
            assert [message.view for message in came] == list(range(taken))  # type: ignore[union-attr]
            assert link.send(wire.SyncRequest(view=taken))
            await until(lambda: len(came) == taken + 1)
            link.close()

    asyncio.run(scene())


def test_what_was_sent_before_the_end_arrives(start: Node, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            link, _, states = await echo.link(client)
            await until(lambda: states == ["up"])
            for number in range(READS_LIMIT * 2):
                assert link.send(wire.SyncRequest(view=number), b"last words")
            link.close()
            await until(lambda: len(echo.origins) == READS_LIMIT * 2)

    asyncio.run(scene())


@pytest.mark.parametrize("cause", ["revoked", "expired"])
def test_a_link_goes_silent_when_its_certificate_ends(start: Node, authority: CertificateAuthority, cause: str) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            client = authority.local("client-9", "hopper", Role.CLIENT)
            echo.admitted.admit(client.peer)
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["up"])
            await still_serves(echo, link, heard)
            if cause == "revoked":
                echo.admitted.revoke(client.peer.serial)
            else:
                # The clock of the machine is its edge; the certificate's end is moved before now instead.
                echo.admitted._peers[client.curve_public] = dataclasses.replace(client.peer, not_after=1.0)
            assert link.send(wire.SyncRequest(view=2))
            await until(lambda: echo.server.dropped == 1)
            await until(lambda: states == ["up", "refused"])
            assert not link.send(wire.SyncRequest(view=3))
            assert len(echo.origins) == 1
            link.close()

    asyncio.run(scene())


def test_a_renewed_certificate_of_the_same_keys_is_who_speaks_from_then_on(start: Node, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["up"])
            newer = dataclasses.replace(client.peer, serial=client.peer.serial + 1)
            echo.admitted.revoke(client.peer.serial, newer)
            await still_serves(echo, link, heard)
            assert echo.origins[-1].peer == newer
            link.close()

    asyncio.run(scene())


def framed(header: bytes) -> bytes:
    """A first frame with a header of these bytes, which need not be one."""
    return b"K\x02" + len(header).to_bytes(4, "little") + header


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"garbage"],
        [b"K\x63" + wire.encode(wire.SyncRequest(view=1))[2:]],
        [wire.encode(wire.SyncRequest(view=1))[:-1]],
        [framed(wire.encode(wire.SyncRequest(view=1))[6:] + b"more")],
        [framed(b"\x91" * 5000)],
        [wire.encode(wire.SyncRequest(view=1)), bytes(wire.MESSAGE_LIMIT_BYTES)],
    ],
    ids=["empty", "garbage", "version", "truncated", "trailing", "nested", "oversized"],
)
def test_a_bad_message_of_an_admitted_peer_is_dropped_and_counted(
    start: Node, client: Credentials, bad: Credentials, frames: list[bytes]
) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            echo.admitted.admit(bad.peer)
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["up"])
            cut_off = await echo.send_raw(bad, frames)
            await until(lambda: echo.server.dropped == 1)
            await still_serves(echo, link, heard)
            assert {origin.peer for origin in echo.origins} == {client.peer}
            assert not cut_off()
            link.close()

    asyncio.run(scene())


def test_a_frame_beyond_reading_cuts_its_sender_only(start: Node, client: Credentials, bad: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            echo.admitted.admit(bad.peer)
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["up"])
            too_much = bytes(3 * wire.MESSAGE_LIMIT_BYTES)
            cut_off = await echo.send_raw(bad, [wire.encode(wire.SyncRequest(view=1)), too_much])
            await until(cut_off)
            await still_serves(echo, link, heard)
            assert {origin.peer for origin in echo.origins} == {client.peer}
            link.close()

    asyncio.run(scene())


def test_what_a_handler_raises_stops_nobody(start: Node, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            problems: list[dict[str, object]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["up"])
            echo.server._on_message = lambda *_: 1 / 0  # type: ignore[assignment, return-value]
            for _ in range(3):
                link.send(wire.SyncRequest(view=1))
            await until(lambda: len(problems) == 3)
            echo.server._on_message = echo._echo
            await still_serves(echo, link, heard)
            link.close()

    asyncio.run(scene())


def test_a_send_to_nobody_or_over_the_limit(start: Node) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            nobody: bytes | int = b"nobody" if isinstance(echo, NetworkEcho) else 77
            assert not echo.server.send(nobody, wire.SyncRequest(view=1), b"payload")  # type: ignore[arg-type]
            with pytest.raises(LimitError, match="SyncRequest"):
                echo.server.send(  # type: ignore[arg-type]
                    nobody, wire.SyncRequest(view=1), bytes(wire.MESSAGE_LIMIT_BYTES)
                )

    asyncio.run(scene())


def test_a_link_tells_when_its_node_goes(start: Node, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.admit(client.peer)
            link, _, states = await echo.link(client)
            await until(lambda: states == ["up"])
            echo.stop()
            await until(lambda: states in (["up", "down"], ["up", "closed"]))
            assert not link.send(wire.SyncRequest(view=1))
            link.close()

    asyncio.run(scene())
