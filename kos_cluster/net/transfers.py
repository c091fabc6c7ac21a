"""What certified peers do over the bulk port: put a part, get a result, get a block. (`presenting`: the rest.)

A part that is put to be kept outlives the daemon, for detached jobs; nodes may move such parts too. A node that gives a
block to several already may name others to ask for it.

Theory of operation. After the TLS handshake the server speaks first: `Outcome`, whether it takes the peer. On
`kos-present` that is all. On `kos-bulk` the client then asks one thing, `Put`, `Get` or `GetBlock`; the server answers
with an `Outcome` that says how many bytes will move; they move without framing; a put is confirmed by a last `Outcome`.

Rules: the role is authorised before anything moves. A part is written to a temporary file while it is hashed, and
handed on only when its hash is right; else the file is removed. `port` is always a node's control port.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from kos_cluster.core.roles import Command, may
from kos_cluster.errors import AuthError, KosError, NoSuchTaskError, ProtocolError, StateError, UsageError
from kos_cluster.net import tls
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.outcome import WireError, from_wire, to_wire

CHUNK_BYTES = 1 << 20
LEND_TIMEOUT_S = 120.0  # for a node to have a block that it gives in memory, which may mean to spill others first
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


Take = Callable[[memoryview], None]  # the next bytes, which are valid until it returns


class Put(msgspec.Struct, frozen=True, tag="PUT"):
    hash: str
    size: int
    keep: bool = False


class Get(msgspec.Struct, frozen=True, tag="GET"):
    name: str
    kept: bool = False  # the name is the hash of a kept part


class GetBlock(msgspec.Struct, frozen=True, tag="GET_BLOCK"):
    """A block of shared memory. With `insist` the node gives it itself, however many it gives it to already."""

    block: str
    insist: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """`size` bytes follow, from whoever has them; with an error nothing does.

    Of a block: `keepers` are those who keep it; or nothing follows, and the nodes of the ids `elsewhere` have it.
    """

    size: int = 0
    error: WireError | None = None
    keepers: list[tuple[str, str]] = []
    elsewhere: list[str] = []


class Lending(Protocol):
    """A block while it is given to a peer."""

    size_bytes: int
    keepers: list[tuple[str, str]]

    def chunks(self) -> Iterator[memoryview]:
        """Its content in order, as it is there. Each is valid until the next is asked for. Raises ConnectionError."""

    def close(self) -> None:
        """It has been given, or will not be."""


class Store(Protocol):
    """Where parts go to and results come from. Called from several threads; refusals are raised as KosError."""

    def part_wanted(self, peer: Peer, hash: str, size: int, /) -> Path | None:
        """A path of its own to write the part to; None when the node has it."""

    def part_arrived(self, peer: Peer, hash: str, path: Path, /) -> None:
        """The part is complete and its hash is right. The path is the store's from here on."""

    def result_path(self, peer: Peer, name: str, /) -> Path | None:
        """The file of a result of this peer's own work; None when there is none."""

    def keep_wanted(self, peer: Peer, hash: str, size: int, /) -> Path | None:
        """As `part_wanted`, for a part that is to be kept."""

    def keep_arrived(self, peer: Peer, hash: str, path: Path, /) -> None:
        """As `part_arrived`. It is durable when this returns."""

    def kept_path(self, peer: Peer, hash: str, /) -> Path | None:
        """The file of a kept part; None when it is not here."""

    def lend(self, peer: Peer, block: str, insist: bool, /) -> Lending | list[str]:
        """A block to be given to this peer, or the ids of nodes to ask instead. Raises BlockLostError."""


# ---- client


def put_part(
    host: str,
    port: int,
    credentials: Credentials,
    hash: str,
    data: bytes | bytearray | memoryview,
    *,
    keep: bool = False,
) -> bool:
    """Give a node a part, unless it has it (False). Raises UnreachableError, or what the node raised."""
    view = memoryview(data).cast("B")
    with Session(host, port, credentials, tls.ALPN_BULK) as session:
        if not session.ask(Put(hash, len(view), keep)):
            return False
        session.stream.sendall(view)
        session.outcome()
        return True


