"""Links within a machine: who gets in, and how their ends are noticed. `test_links` has what they carry."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, RevokedError, UnreachableError
from kos_cluster.net import introducing, locallink, tls, unixsockets, wire
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Credentials
from kos_cluster.net.introducing import Challenge, Claim, Verdict
from kos_cluster.net.locallink import LocalLink
from kos_cluster.net.signatures import Signer
from tests.net.echoes import LocalEcho, running, still_serves, until

IMPATIENT_S = 0.3

Start = Callable[[], LocalEcho]


@pytest.fixture
def start(node: Credentials, tmp_path: Path) -> Start:
    return lambda: LocalEcho(node, tmp_path / "node.sock")


async def heard(raw: socket.socket, kind: type[introducing.T]) -> introducing.T:
    return await introducing._receive(raw, kind)


async def closed(raw: socket.socket) -> bool:
    """Wait until the node has closed the connection, with nothing more said."""
    async with asyncio.timeout(20):
        return await asyncio.get_running_loop().sock_recv(raw, 1) == b""


async def claims(echo: LocalEcho, claim: Callable[[bytes], Claim]) -> Verdict:
    """What the node says to a claim that is made of its nonce."""
    raw = echo.raw()
    challenge = await heard(raw, Challenge)
    await introducing._send(raw, claim(challenge.nonce))
    verdict = await heard(raw, Verdict)
    assert await closed(raw)
    return verdict


def claim_of(
    credentials: Credentials, key: Credentials, node_nonce: bytes, purpose: str = introducing._CLIENT
) -> Claim:
    """A claim to be the one, signed with the key of the other."""
    nonce = bytes(introducing.NONCE_BYTES)
    serial = Signer(credentials, purpose).sign(b"")[:8]
    signature = serial + Signer(key, purpose).sign(node_nonce + nonce)[8:]
    return Claim(nonce, Signer(credentials, purpose).certificate_der, signature)


def test_both_ends_prove_who_they_are_and_no_other_introduction_is_needed(
    start: Start, node: Credentials, client: Credentials
) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            assert echo.admitted.get(client.curve_public) is None
            link, said, states = await echo.link(client)
            assert isinstance(link, LocalLink)
            assert link.peer == node.peer
            await until(lambda: states == ["up"])
            await still_serves(echo, link, said)
            assert echo.origins[0].peer == client.peer == echo.admitted.get(client.curve_public)
            link.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("anothers", "not signed by it"),
        ("reflected", "not signed by it"),
        ("foreign", "not issued by the authority"),
        ("garbage", "not issued by the authority"),
        ("short", "nonce"),
    ],
)
def test_a_claim_that_is_not_proved_is_refused_with_the_reason(
    start: Start, authority: CertificateAuthority, client: Credentials, name: str, why: str
) -> None:
    mallory = authority.local("client-2", "mallory", Role.CLIENT)
    foreign = CertificateAuthority.create("lab").local("client-1", "grace", Role.ADMIN)
    claim: dict[str, Callable[[bytes], Claim]] = {
        "anothers": lambda nonce: claim_of(client, mallory, nonce),
        "reflected": lambda nonce: claim_of(client, client, nonce, introducing._NODE),
        "foreign": lambda nonce: claim_of(foreign, foreign, nonce),
        "garbage": lambda nonce: Claim(bytes(introducing.NONCE_BYTES), b"no certificate", bytes(72)),
        "short": lambda nonce: Claim(b"", b"", b""),
    }

    async def scene() -> None:
        async with running(start()) as echo:
            verdict = await claims(echo, claim[name])
            assert verdict.error is not None
            assert why in verdict.error[1]
            assert echo.server.dropped == 1
            assert not len(echo.admitted)
            link, said, states = await echo.link(client)
            await until(lambda: states == ["up"])
            await still_serves(echo, link, said)
            link.close()

    asyncio.run(scene())


def test_a_claim_cannot_be_used_a_second_time(start: Start, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            raw = echo.raw()
            claim = claim_of(client, client, (await heard(raw, Challenge)).nonce)
            await introducing._send(raw, claim)
            assert (await heard(raw, Verdict)).error is None
            again = await claims(echo, lambda _: claim)
            assert again.error is not None
            assert "not signed by it" in again.error[1]

    asyncio.run(scene())


@pytest.mark.parametrize(
    "said",
    [b"\xff" * 64, tls.framed(b"\x91" * 5000), tls.framed(msgspec.msgpack.encode([1]))],
    ids=["too long", "nested", "another message"],
)
def test_what_is_no_introduction_is_cut_off(start: Start, client: Credentials, said: bytes) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            raw = echo.raw()
            await heard(raw, Challenge)
            raw.send(said)
            await until(lambda: echo.server.dropped == 1)
            link, heard_here, states = await echo.link(client)
            await until(lambda: states == ["up"])
            await still_serves(echo, link, heard_here)
            link.close()

    asyncio.run(scene())


def test_a_revoked_certificate_is_refused_as_such(start: Start, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            echo.admitted.revoke(client.peer.serial)
            with pytest.raises(RevokedError, match="revoked"):
                await echo.link(client)

    asyncio.run(scene())


def test_who_is_not_a_node_cannot_answer_as_one(
    authority: CertificateAuthority, client: Credentials, tmp_path: Path
) -> None:
    async def scene() -> None:
        async with running(LocalEcho(authority.local("c", "mallory", Role.ADMIN), tmp_path / "node.sock")) as echo:
            with pytest.raises(AuthError, match="mallory answers as a node, but its certificate says admin"):
                await echo.link(client)

    asyncio.run(scene())


def test_another_users_process_is_sent_away(start: Start, client: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            monkeypatch.setattr(unixsockets, "peer_of", lambda stream: (1, os.getuid() + 1))
            assert await closed(echo.raw())
            assert echo.server.dropped == 1

    asyncio.run(scene())


def test_a_client_shows_nothing_to_another_users_process(
    start: Start, client: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            answers = iter([os.getuid() + 1, os.getuid()])  # the client asks first
            monkeypatch.setattr(unixsockets, "peer_of", lambda stream: (1, next(answers)))
            with pytest.raises(AuthError, match="another user"):
                await echo.link(client)

    asyncio.run(scene())


def test_who_says_nothing_holds_nobody_up_and_is_cut_off(
    start: Start, client: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            with monkeypatch.context() as impatient:
                impatient.setattr(locallink, "INTRODUCING_TIMEOUT_S", IMPATIENT_S)
                silent = echo.raw()
                await heard(silent, Challenge)
            link, said, states = await echo.link(client)
            await until(lambda: states == ["up"])
            await still_serves(echo, link, said)
            assert await closed(silent)
            await still_serves(echo, link, said)
            link.close()

    asyncio.run(scene())


def test_a_node_that_does_not_answer_is_unreachable(
    client: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locallink, "INTRODUCING_TIMEOUT_S", IMPATIENT_S)

    async def scene() -> None:
        with unixsockets.listen(tmp_path / "node.sock"), pytest.raises(UnreachableError, match="did not answer"):
            await LocalLink.open(tmp_path / "node.sock", client, lambda *_: None, lambda _: None)

    asyncio.run(scene())


def test_those_beyond_the_limit_are_closed(start: Start, client: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locallink, "CONNECTIONS_LIMIT", 1)

    async def scene() -> None:
        async with running(start()) as echo:
            link, said, states = await echo.link(client)
            await until(lambda: states == ["up"])
            with pytest.raises(ConnectionError):
                await echo.link(client)
            await still_serves(echo, link, said)
            link.close()

    asyncio.run(scene())


def test_a_denied_peer_is_told_and_cut_off_without_having_spoken(start: Start, client: Credentials) -> None:
    async def scene() -> None:
        async with running(start()) as echo:
            link, said, states = await echo.link(client)
            await until(lambda: states == ["up"])
            echo.server.cut_denied()
            await still_serves(echo, link, said)
            cut_off = await echo.send_raw(client, [wire.encode(wire.SyncRequest(view=1))])
            echo.admitted.revoke(client.peer.serial)
            echo.server.cut_denied()
            await until(lambda: states == ["up", "refused"])
            await until(cut_off)
            assert not link.send(wire.SyncRequest(view=2))
            link.close()

    asyncio.run(scene())


def test_the_socket_is_the_users_own_and_replaces_one_that_was_left(
    node: Credentials, client: Credentials, tmp_path: Path
) -> None:
    folder = tmp_path / ("deep" * 20) / ("down" * 20)  # beyond what an address may have
    folder.mkdir(parents=True)
    unixsockets.listen(folder / "node.sock").close()

    async def scene() -> None:
        async with running(LocalEcho(node, folder / "node.sock")) as echo:
            assert (folder / "node.sock").stat().st_mode & 0o777 == 0o600
            link, said, states = await echo.link(client)
            await until(lambda: states == ["up"])
            await still_serves(echo, link, said)
            link.close()
        assert not (folder / "node.sock").exists()

    asyncio.run(scene())
