"""An arena shares its sealed blocks with another node's: the same pages, and only what is what it should be."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from kos_cluster.dmem import protocol, sharing
from kos_cluster.dmem.segments import write_all
from kos_cluster.dmem.sharing import shared
from kos_cluster.errors import ArenaFullError, BlockLostError, KosError, ProtocolError, UnreachableError
from kos_cluster.net import unixsockets
from tests.dmem.conftest import MIB, OWNER, WAIT_S, Served, until

BLOCK = "0" * 32
SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def test_both_have_the_same_pages_and_it_is_held_until_the_other_has_it_in_its_books(
    served: Served, short_folder: Path
) -> None:
    second = Served(short_folder / "second", 4, 0)
    block, content, holder = secrets.token_hex(16), os.urandom(MIB), 1000
    served.put(block, content)
    try:
        with shared(served.folder, block) as (segment, keepers):
            assert keepers == [OWNER] and not os.get_inheritable(segment.fd)
            assert served.usage().held_bytes == MIB
            second.wait_for(lambda: second.store.adopt(block, segment, holder))
        until(lambda: served.usage().held_bytes == 0, "it is released")
        second.call(lambda: second.store.seal(block, holder))
        assert second.usage().used_bytes == second.usage().held_bytes == MIB, "it counts in full here, too"
        ours = second.attach()._given(block, lambda serial: protocol.Hold(serial, block))
        theirs = served.attach()._given(block, lambda serial: protocol.Hold(serial, block))
        assert inode(ours.fd) == inode(theirs.fd)
        theirs.close()
        served.stop()
        with ours.map() as mapping:
            assert mapping[:] == content, "also when the other has ended"
        ours.close()
    finally:
        second.stop()


def test_what_is_not_here_or_not_sealed_or_has_no_room_is_not_shared(served: Served) -> None:
    with pytest.raises(BlockLostError, match="Node n1 has no block"), shared(served.folder, BLOCK):
        pass
    writing = served.attach()._given(BLOCK, lambda serial: protocol.Create(serial, BLOCK, MIB))
    with pytest.raises(BlockLostError, match="Node n1 has no block"), shared(served.folder, BLOCK):
        pass
    writing.close()
    served.attach().release(BLOCK)
    spilled = secrets.token_hex(16)
    served.put(spilled, bytes(MIB))
    for _ in range(4):
        served.put(secrets.token_hex(16), bytes(MIB), pin=True)
    with pytest.raises(ArenaFullError, match="has no room"), shared(served.folder, spilled):
        pass


def test_what_was_spilled_is_read_back_and_shared(served: Served) -> None:
    content = {secrets.token_hex(16): os.urandom(MIB) for _ in range(6)}
    for block, data in content.items():
        served.put(block, data)
    for block, data in content.items():
        with shared(served.folder, block) as (segment, _), segment.map() as mapping:
            assert mapping[:] == data
        segment.close()


def test_only_so_many_keepers_are_told(served: Served) -> None:
    served.put(BLOCK, b"x")
    for number in range(500):
        served.call(lambda number=number: served.store.keep(BLOCK, (f"{number:064}", f"{number:064}")))
    with shared(served.folder, BLOCK) as (segment, keepers):
        assert len(keepers) == protocol.KEEPERS_LIMIT
    segment.close()


# ---- whoever else answers


def sealed(size: int = MIB, seals: int = SEALED) -> int:
    fd = os.memfd_create("any", os.MFD_ALLOW_SEALING)
    write_all(fd, [bytes(size)])
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def with_holes() -> int:
    fd = os.memfd_create("any", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALED)
    return fd


def plain_file() -> int:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
    write_all(fd, [bytes(MIB)])
    return fd


GIVEN = {
    "not sealed": lambda: [sealed(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)],
    "can be written": lambda: [sealed(seals=SEALED & ~fcntl.F_SEAL_WRITE)],
    "shorter": lambda: [sealed(MIB - 1)],
    "longer": lambda: [sealed(MIB + 1)],
    "with holes": lambda: [with_holes()],
    "a file": lambda: [plain_file()],
    "a pipe": lambda: list(os.pipe())[:1],
    "nothing": list,
}


@contextmanager
def answering(folder: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something that is at the socket in place of an arena."""
    folder.mkdir()
    listening = unixsockets.listen(folder / protocol.SOCKET, kind=socket.SOCK_SEQPACKET)
    listening.settimeout(WAIT_S)

    def run() -> None:
        stream, _ = listening.accept()
        with stream:
            stream.settimeout(WAIT_S)
            stream.recv(protocol.PACKET_LIMIT_BYTES)
            answer(stream)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(WAIT_S)
        listening.close()


def packet(size: int) -> bytes:
    return msgspec.msgpack.encode(protocol.Shared(0, size, []))


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN.keys())
def test_a_descriptor_of_anything_else_than_a_whole_sealed_segment_is_refused_and_closed(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, given: Callable[[], list[int]]
) -> None:
    monkeypatch.chdir(short_folder)

    def answer(stream: socket.socket) -> None:
        descriptors = given()
        socket.send_fds(stream, [packet(MIB)], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    folder = short_folder / "arena"
    with answering(folder, answer), pytest.raises(ProtocolError, match="descriptor"), shared(folder, BLOCK):
        pass
    assert not [fd for fd in os.listdir("/proc/self/fd") if names_memory(fd)]


def names_memory(fd: str) -> bool:
    try:
        return "memfd:any" in os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "answer",
    [
        lambda stream: None,
        lambda stream: stream.send(b"\xff\xff"),
        lambda stream: stream.send(msgspec.msgpack.encode(protocol.Refused(0, "NoSuchError", "no", ""))),
    ],
    ids=["it hangs up", "no message", "an error of a later version"],
)
def test_who_speaks_otherwise_than_an_arena_gives_nothing(
    short_folder: Path, answer: Callable[[socket.socket], None]
) -> None:
    with answering(short_folder / "arena", answer), pytest.raises(KosError), shared(short_folder / "arena", BLOCK):
        pass


def test_who_does_not_answer_is_given_up(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "ANSWER_TIMEOUT_S", 0.05)
    given_up = threading.Event()
    with answering(short_folder / "arena", lambda stream: given_up.wait(WAIT_S) and None):
        with pytest.raises(UnreachableError, match="does not answer"), shared(short_folder / "arena", BLOCK):
            pass
        given_up.set()


def test_where_there_is_no_arena_or_anothers_nothing_is_asked(
    served: Served, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnreachableError, match="There is no arena"), shared(short_folder / "elsewhere", BLOCK):
        pass
    monkeypatch.setattr(sharing.unixsockets, "peer_of", lambda stream: (1, os.getuid() + 1))
    with pytest.raises(UnreachableError, match="of another user"), shared(served.folder, BLOCK):
        pass
