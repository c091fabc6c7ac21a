"""A cluster's authority, credentials and a store, for tests over real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kos_cluster import errors
from kos_cluster.core.records import Member
from kos_cluster.core.replicated import commands, replies
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.core.roles import Role
from kos_cluster.net.admission import Admitted
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.bulk import BulkServer
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.joining import JoinReply, JoinRequest
from kos_cluster.net.tunnel import End, Open
from kos_cluster.node import machine
from kos_cluster.node.certifying import Certifier, certificate_of, seals


class Alone:
    """The agreement of a cluster of one: what is proposed is applied at once."""

    def __init__(self, node: Credentials) -> None:
        self.state = ClusterState()
        self.leader = node.peer.id
        self.stood_still_s = 0.0  # while the whole cluster was down

    @property
    def clock_s(self) -> float:
        return max(time.time() - self.stood_still_s, self.state.clock_s)

    async def propose(self, command: commands.Command) -> replies.Reply:
        entry = commands.encode(commands.Proposal(self.clock_s, command))
        reply = self.state.apply(self.state.applied_index + 1, entry).reply
        if isinstance(reply, replies.Refusal):
            raise getattr(errors, reply.error)(reply.message, reply.hint)
        return reply


class OneMember:
    """The view of a cluster of one."""

    def members(self) -> list[Member]:
        return [Member("node-1", "desk", "127.0.0.1", 7567, 1, machine.versions(), 1)]


class NodeStore:
    """What a node does with what arrives on its bulk port."""

    def __init__(self, authority: CertificateAuthority, folder: Path) -> None:
        self.folder = folder
        self.admitted = Admitted()
        node = authority.local("node-1", "desk", Role.NODE)
        self.agreed = Alone(node)
        self.certifier = Certifier(node, self.agreed, OneMember())
        self.elsewhere: tuple[str, int] | None = None
        self.asked_to_join = 0
        self.tunnels: dict[str, End] = {}
        self.propose(commands.FoundCluster("lab", authority.certificate_pem, (certificate_of(node),)))
        self.propose(seals(authority, {node.peer.id: node.curve_public}))

    def propose(self, command: commands.Command) -> replies.Reply:
        return asyncio.run(self.agreed.propose(command))

    def presented(self, peer: Peer) -> None:
        self.admitted.admit(peer)

    def part_wanted(self, peer: Peer, hash_: str, size: int) -> Path | None:
        return None if (self.folder / hash_).exists() else self.folder / "incoming"

    def part_arrived(self, peer: Peer, hash_: str, path: Path) -> None:
        path.rename(self.folder / hash_)

    def result_path(self, peer: Peer, name: str) -> Path | None:
        return self.folder / name

    def keep_wanted(self, peer: Peer, hash_: str, size: int) -> Path | None:
        return None if (self.folder / f"kept-{hash_}").exists() else self.folder / "incoming-kept"

    def keep_arrived(self, peer: Peer, hash_: str, path: Path) -> None:
        path.rename(self.folder / f"kept-{hash_}")

    def kept_path(self, peer: Peer, hash_: str) -> Path | None:
        return self.folder / f"kept-{hash_}"

    def tunnel(self, peer: Peer, wanted: Open) -> End:
        if wanted.new and wanted.id not in self.tunnels:
            self.tunnels[wanted.id] = End(socket.create_connection(("127.0.0.1", int(wanted.socket))))
        try:
            return self.tunnels[wanted.id]
        except KeyError:
            raise errors.NoSuchTaskError("There is no such tunnel.") from None

    def coordinator(self) -> tuple[str, int] | None:
        return self.elsewhere

    def join(self, request: JoinRequest, source_host: str) -> JoinReply:
        self.asked_to_join += 1
        return asyncio.run(self.certifier.admit(request, source_host))


def _free_pair() -> int:
    """A control port that is free on loopback together with the next one."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except (OSError, OverflowError):
                continue


@pytest.fixture(scope="session")
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("lab")


@pytest.fixture(scope="session")
def node(authority: CertificateAuthority) -> Credentials:
    return authority.local("node-1", "ada", Role.NODE)


@pytest.fixture
def client(authority: CertificateAuthority) -> Credentials:
    return authority.local("client-1", "grace", Role.CLIENT)


@pytest.fixture
def port() -> int:
    return _free_pair()


@pytest.fixture
def free_pair() -> Callable[[], int]:
    return _free_pair


@pytest.fixture
def store(authority: CertificateAuthority, tmp_path: Path) -> NodeStore:
    folder = tmp_path / "store"
    folder.mkdir()
    return NodeStore(authority, folder)


@pytest.fixture
def bulk(node: Credentials, store: NodeStore, port: int) -> Iterator[BulkServer]:
    server = BulkServer("127.0.0.1", port + 1, node, store)
    server.start()
    yield server
    server.close()
    for end in store.tunnels.values():
        end.close()