def get_result(host: str, port: int, credentials: Credentials, name: str, size: int) -> bytearray:
    """The bytes of a result that a node keeps for this peer. Raises UnreachableError, or what the node raised."""
    with Session(host, port, credentials, tls.ALPN_BULK) as session:
        there = session.ask(Get(name))
        if there != size:
            raise ProtocolError(f"The result {name} at {session.where} has {there} bytes instead of {size}.")
        data = bytearray(size)
        tls.receive_into(session.stream, memoryview(data))
        return data


def get_kept(host: str, port: int, credentials: Credentials, hash: str, file: BinaryIO) -> None:
    """Write a kept part of a node to a file. Raises UnreachableError, or what the node raised.

    ProtocolError when the bytes are not those that the hash names.
    """
    hashed = hashlib.sha256()
    with Session(host, port, credentials, tls.ALPN_BULK) as session:
        left = session.ask(Get(hash, kept=True))
        buffer = memoryview(bytearray(max(1, min(CHUNK_BYTES, left))))
        while left:
            chunk = buffer[: min(left, len(buffer))]
            tls.receive_into(session.stream, chunk)
            left -= len(chunk)
            hashed.update(chunk)
            file.write(chunk)
    if hashed.hexdigest() != hash:
        raise ProtocolError(f"The part {hash[:12]} came from {session.where} with other bytes than its hash says.")


def get_block(
    host: str,
    port: int,
    credentials: Credentials,
    request: GetBlock,
    room: Callable[[Outcome], Take],
) -> Outcome:
    """Give a block, as the answer describes it, piece by piece to what `room` gives, unless that names others to ask.

    Raises UnreachableError, or what the node, `room` or that raised.
    """
    with Session(host, port, credentials, tls.ALPN_BULK) as session:
        tls.send_message(session.stream, msgspec.msgpack.encode(request))
        answer = tls.receive_message(session.stream, LEND_TIMEOUT_S + tls.EXCHANGE_TIMEOUT_S)
        outcome = outcome_of(answer)
        if not outcome.elsewhere:
            take, left = room(outcome), outcome.size
            buffer = memoryview(bytearray(min(CHUNK_BYTES, outcome.size)))
            while left:
                chunk = buffer[: min(left, len(buffer))]
                tls.receive_into(session.stream, chunk)
                take(chunk)
                left -= len(chunk)
        return outcome


class Session:
    """A connection whose two ends have accepted each other. Socket errors inside it leave it as KOS errors."""

    def __init__(self, host: str, port: int, credentials: Credentials, alpn: str) -> None:
        self.where = f"{host}:{port}"
        self.stream = tls.connect(host, port, tls.client_context(credentials, alpn))
        try:
            self.node = tls.node_of(self.stream, credentials.ca_pem, credentials.peer.cluster)
            self.outcome()
        except OSError as error:
            self.stream.close()
            raise tls.translated(self.where, error) from None
        except KosError:
            self.stream.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.stream.close()
        if isinstance(error, OSError):
            raise tls.translated(self.where, error) from None

    def ask(self, request: Put | Get) -> int:
        tls.send_message(self.stream, msgspec.msgpack.encode(request))
        return self.outcome()

    def outcome(self) -> int:
        return outcome_of(tls.receive_message(self.stream)).size


def outcome_of(message: bytes) -> Outcome:
    """What an `Outcome` tells. Raises the error that it tells, or ProtocolError."""
    outcome: Outcome = decoded(message, Outcome)
    if outcome.error is not None:
        raise from_wire(outcome.error)
    return outcome


# ---- server


def reply(stream: ssl.SSLSocket, outcome: Outcome) -> None:
    """Tell the peer how it went."""
    tls.send_message(stream, msgspec.msgpack.encode(outcome))


def serve(stream: ssl.SSLSocket, peer: Peer, store: Store) -> None:
    """Answer the one request of a verified peer. Raises OSError or KosError; the peer was told of the latter."""
    try:
        request: Put | Get | GetBlock = decoded(tls.receive_message(stream), Put | Get | GetBlock)
        if not _may_move(peer, request):
            raise AuthError(f"{peer} may not move parts or results: its role does not allow to submit work.")
        if isinstance(request, Put):
            _take(stream, peer, store, request)
        elif isinstance(request, Get):
            _give(stream, peer, store, request)
        else:
            _give_block(stream, peer, store, request)
    except KosError as error:
        reply(stream, Outcome(error=to_wire(error)))
        raise


