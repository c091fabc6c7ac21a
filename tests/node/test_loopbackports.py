"""A node's ends of tunnels to its loopback: which ports there are, and how many at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from kos_cluster.errors import LimitError, StateError, UsageError
from kos_cluster.node import loopbackports
from kos_cluster.node.loopbackports import LoopbackPorts


def test_only_so_many_at_once_and_those_that_are_over_do_not_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loopbackports, "TUNNELS_LIMIT", 2)
    ports = LoopbackPorts()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        ends = [ports.tunnel(port) for _ in range(2)]
        with pytest.raises(LimitError, match="2 tunnels to its loopback"):
            ports.tunnel(port)
        ends.pop().close()
        ends.append(ports.tunnel(port))
        for end in ends:
            end.close()


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_refused(port: int):
    with pytest.raises(UsageError, match=f"There is no port {port}"):
        LoopbackPorts().tunnel(port)


def test_a_port_on_which_nothing_listens_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(StateError, match=f"Nothing answers on port {port} of the node's loopback"):
        LoopbackPorts().tunnel(port)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user as well")
def test_what_another_user_has_listening_there_is_refused():
    """As who took the port of an engine that has ended would have."""
    code = "import os, socket; os.setuid(65534); s = socket.create_server(('127.0.0.1', 0)); "
    code += "print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        port = int(other.stdout.readline())
        with pytest.raises(StateError, match=f"What listens on port {port} of the node's loopback is another user's"):
            LoopbackPorts().tunnel(port)
        other.stdin.close()
