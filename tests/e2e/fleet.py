"""A cluster of several machines whose nodes can be killed, frozen, and started again, and what each says of itself.

Theory of operation. Each machine has a home of its own and runs one node. Questions go to the node that is named, over
a connection of the founding machine's user, who is an admin; a node that does not answer has said nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from kos_cluster.errors import KosError
from kos_cluster.home import ClusterHome, Home
from kos_cluster.net import wire
from kos_cluster.net.administration import ClusterStatus, Status
from kos_cluster.services import sweeping
from kos_cluster.tasks.asking import DECISION_TIMEOUT_S
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.mesh import Mesh
from tests.e2e.conftest import Machine, _until
from tests.e2e.network import Network
from tests.e2e.test_cluster import free_port

NAME = "lab"
LEASE_S = 600.0  # of locks: longer than any test
ASK_S = 2.0  # for a node to say where it stands

T = TypeVar("T")
until = _until


class Fleet:
    """Machines of one cluster, by the names of their nodes; the first one founds it.

    `network`: where each is a host of its own; without it all of them are on loopback.
    """

    def __init__(self, machines: dict[str, Machine], network: Network | None = None) -> None:
        self.machines = machines
        self._network = network
        self.founder, *others = machines
        self.address = self._listen(self.founder)
        founder = machines[self.founder]
        founder.ok("cluster", "create", NAME, "--listen", self.address, "--name", self.founder)
        self.cluster = connection(founder)
        tokens = {name: self.cluster.mint_token("node", 600.0) for name in others}
        side_by_side(lambda name: self._join(name, tokens[name]), others)
        self._names = {self.id(name): name for name in machines}
        self.settled()

    def add(self, name: str, machine: Machine) -> None:
        """A machine has joined whose node has this name."""
        self.machines[name] = machine
        self._names[self.id(name)] = name

    def _join(self, name: str, token: str) -> None:
        words = ("cluster", "join", NAME, self.address, "--listen", self._listen(name), "--name", name)
        self.machines[name].ok(*words, KOS_TOKEN=token)

    def _listen(self, name: str) -> str:
        host = self._network.address[name] if self._network is not None else "127.0.0.1"
        return f"{host}:{free_port()}"

    # ---- what the nodes say

    def ask(self, node: str, question: wire.Asked, kind: type[T], timeout_s: float = DECISION_TIMEOUT_S) -> T:
        return self.cluster._mesh.request(question, kind, node=node, timeout_s=timeout_s)

    def status(self, node: str) -> ClusterStatus | None:
        """What this node says of the agreement; None when it says nothing."""
        try:
            return self.ask(node, Status(), ClusterStatus, ASK_S)
        except KosError:
            return None

    def id(self, node: str) -> str:
        ready = home_of(self.machines[node]).ready(node)
        assert ready is not None, f"{node} does not run"
        return ready.id

    def coordinator(self, *nodes: str) -> str:
        """The name of the node that these (default: all) agree to be coordinating."""
        return self.agreed(*nodes)[0]

    def agreed(self, *nodes: str) -> tuple[str, int]:
        """Who coordinates, and in which term, once these (default: all) say the same: a majority has elected it."""
        return until(lambda: self._said(nodes or tuple(self.machines)), "they agree on a coordinator", 30.0)

    def successor(self, node: str) -> str:
        """The name of the node that all others agree to be coordinating in this one's place."""
        rest = tuple(name for name in self.machines if name != node)

        def successor() -> str:
            now = self._said(rest)
            return now[0] if now is not None and now[0] != node else ""

        return until(successor, f"another than {node} coordinates", 30.0)

    def _said(self, nodes: Sequence[str]) -> tuple[str, int] | None:
        said = [self.status(node) for node in nodes]
        leaders = {(status.coordinator, status.term) if status is not None else ("", 0) for status in said}
        id_, term = leaders.pop()
        return (self._names[id_], term) if not leaders and id_ in self._names else None

    def settled(self) -> str:
        """Wait until all nodes are alive in everybody's eyes, vote, and agree on who coordinates; its name."""
        until(lambda: all(self.alive(node) == set(self.machines) for node in self.machines), "all are alive", 40.0)
        until(lambda: self._voting() >= min(3, len(self.machines)), "there are enough voters", 30.0)
        return self.coordinator()

    def _voting(self) -> int:
        said = [status for node in self.machines if (status := self.status(node)) is not None]
        return min((len(status.voters) for status in said), default=0)

    def alive(self, node: str) -> set[str]:
        """The names of those that are alive in this node's view."""
        try:
            data = self.ask(node, wire.Nodes(), wire.SyncData, ASK_S)
        except KosError:
            return set()
        return {member.name for member in data.members or [] if member.state.value == "alive"}

    # ---- what is done to them

    def pid(self, node: str) -> int:
        ready = home_of(self.machines[node]).ready(node)
        assert ready is not None, f"{node} does not run"
        return ready.pid

    def kill(self, *nodes: str) -> None:
        """SIGKILL, all at once; return when they are gone."""
        processes = [psutil.Process(self.pid(node)) for node in nodes]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)

    def freeze(self, node: str) -> None:
        os.kill(self.pid(node), signal.SIGSTOP)
        until(lambda: psutil.Process(self.pid(node)).status() == psutil.STATUS_STOPPED, f"{node} stands still")

    def thaw(self, node: str) -> None:
        os.kill(self.pid(node), signal.SIGCONT)

    @contextlib.contextmanager
    def apart(self, node: str) -> Iterator[None]:
        """Its host and the others hear nothing of each other; who asks from here reaches all of them."""
        assert self._network is not None, "all of them are on loopback"
        self._network.deafen(node)
        self._network.silence(node)
        try:
            yield
        finally:
            self._network.hear_again(node)
            self._network.hear(node)

    def start(self, *nodes: str) -> None:
        side_by_side(lambda name: self.machines[name].ok("up"), nodes)

    def stop(self, node: str) -> None:
        self.machines[node].ok("down")

    def heal(self) -> str:
        """Everything runs again and agrees; who coordinates."""
        running = {name: sweeping.alive(home_of(machine), name) for name, machine in self.machines.items()}
        for name, ready in running.items():
            if ready is not None:
                self.thaw(name)
        self.start(*(name for name, ready in running.items() if ready is None))
        return self.settled()

    def end(self) -> None:
        self.cluster.close()
        for machine in self.machines.values():
            for pid in machine.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            machine.end()


def home_of(machine: Machine) -> ClusterHome:
    return ClusterHome(Home(machine.home), NAME)


def connection(machine: Machine) -> Cluster:
    """A connection of this machine's user, made in this process."""
    mesh = Mesh(home_of(machine))
    mesh.start()
    return Cluster(mesh)


def side_by_side(do: Callable[[str], Any], names: Sequence[str]) -> None:
    """Do it for each of these at the same time. Raises the first that fails."""
    failures: list[BaseException] = []

    def one(name: str) -> None:
        try:
            do(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class SmallDisk:
    """A tmpfs of its own over a machine's home."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        words = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
        subprocess.run(words, check=True, capture_output=True, text=True)

    def fill(self) -> None:
        """Leave no byte free."""
        with open(self.folder / "filling", "ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        (self.folder / "filling").unlink()

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)
