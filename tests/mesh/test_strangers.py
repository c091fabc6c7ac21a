"""A peer without a certificate gets nothing on any port, harms nobody, and is counted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from kos_cluster.core.records import JobSummary, Member, Needs
from kos_cluster.core.roles import Role
from kos_cluster.net import joining, tls, wire
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Credentials, Keys
from kos_cluster.net.takingback import TakeBack
from kos_cluster.node import machine
from tests.mesh.conftest import Mesh, until
from tests.mesh.speaker import Speaker, authority_of, identity
from tests.net.presented import present

HOST = "127.0.0.1"
QUIET_S = 0.3  # without an answer for so long, there is none
GREETING_BYTES = 64  # ZeroMQ's own, without which no peer can say who it is
HTTP = b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"
# A TLS 1.3 ClientHello that promises 512 bytes and stops in the middle of its random.
HALF_CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(16)
ZMTP_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


def zmtp(mechanism: bytes, more: bytes = b"") -> bytes:
    """A whole ZMTP 3.1 greeting that asks for a mechanism, and what is said after it."""
    return ZMTP_SIGNATURE + b"\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32) + more


READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
REQUEST = b"\x00\x40" + wire.encode(wire.Request(1, wire.Nodes())).ljust(64, b"\0")
HUGE_FRAME = b"\x02" + (1 << 62).to_bytes(8, "big") + bytes(1 << 16)

CONTROL_TALK = {
    "silence": b"",
    "garbage": os.urandom(4096),
    "zeros": bytes(1 << 16),
    "http": HTTP,
    "half a greeting": ZMTP_SIGNATURE + b"\x03",
    "no mechanism": zmtp(b""),
    "null": zmtp(b"NULL", READY + REQUEST),
    "plain": zmtp(b"PLAIN", b"\x04\x0e\x05HELLO\x03kos\x03kos" + REQUEST),
    "curve without a handshake": zmtp(b"CURVE", READY + REQUEST),
    "curve with a false hello": zmtp(b"CURVE", b"\x04\xc8\x05HELLO\x01\x00" + os.urandom(192) + REQUEST),
    "oversized": zmtp(b"CURVE", HUGE_FRAME),
    "tls": HALF_CLIENT_HELLO,
}
BULK_TALK = {
    "silence": b"",
    "garbage": os.urandom(4096),
    "zeros": bytes(1 << 16),
    "http": HTTP,
    "zmtp": zmtp(b"NULL", READY + REQUEST),
    "half a hello": HALF_CLIENT_HELLO,
    "oversized record": b"\x16\x03\x01\xff\xff" + os.urandom(1 << 16),
}


def control_ports(mesh: Mesh) -> dict[str, int]:
    return {row["name"]: int(row["address"].rpartition(":")[2]) for row in mesh.cluster.nodes()}


def dropped(mesh: Mesh, node: str) -> int:
    return next(row["dropped_frames"] for row in mesh.cluster.nodes() if row["name"] == node)


def said(connection: socket.socket) -> bytes:
    """All that the other side says, until it ends the connection or is quiet."""
    heard = b""
    connection.settimeout(QUIET_S)
    with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLError):
        while data := connection.recv(1 << 16):
            heard += data
    return heard


class Sockets:
    """Plain ZeroMQ sockets, all closed at the end."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.all: list[zmq.Socket[bytes]] = []

    def make(self, kind: int = zmq.DEALER) -> zmq.Socket[bytes]:
        raw = self._context.socket(kind)
        raw.linger = 0
        self.all.append(raw)
        return raw

    def silent(self) -> bool:
        """Whether none of them has been sent anything."""
        return not any(raw.poll(50) for raw in self.all)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    sockets = Sockets()
    yield sockets
    for raw in sockets.all:
        raw.close()
    sockets._context.term()


@pytest.fixture
def unharmed(mesh: Mesh) -> Iterator[None]:
    """During the test and after it the daemons are the same processes, and serve old and new clients."""
    before = {row["name"]: (row["pid"], row["state"]) for row in mesh.cluster.nodes()}
    yield
    assert {row["name"]: (row["pid"], row["state"]) for row in mesh.cluster.nodes()} == before
    serves(mesh)


