"""The keys of an engine's part: a private key that is made here and stays here, with the engine's certificate for it.

Theory of operation. The coordinator certifies (`net.engineauthority`); where none answers, the question goes to the
other nodes that can open the authority's key, until `FAILOVER_S` are over. To ask twice is harmless.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from kos_cluster.core.names import checked
from kos_cluster.errors import NoSuchNodeError, UnreachableError
from kos_cluster.net.engineauthority import make_request
from kos_cluster.net.engines import CertifyEngine, EngineCertificate

if TYPE_CHECKING:
    from kos_cluster.net import wire  # else ranks that ask for nothing themselves would load it

FAILOVER_S = 20.0  # for which a node is looked for that certifies
PAUSE_S = 0.1  # between two rounds

T = TypeVar("T")


class Credentials(msgspec.Struct, frozen=True):
    """PEM texts. The authority is this engine's alone, so nobody else's certificate opens its ports."""

    authority: str
    certificate: str  # for servers and clients, with the host of its place among its names
    key: str
    secret: str  # hex, 32 bytes; the same for all parts of the engine, where it has links that ask for a token

    def __repr__(self) -> str:
        return "<kos Credentials>"  # without the private key and the secret


class Asks(Protocol):
    """The connection to the cluster; see `tasks.mesh`."""

    def request(self, question: wire.Asked, kind: type[T], *, node: str) -> T: ...

    def heard(self) -> wire.SyncData: ...


def certified(mesh: Asks, engine: str, host: str) -> Credentials:
    """Keys of this process as a part of an engine that is reached at `host`.

    Raises UsageError for a bad name or host, AuthError for a role that may not submit work, UnreachableError.
    """
    key_pem, request_pem = make_request()
    return credentials(issued(mesh, engine, request_pem, host), key_pem)


def credentials(issued: EngineCertificate, key_pem: bytes) -> Credentials:
    """The keys of the process that made this private key and the request for it."""
    return Credentials(issued.authority_pem, issued.certificate_pem, key_pem.decode(), issued.secret)


def issued(mesh: Asks, engine: str, request_pem: bytes, host: str) -> EngineCertificate:
    """The certificate for a request, of this process or of one that has no connection. Raises as `certified`."""
    question = CertifyEngine(checked(engine, "engine"), request_pem, host)
    deadline_s = time.monotonic() + FAILOVER_S
    for node in _asked_in_turn(mesh):
        try:
            return mesh.request(question, EngineCertificate, node=node)
        except (UnreachableError, NoSuchNodeError):
            if time.monotonic() >= deadline_s:
                raise
    raise AssertionError("there is no end of nodes to ask")


def _asked_in_turn(mesh: Asks) -> Iterator[str]:
    """Whom to ask, without end: the coordinator as far as it is known, then each that decides."""
    while True:
        yield from ("", *mesh.heard().voters)
        time.sleep(PAUSE_S)
