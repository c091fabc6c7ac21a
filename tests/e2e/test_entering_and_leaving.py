"""Getting into a cluster by hand, and out of it: the token's prompt, strangers at an address, leaving in any state."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.e2e.conftest import KOS
from tests.e2e.test_cluster import Lab, free_port

TYPED_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def lab(machine_of: Callable[..., Any]) -> Iterator[Lab]:
    founder = machine_of()
    yield Lab(founder)
    founder.ok("down")
    founder.end()


class Terminal:
    """A command typed at a real terminal."""

    def __init__(self, machine: Any, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [KOS, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=machine.environ,
            cwd=machine.work,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def until(self, text: str) -> None:
        """Read until the terminal shows this."""
        deadline = time.monotonic() + TYPED_WITHIN_S
        while text not in self.shown:
            assert self._read(deadline), f"{text!r} was not shown: {self.shown!r}"

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + TYPED_WITHIN_S
        while self._read(deadline):
            pass
        os.close(self._ours)
        return self._process.wait(TYPED_WITHIN_S)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        try:
            data = os.read(self._ours, 4096) if ready else b""
        except OSError:  # the last process has closed it
            data = b""
        self.shown += data.decode()
        return bool(data)


# ---- the prompt


def test_a_token_is_asked_for_at_a_terminal_and_not_shown(lab: Lab, machine: Any) -> None:
    token = lab.token("--role", "client")
    terminal = Terminal(machine, "cluster", "join", "lab", lab.address)
    terminal.until("Join token: ")
    terminal.type(f"{token}\n")
    assert terminal.end() == 0, terminal.shown
    assert "Joined cluster 'lab' as client" in terminal.shown
    assert "KOS1." not in terminal.shown
    assert machine.json("status")["role"] == "client"


@pytest.mark.parametrize("typed", ["\n", "\x04"], ids=["enter", "Ctrl-D"])
def test_no_token_at_the_prompt_is_a_sentence(typed: str, lab: Lab, machine: Any) -> None:
    terminal = Terminal(machine, "cluster", "join", "lab", lab.address)
    terminal.until("Join token: ")
    terminal.type(typed)
    assert terminal.end() == 2, terminal.shown
    assert "\nkos: The join token is empty." in terminal.shown.replace("\r", "")


def test_an_interrupt_at_the_prompt_is_130(lab: Lab, machine: Any) -> None:
    terminal = Terminal(machine, "cluster", "join", "lab", lab.address)
    terminal.until("Join token: ")
    os.kill(terminal._process.pid, signal.SIGINT)
    assert terminal.end() == 130
    assert "kos: interrupted." in terminal.shown


# ---- an address where something else listens


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x15\x03\x03\x00\x02\x02\x28"])
def test_what_is_no_kos_node_is_said_with_the_address_that_was_typed(answer: bytes, lab: Lab, machine: Any) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port + 1)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = machine.kos("cluster", "join", "lab", f"127.0.0.1:{port}", "--token", lab.token())
        thread.join()
    assert done.returncode in (4, 6), done.stderr
    assert f"127.0.0.1:{port} " in done.stderr
    assert "_ssl.c" not in done.stderr
    assert not (machine.home / "clusters").exists() or not os.listdir(machine.home / "clusters")


# ---- leaving


def test_the_founder_may_leave_and_the_last_node_ends_the_cluster(
    machine_of: Callable[..., Any], until: Callable[..., Any]
) -> None:
    founder, node, client = machine_of(), machine_of(), machine_of()
    lab = Lab(founder)
    listen = f"127.0.0.1:{free_port()}"
    node.ok("cluster", "join", "lab", lab.address, "--listen", listen, "--name", "n2", "--token", lab.token())
    only = founder.kos("cluster", "leave")
    assert (only.returncode, "The cluster's only admin is on this machine" in only.stderr) == (16, True)
    client.ok("cluster", "join", "lab", lab.address, "--token", lab.token("--role", "admin"))

    founder.ok("cluster", "leave")
    assert founder.processes() == []
    rows = until(lambda: {row["name"]: row for row in node.json("nodes")}, "the other node answers")
    assert (rows["desk"]["state"], rows["n2"]["coordinator"]) == ("left", True)
    # What the founder kept, the other has now: the authority's key, tokens, the right to decide.
    late = machine_of()
    late.ok("cluster", "join", "lab", listen, "--token", client.ok("cluster", "token", "--role", "client").strip())
    late.ok("run", "true")

    left = node.kos("cluster", "leave")
    assert (left.returncode, "the cluster has ended" in left.stderr) == (0, True)
    assert node.processes() == []
    alone = client.kos("run", "true")
    assert (alone.returncode, "'kos cluster leave' here" in alone.stderr) == (4, True)
    client.ok("cluster", "leave")
    assert client.kos("nodes").returncode == 3


def test_a_machine_that_lost_its_credentials_is_told_what_to_type_and_can_leave(lab: Lab, machine: Any) -> None:
    machine.ok("cluster", "join", "lab", lab.address, "--token", lab.token("--role", "client"))
    folder = machine.home / "clusters" / "lab" / "client"
    (folder / "key.pem").write_text("damaged")
    done = machine.kos("nodes")
    assert done.returncode == 16
    assert str(folder) in done.stderr
    assert "kos cluster leave" in done.stderr
    machine.ok("cluster", "leave")
    machine.ok("cluster", "join", "lab", lab.address, "--token", lab.token("--role", "client"))
    machine.ok("nodes")


def test_an_observer_is_told_that_it_may_not_cancel(lab: Lab, machine: Any, until: Callable[..., Any]) -> None:
    machine.ok("cluster", "join", "lab", lab.address, "--token", lab.token("--role", "observer"))
    typed = lab.founder.start("run", "sleep", "300")
    try:
        (job,) = until(lambda: machine.json("ps"), "the job is listed")
        done = machine.kos("cancel", job["job"])
        assert done.returncode == 6
        assert "observer" in done.stderr
        assert "may not cancel work" in done.stderr
        assert "kos cluster token --role" in done.stderr
        assert typed.poll() is None
    finally:
        typed.send_signal(signal.SIGINT)
        typed.communicate(timeout=20)