def serves(mesh: Mesh) -> None:
    """Every node works for the client that was here before, and for one that comes now."""
    assert list(mesh.cluster.map(abs, range(-20, 0))) == list(range(20, 0, -1))
    newcomer = identity(authority_of(mesh.home), Role.CLIENT)

    async def work(port: int) -> None:
        async with Speaker(newcomer, HOST, port) as speaker:
            speaker.run(abs, -1)
            result, _ = await speaker.wait(wire.Result)
            assert not result.failed

    for port in control_ports(mesh).values():
        asyncio.run(work(port))


# ---- without TLS, without CURVE


def test_talk_on_the_control_port_gets_no_answer_and_is_counted(mesh: Mesh, unharmed: None):
    for node, port in control_ports(mesh).items():
        before = dropped(mesh, node)
        talkers: dict[str, socket.socket] = {}
        for name, talk in CONTROL_TALK.items():
            talkers[name] = socket.create_connection((HOST, port))
            with contextlib.suppress(ConnectionError):  # it may have heard enough before the end
                talkers[name].sendall(talk)
        serves(mesh)
        for name, talker in talkers.items():
            heard = said(talker)
            assert len(heard) <= GREETING_BYTES, (node, name, heard)
            assert heard == b"" or heard.startswith(b"\xff"), (node, name, heard)
            talker.close()
        until(lambda: dropped(mesh, node) >= before + len(CONTROL_TALK), f"{node} has counted them")  # noqa: B023


def test_talk_on_the_bulk_port_gets_no_answer(mesh: Mesh, unharmed: None):
    for node, port in control_ports(mesh).items():
        talkers: dict[str, socket.socket] = {}
        for name, talk in BULK_TALK.items():
            talkers[name] = socket.create_connection((HOST, port + 1))
            with contextlib.suppress(ConnectionError):
                talkers[name].sendall(talk)
        serves(mesh)
        for name, talker in talkers.items():
            heard = said(talker)
            # A TLS alert says that this was no TLS, and nothing else: 7 bytes.
            assert heard == b"" or (heard[0] == 0x15 and len(heard) == 7), (node, name, heard)
            talker.close()


# ---- ZeroMQ with every mechanism


def _null(raw: zmq.Socket[bytes], server: Credentials) -> None:
    pass


def _plain(raw: zmq.Socket[bytes], server: Credentials) -> None:
    raw.plain_username, raw.plain_password = b"kos", b"kos"


def _unknown_key(raw: zmq.Socket[bytes], server: Credentials) -> None:
    raw.curve_publickey, raw.curve_secretkey = zmq.curve_keypair()
    raw.curve_serverkey = server.curve_public


def _wrong_server_key(raw: zmq.Socket[bytes], server: Credentials) -> None:
    raw.curve_publickey, raw.curve_secretkey = zmq.curve_keypair()
    raw.curve_serverkey = zmq.curve_keypair()[0]


def _route_of_a_node(raw: zmq.Socket[bytes], server: Credentials) -> None:
    raw.setsockopt(zmq.ROUTING_ID, server.peer.id.encode())
    _unknown_key(raw, server)


MECHANISMS = [_null, _plain, _unknown_key, _wrong_server_key, _route_of_a_node]


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ, zmq.SUB], ids=["dealer", "req", "sub"])
def test_zeromq_without_an_admitted_key_gets_no_message(mesh: Mesh, unharmed: None, sockets: Sockets, kind: int):
    before = {node: dropped(mesh, node) for node in control_ports(mesh)}
    for node, port in control_ports(mesh).items():
        for mechanism in MECHANISMS:
            raw = sockets.make(kind)
            mechanism(raw, Credentials.load(mesh.home.path / "clusters/local/nodes" / node))
            if kind == zmq.SUB:
                raw.subscribe(b"")
            raw.connect(f"tcp://{HOST}:{port}")
            if kind != zmq.SUB:
                with contextlib.suppress(zmq.Again):  # it has been turned away already
                    raw.send(wire.encode(wire.Request(1, wire.Nodes())), zmq.NOBLOCK)
    until(lambda: all(dropped(mesh, n) >= count + len(MECHANISMS) for n, count in before.items()), "all are counted")
    assert sockets.silent()


