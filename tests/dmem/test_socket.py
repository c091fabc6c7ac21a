"""Processes at the arena's socket: writing, reading without a copy, spilling and back, and every sudden end."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kos_cluster.dmem import protocol
from kos_cluster.dmem import serving as serving_module
from kos_cluster.dmem.attached import Attached
from kos_cluster.dmem.segments import Segment
from kos_cluster.dmem.serving import Serving
from kos_cluster.dmem.store import BlockStore
from kos_cluster.errors import ArenaFullError, BlockLostError, UnreachableError, UsageError
from kos_cluster.net import unixsockets
from tests.dmem.conftest import MIB, WAIT_S, Served, until


def name() -> str:
    return secrets.token_hex(16)


def test_what_one_writes_another_reads_where_it_is(served: Served) -> None:
    block, content = name(), os.urandom(MIB)
    served.put(block, content)
    mapping = served.another().read(block)
    view = memoryview(mapping)
    assert view == content and view.readonly
    assert served.usage().held_bytes == MIB


def test_it_is_held_until_its_last_view_is_gone(served: Served) -> None:
    block = name()
    served.put(block, b"x" * MIB)
    view = memoryview(served.attach().read(block))[10:20]
    served.call(lambda: served.store.drop([block], ("alice", "1")))
    assert served.usage().used_bytes == MIB, "nobody keeps it, but it is held"
    assert view == b"x" * 10
    del view
    gc.collect()
    until(lambda: served.usage().used_bytes == 0, "it was released")


def test_a_block_that_is_not_there_or_not_sealed_is_not_read(served: Served) -> None:
    with pytest.raises(BlockLostError, match="Node n1 has no block"):
        served.attach().read(name())


def test_the_oldest_is_spilled_and_read_back_by_whoever_asks(served: Served) -> None:
    content = {name(): os.urandom(MIB) for _ in range(8)}
    for block, data in content.items():
        served.put(block, data)
    usage = served.usage()
    assert (usage.used_bytes, usage.spilled_bytes, usage.blocks) == (4 * MIB, 4 * MIB, 8)
    for block, data in content.items():
        assert served.attach().read(block)[:] == data
    gc.collect()
    assert served.usage().used_bytes <= 4 * MIB


def test_a_full_arena_refuses_with_the_sum_and_what_to_do(served: Served) -> None:
    for _ in range(3):
        served.put(name(), bytes(MIB), pin=True)
    with pytest.raises(ArenaFullError) as refused:
        served.attach().write(name(), [bytes(2 * MIB)])
    assert "The arena of node n1 has no room: 2.0 MiB are wanted and 1.0 MiB of 4.0 MiB are free" in str(refused.value)
    assert "kos mem status" in refused.value.hint
    served.attach().write(name(), [bytes(MIB)])


def test_a_name_is_taken_once_and_a_size_is_something(served: Served) -> None:
    block = name()
    served.put(block, b"x")
    with pytest.raises(UsageError, match="already"):
        served.attach().write(block, [b"y"])
    with pytest.raises(UsageError, match="at least one byte"):
        served.attach().write(name(), [])


def test_a_defect_in_the_node_lets_nobody_wait_for_ever(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    reported: list[BaseException | None] = []
    loop = served.store._loop
    loop.call_soon_threadsafe(loop.set_exception_handler, lambda _, told: reported.append(told.get("exception")))
    monkeypatch.setattr(served.store, "create", fail)
    with pytest.raises(UnreachableError):
        served.another().write(name(), [b"x"])
    gc.collect()
    until(lambda: [type(each) for each in reported] == [ZeroDivisionError], "the loop has reported it")


PROGRAM = """
import os, signal, sys
from pathlib import Path
from kos_cluster.dmem.attached import attached
from kos_cluster.dmem import protocol
here = attached(Path(sys.argv[1]))
mode, block = sys.argv[2:]
if mode == "reads":
    mapping = here.read(block)
elif mode == "writes":
    here._given(block, lambda serial: protocol.Create(serial, block, 1 << 20))
elif mode == "forks":
    mapping = here.read(block)
    child = os.fork()
    if child == 0:
        signal.pause()
    print(child, flush=True)