def _may_move(peer: Peer, request: Put | Get | GetBlock) -> bool:
    """Parts and results are of those who submit; what is kept, and blocks, the nodes hand on among themselves."""
    nodes_too = isinstance(request, GetBlock) or (request.keep if isinstance(request, Put) else request.kept)
    return may(peer.role, Command.SUBMIT) or (nodes_too and may(peer.role, Command.BE_MEMBER))


def _take(stream: ssl.SSLSocket, peer: Peer, store: Store, request: Put) -> None:
    if not _HASH.fullmatch(request.hash) or request.size <= 0:
        raise UsageError("A part needs a SHA-256 hash in hex, and at least one byte.")
    wanted, arrived = store.part_wanted, store.part_arrived
    if request.keep:
        wanted, arrived = store.keep_wanted, store.keep_arrived
    path = wanted(peer, request.hash, request.size)
    if path is None:
        reply(stream, Outcome(size=0))
        return
    try:
        reply(stream, Outcome(size=request.size))
        _write(stream, path, request)
        arrived(peer, request.hash, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    reply(stream, Outcome())


def _write(stream: ssl.SSLSocket, path: Path, request: Put) -> None:
    """Stream the part to its file. What cannot be written is still read, so that the peer gets to see the reason."""
    hashed = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK_BYTES, request.size)))
    problem: OSError | None = None
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        left = request.size
        while left:
            chunk = buffer[: min(left, len(buffer))]
            tls.receive_into(stream, chunk)
            left -= len(chunk)
            hashed.update(chunk)
            if problem is None:
                problem = _written(file.fileno(), chunk)
    if problem is not None:
        raise StateError(f"The part {request.hash[:12]} could not be written ({problem.strerror}).", "Free disk space.")
    if hashed.hexdigest() != request.hash:
        raise ProtocolError(
            f"The part {request.hash[:12]} arrived with other bytes than its hash says.", "Send it again."
        )


def _written(fd: int, chunk: memoryview) -> OSError | None:
    try:
        while chunk:
            chunk = chunk[os.write(fd, chunk) :]
    except OSError as error:
        return error
    return None


def _give(stream: ssl.SSLSocket, peer: Peer, store: Store, request: Get) -> None:
    if not (_HASH if request.kept else _NAME).fullmatch(request.name):
        raise UsageError("A result's name is letters, digits, '.', '-' and '_'.")
    path = store.kept_path(peer, request.name) if request.kept else store.result_path(peer, request.name)
    try:
        file = open(path, "rb", buffering=0) if path else None  # noqa: SIM115 (closed below)
    except OSError:
        file = None
    if file is None:
        raise NoSuchTaskError(
            f"The {'part' if request.kept else 'result'} {request.name} is not kept here.",
            "Its job has ended long ago." if request.kept else "It was released, or the node was restarted.",
        )
    with file:
        left = os.fstat(file.fileno()).st_size
        reply(stream, Outcome(size=left))
        buffer = memoryview(bytearray(min(CHUNK_BYTES, left)))
        while left:
            count = file.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise ConnectionError(f"{path} became shorter while it was sent")
            stream.sendall(buffer[:count])
            left -= count


def _give_block(stream: ssl.SSLSocket, peer: Peer, store: Store, request: GetBlock) -> None:
    found = store.lend(peer, request.block, request.insist)
    if isinstance(found, list):
        reply(stream, Outcome(elsewhere=found))
        return
    try:
        reply(stream, Outcome(size=found.size_bytes, keepers=found.keepers))
        for chunk in found.chunks():
            stream.sendall(chunk)
    finally:
        found.close()


def decoded(data: bytes, kind: Any) -> Any:
    """A message of this kind. Raises ProtocolError."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"A malformed message arrived on the bulk port: {error}.") from None