# ---- TLS


def shown_by(authority: CertificateAuthority) -> dict[str, bytes]:
    """What strangers may have in their hands."""
    name = authority.cluster
    foreign = CertificateAuthority.create(name)
    elsewhere = CertificateAuthority("elsewhere", authority._key, authority.certificate_pem)
    keys = {
        "foreign node": foreign.local("node1", "node1", Role.NODE),
        "foreign admin": foreign.local("admin", "admin", Role.ADMIN),
        "of another cluster": elsewhere.local("admin", "admin", Role.ADMIN),
    }
    return {"nothing": b""} | {who: each.cert_pem + each.key_pem for who, each in keys.items()}


def opened(port: int, chain: bytes, alpn: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLSocket:
    """A TLS connection. Raises OSError when the node does not want it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    if alpn:
        context.set_alpn_protocols([alpn])
    if chain:
        with tempfile.NamedTemporaryFile() as file:
            file.write(chain)
            file.flush()
            context.load_cert_chain(file.name)
    plain = socket.create_connection((HOST, port + 1))
    plain.settimeout(10)
    try:
        return context.wrap_socket(plain)
    except BaseException:
        plain.close()
        raise


def tls_answer(port: int, chain: bytes, alpn: str, talk: bytes) -> bytes:
    """What a node says to somebody who opens TLS like this and then says something."""
    try:
        stream = opened(port, chain, alpn)
    except OSError:
        return b""
    with stream:
        with contextlib.suppress(OSError):
            stream.sendall(talk)
        return said(stream)


PUT = msgspec.msgpack.encode({"type": "PUT", "hash": hashlib.sha256(b"x").hexdigest(), "size": 1})
TALK = len(PUT).to_bytes(4, "big") + PUT + b"x"


@pytest.mark.parametrize("who", ["nothing", "foreign node", "foreign admin", "of another cluster"])
@pytest.mark.parametrize("alpn", [tls.ALPN_PRESENT, tls.ALPN_BULK, "", "h2"])
def test_tls_without_a_certificate_of_the_cluster_gets_nothing(mesh: Mesh, unharmed: None, who: str, alpn: str):
    authority = authority_of(mesh.home)
    for node, port in control_ports(mesh).items():
        assert tls_answer(port, shown_by(authority)[who], alpn, TALK) == b"", node


def test_the_same_talk_with_a_certificate_is_answered(mesh: Mesh):
    """Shows that the tests above can fail."""
    client = identity(authority_of(mesh.home), Role.CLIENT)
    chain = client.cert_pem + client.key_pem
    for port in control_ports(mesh).values():
        assert len(tls_answer(port, chain, tls.ALPN_PRESENT, b"")) > 4
        assert len(tls_answer(port, chain, tls.ALPN_BULK, TALK)) > len(tls_answer(port, chain, tls.ALPN_BULK, b""))


def test_an_expired_certificate_is_as_good_as_none(mesh: Mesh, unharmed: None):
    authority = authority_of(mesh.home)
    keys = Keys.make()
    chain = authority.issue(keys.request_pem, "late", "late", Role.ADMIN, lifetime_s=-60) + keys.key_pem
    for port in control_ports(mesh).values():
        for alpn in (tls.ALPN_PRESENT, tls.ALPN_BULK):
            assert tls_answer(port, chain, alpn, TALK) == b""


def test_old_tls_is_not_spoken(mesh: Mesh, unharmed: None):
    for port in control_ports(mesh).values():
        for alpn in (tls.ALPN_PRESENT, tls.ALPN_BULK, tls.ALPN_JOIN):
            with pytest.raises(ssl.SSLError):
                opened(port, b"", alpn, ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize(
    "talk",
    [b"", os.urandom(512), (1 << 31).to_bytes(4, "big") + bytes(1 << 16), (100).to_bytes(4, "big") + bytes(100), TALK],
    ids=["silence", "garbage", "oversized", "malformed", "a request of the bulk protocol"],
)
def test_a_joiner_without_a_token_gets_the_greeting_and_at_most_a_refusal(mesh: Mesh, unharmed: None, talk: bytes):
    for port in control_ports(mesh).values():
        heard = tls_answer(port, b"", tls.ALPN_JOIN, talk)
        size = int.from_bytes(heard[:4], "big")
        opening = msgspec.msgpack.decode(heard[4 : 4 + size], type=joining.Opening)
        assert opening.cluster == "local"
        rest = heard[4 + size :]
        if rest:
            answer = msgspec.msgpack.decode(rest[4:])
            assert answer["reply"] is None
            assert answer["error"]


def test_many_half_handshakes_keep_nobody_out_for_long(mesh: Mesh, unharmed: None):
    """More of them than one source may have at once; they are cut by the handshake's time limit or at once."""
    _, port = next(iter(control_ports(mesh).items()))
    held = [socket.create_connection((HOST, port + 1)) for _ in range(64)]
    for connection in held:
        with contextlib.suppress(ConnectionError):
            connection.sendall(HALF_CLIENT_HELLO)
    assert list(mesh.cluster.map(abs, [-1, -2])) == [1, 2]  # who is in is not disturbed
    newcomer = identity(authority_of(mesh.home), Role.CLIENT)

    def let_in() -> bool:
        try:
            return present(HOST, port, newcomer).name in control_ports(mesh)
        except Exception:
            return False

    until(let_in, "a newcomer is let in", tls.HANDSHAKE_TIMEOUT_S * 3)
    for connection in held:
        connection.close()


# ---- bad messages of somebody who is in

MEMBER = Member("x", "x", HOST, 1, 1, machine.versions(), 1)


def framed(header: bytes) -> bytes:
    """A first frame with a header of these bytes, which need not be one."""
    return b"K\x02" + len(header).to_bytes(4, "little") + header


BAD_FRAMES: dict[str, list[bytes]] = {
    "empty": [b""],
    "garbage": [os.urandom(200)],
    "another wire version": [b"K\x63" + wire.encode(wire.Goodbye())[2:]],
    "truncated": [wire.encode(wire.SyncRequest(1))[:-1]],
    "unknown kind": [framed(msgspec.msgpack.encode({"type": "NO_SUCH"}))],
    "nested": [framed(b"\x91" * 100_000)],
    "too many frames": [wire.encode(wire.Goodbye())] * (wire.FRAMES_LIMIT + 1),
    "oversized": [wire.encode(wire.PutPart("0" * 64)), bytes(wire.MESSAGE_LIMIT_BYTES)],
    "integer too large": [framed(msgspec.msgpack.encode({"type": "SYNC_REQUEST", "view": "one"}))],
}
ODD_MESSAGES: dict[str, tuple[wire.Message, bytes]] = {
    "meant for a client": (wire.Welcome(MEMBER, {}), b""),
    "a view for a node": (wire.SyncData(1 << 60, [], {}), b""),
    "exec without its payload": (wire.Exec(1, "j", "j", [(0, 1)], 1, "f", "", [], Needs()), b""),
    "part without its bytes": (wire.PutPart("0" * 64), b""),
    "part under a false name": (wire.PutPart("../../x"), b"x"),
    "cancel of what is not there": (wire.Cancel([-1, 0, 1 << 60]), b""),
    "take back of what is not there": (TakeBack([-1, 0, 1 << 60]), b""),
    "exec of a huge priority": (wire.Exec(1, "j", "j", [(0, 1)], 1, "f", "", [], Needs(), priority=1 << 62), b"\x90"),
    "release of what is not there": (wire.Release([-1, 0, 1 << 60]), b""),
    "beat of what is not there": (wire.OwnerBeat(-1, [1 << 60], [JobSummary("j", "", "", -1, -1, -1, -1, 0.0)]), b""),
    "attempts of nobody": (wire.AttemptEnded("", [(-5, 3)], -1), b""),
    "waits for nothing": (wire.Waits("no.task.9x", 1, True), b""),
    "impossible process": (
        wire.Hello("i" * 16, machine.versions(), 1 << 62, machine.boot_id(), machine.pid_namespace()),
        b"",
    ),
    "negative process": (wire.Hello("n" * 16, machine.versions(), -1, machine.boot_id(), machine.pid_namespace()), b""),
}


def admitted(raw: zmq.Socket[bytes], port: int, who: Credentials) -> zmq.Socket[bytes]:
    node = present(HOST, port, who)
    raw.curve_publickey, raw.curve_secretkey, raw.curve_serverkey = (
        who.curve_public,
        who.curve_secret,
        node.curve_public,
    )
    raw.connect(f"tcp://{HOST}:{port}")
    return raw


def test_bad_frames_of_a_certified_peer_are_dropped_and_counted(mesh: Mesh, unharmed: None, sockets: Sockets):
    for node, port in control_ports(mesh).items():
        before = dropped(mesh, node)
        raw = admitted(sockets.make(), port, identity(authority_of(mesh.home), Role.ADMIN))
        for frames in BAD_FRAMES.values():
            raw.send_multipart(frames)
        until(lambda: dropped(mesh, node) >= before + len(BAD_FRAMES), f"{node} has counted them")  # noqa: B023
    assert sockets.silent()
    for raw in sockets.all:
        raw.send(wire.encode(wire.Request(1, wire.Jobs())))
        assert raw.poll(10_000), "a good message after the bad ones is answered"


@pytest.mark.parametrize("oddity", ODD_MESSAGES)
def test_odd_messages_of_a_certified_peer_change_nothing(mesh: Mesh, unharmed: None, oddity: str):
    message, payload = ODD_MESSAGES[oddity]

    async def say(port: int) -> None:
        async with Speaker(identity(authority_of(mesh.home), Role.ADMIN), HOST, port) as speaker:
            before = {m.id: m for m in (await speaker.members()).values()}
            speaker.say(message, payload)
            assert await speaker.members() == before

    for node, port in control_ports(mesh).items():
        log = mesh.home.path / f"clusters/local/run/{node}/log"
        before = log.stat().st_size
        asyncio.run(say(port))
        assert b"Traceback" not in log.read_bytes()[before:]


# ---- the files


def test_only_the_user_can_connect_to_a_node_by_path_and_nobody_to_its_workers(mesh: Mesh):
    """Workers have inherited socket pairs: there is no address for others to find."""
    mesh.cluster.submit(abs, -1).result()
    runs = mesh.home.path / "clusters/local/run"
    control = {runs / node / f"{HOST}:{port}.sock" for node, port in control_ports(mesh).items()}
    arenas = {runs / node / "arena/socket" for node in control_ports(mesh)}
    assert {path for path in mesh.home.path.rglob("*") if path.is_socket()} == control | arenas
    assert {stat.S_IMODE(path.stat().st_mode) for path in control} == {0o600}
    assert str(mesh.home.path) not in Path("/proc/net/unix").read_text()
    for node in control_ports(mesh):
        run = runs / node
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
        assert stat.S_IMODE((run / "spool").stat().st_mode) == 0o700


def test_private_files_are_the_users_own(mesh: Mesh):
    """Keys, state and sockets: nothing beneath KOS_HOME can be read by others."""

    def shared(path: Path) -> bool:
        return not path.is_symlink() and bool(path.stat().st_mode & 0o077)

    clusters = mesh.home.path / "clusters"
    # What lies beneath a 0700 folder is out of reach; keys are 0600 all the same.
    assert not shared(mesh.home.path)
    keys = [
        *clusters.rglob("key.pem"),
        *clusters.rglob("curve.json"),
        *clusters.rglob("*.key"),
        *clusters.rglob("*.sqlite"),
    ]
    assert len(keys) >= 9
    assert not [path for path in [*keys, mesh.home.path / "wrap.key"] if shared(path)]