print("ready", flush=True)
signal.pause()
"""


def program(served: Served, mode: str, block: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(served.folder), mode, block], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("mode", ["reads", "writes"])
def test_a_process_that_is_killed_has_released_all(served: Served, mode: str) -> None:
    block = name()
    if mode == "reads":
        served.put(block, bytes(MIB))
    with program(served, mode, block) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        assert served.usage().held_bytes == MIB
        other.kill()
    until(lambda: served.usage().held_bytes == 0, "what it held is released")
    assert served.usage().blocks == (1 if mode == "reads" else 0)


def test_a_fork_of_a_process_that_ended_does_not_go_on_holding_for_it(served: Served) -> None:
    block = name()
    served.put(block, bytes(MIB))
    with program(served, "forks", block) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        try:
            other.kill()
            other.wait()
            until(lambda: served.usage().held_bytes == 0, "what it held is released, though its fork lives")
        finally:
            os.kill(child, signal.SIGKILL)


def test_an_interrupt_in_the_middle_of_a_request_confuses_nobody(served: Served) -> None:
    block, content = name(), os.urandom(MIB)
    served.put(block, content)
    here = served.attach()

    class Interrupted(BaseException):
        pass

    def interrupt(serial: int) -> tuple[protocol.FromArena, list[int]]:
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(here, "_answer", interrupt)
        with pytest.raises(Interrupted):
            here.read(block)
    mapping = here.read(block)
    assert mapping[:] == content
    del mapping
    gc.collect()
    until(lambda: served.usage().held_bytes == 0, "also what the first request was given is released")


def test_many_threads_of_one_process(served: Served) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        content = {name(): os.urandom(MIB // 2) for _ in range(2)}
        try:
            for block, data in content.items():
                served.put(block, data)
            for block, data in 5 * list(content.items()):
                assert served.attach().read(block)[:] == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]  # together more than there is memory
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    gc.collect()
    until(lambda: served.usage().held_bytes == 0, "all is released")


def test_what_is_no_message_ends_the_connection_and_only_that(served: Served) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stream:
        stream.connect(str(served.folder / protocol.SOCKET))
        stream.send(b"\xff\xff")
        assert stream.recv(100) == b""
    served.put(name(), b"x")


def test_another_user_is_sent_away_and_so_is_one_too_many(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(serving_module.os, "getuid", lambda: os.geteuid() + 1)
        with pytest.raises(UnreachableError, match="is gone"):
            served.another().read(name())
    assert f"Process {os.getpid()} was sent away from the arena, as it is of another user" in caplog.text
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(serving_module, "CONNECTIONS_LIMIT", 1)
        served.put(name(), b"x")
        with pytest.raises(UnreachableError, match="is gone"):
            served.another().read(name())
    assert f"Process {os.getpid()} was sent away from the arena, which has 1 already" in caplog.text


class NoDescriptors:
    """A listening socket of a process that has no descriptor left, so often."""

    def __init__(self, listening: socket.socket, times: int) -> None:
        self._listening, self._times = listening, times
        self.tried = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.tried += 1
        if self.tried <= self._times:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listening.accept()

    def fileno(self) -> int:
        return self._listening.fileno()

    def close(self) -> None:
        self._listening.close()


@pytest.mark.parametrize(("pause_s", "tries"), [(3600.0, 1), (0.001, 4)])
def test_without_descriptors_the_arena_pauses_before_it_accepts_again(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, pause_s: float, tries: int
) -> None:
    monkeypatch.setattr(unixsockets, "ACCEPT_PAUSE_S", pause_s)

    async def obtain(*_: object) -> Segment:
        raise AssertionError("nobody asks")

    async def scene() -> None:
        store = BlockStore("n1", short_folder / "arena", MIB, 0, 1)
        serving = Serving("id of n1", store, obtain)
        monkeypatch.setattr(serving, "_listening", NoDescriptors(serving._listening, 3))
        with unixsockets.connect(store.folder / protocol.SOCKET, kind=socket.SOCK_SEQPACKET):
            async with asyncio.timeout(WAIT_S):
                while serving._listening.tried < tries:
                    await asyncio.sleep(0)
            for _ in range(20):  # turns of the loop, each of which would try again
                await asyncio.sleep(0)
            assert serving._listening.tried == tries
            assert len(serving._connections) == (tries == 4)
        serving.close()
        store.close()

    asyncio.run(scene())


def test_an_arena_that_is_gone_is_an_error_and_mapped_blocks_stay(served: Served) -> None:
    block = name()
    served.put(block, b"still here")
    mapping = served.attach().read(block)
    served.stop()
    assert mapping[:] == b"still here"
    assert not served.folder.exists()
    with pytest.raises(UnreachableError, match="cannot be reached"):
        Attached(served.folder)
    del mapping
    gc.collect()


def test_an_arena_that_was_started_anew_is_met_by_a_new_connection(served: Served) -> None:
    served.put(name(), b"x")
    known = served.attach()
    served.stop(keep_connections=True)
    anew = Served(served.folder, 4, 8)
    try:
        block = name()
        anew.put(block, b"y")
        assert anew.attach() is not known and anew.attach().read(block)[:] == b"y"
    finally:
        anew.stop()


def test_the_socket_lies_where_nobody_else_can_go(served: Served) -> None:
    assert Path(served.folder).stat().st_mode & 0o777 == 0o700
