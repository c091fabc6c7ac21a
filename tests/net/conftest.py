"""A cluster's authority, credentials and a store, for tests over real sockets on loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kos_cluster.core.records import Versions
from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import TokenTable
from kos_cluster.net.admission import Admitted
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.bulk import BulkServer
from kos_cluster.net.granting import grant
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.joining import JoinReply, JoinRequest
from kos_cluster.net.wire import WIRE_VERSION

VERSIONS = Versions("0.1.0", WIRE_VERSION, "3.11.7", "2.0.0", "3.1.0")


class NodeStore:
    """What a node does with what arrives on its bulk port."""

    def __init__(self, authority: CertificateAuthority, folder: Path) -> None:
        self.authority_ = authority
        self.folder = folder
        self.admitted = Admitted()
        self.tokens = TokenTable()
        self.keeper: tuple[str, int] | None = None
        self.asked_to_join = 0

    def presented(self, peer: Peer) -> None:
        self.admitted.admit(peer)

    def part_wanted(self, peer: Peer, hash_: str, size: int) -> Path | None:
        return None if (self.folder / hash_).exists() else self.folder / "incoming"

    def part_arrived(self, peer: Peer, hash_: str, path: Path) -> None:
        path.rename(self.folder / hash_)

    def result_path(self, peer: Peer, name: str) -> Path | None:
        return self.folder / name

    def authority(self) -> tuple[str, int] | None:
        return self.keeper

    def join(self, request: JoinRequest, source_host: str) -> JoinReply:
        self.asked_to_join += 1
        return grant(
            request,
            source_host,
            authority=self.authority_,
            tokens=self.tokens,
            versions=VERSIONS,
            node_name=request.name,
            bootstrap=["127.0.0.1:7567"],
            now=time.time(),
        )


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
