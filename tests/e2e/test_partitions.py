"""Hosts that cannot reach each other, both ways or one way: who is in the majority goes on, who is not says so, and
all agree again when the network is whole.

The hosts are network namespaces joined by a bridge. They are cut off by taking them from the bridge, or made deaf by a
rule of their own that drops what comes from others; in both cases no connection is told.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kos_cluster import errors
from tests.e2e.conftest import Machine, _until
from tests.e2e.fleet import side_by_side
from tests.e2e.network import Network, network_of

until = _until
HOSTS = ("n1", "n2", "n3")
WORK = "echo begun; while [ ! -e '{}' ]; do sleep 0.05; done; echo ended"
# A program that is cut off with its host while what it has submitted runs on all of them.
PROGRAM = """
import os, sys, time
import kos_cluster as kos
def work(number, go=sys.argv[1]):
    while not os.path.exists(go):
        time.sleep(0.05)
    return number
def where(_):
    time.sleep(0.2)
    return os.environ["KOS_NODE"]
cluster = kos.connect()
while len([node for node in cluster.nodes() if node["state"] == "alive"]) < 3:
    time.sleep(0.05)
futures, settled = cluster.map(work, range(12)).futures, []
for future in futures:
    future.add_done_callback(settled.append)
while len({node["name"] for node in cluster.nodes() if node["running"]}) < 3:
    time.sleep(0.05)
print("begun", flush=True)
print(cluster.gather(futures) == list(range(12)), len(settled), flush=True)
while len(set(cluster.map(where, range(12)))) < 3:
    pass
print("all hosts work for it again", flush=True)
"""
STATUS_WITHIN_S = 1.8  # more than without a partition
HEALED_S = 40.0  # for all to agree again, on a machine that is busy


# A program on a host that tells, for each line it reads, what that host's node says.
WITNESS = """
import json, sys
from kos_cluster.errors import KosError
from kos_cluster.home import Home
from kos_cluster.net import wire
from kos_cluster.tasks.mesh import Mesh
mesh = Mesh(Home().cluster("lab"))
mesh.start()
for line in sys.stdin:
    try:
        said = mesh.request(wire.Nodes(), wire.SyncData, node=sys.argv[1])
    except KosError:
        print("[[], [], null]", flush=True)
        continue
    names = {member.id: member.name for member in said.members}
    alive = [member.name for member in said.members if member.state.value == "alive"]
    print(json.dumps([alive, [names.get(id) for id in said.voters], names.get(said.coordinator)]), flush=True)
"""


class Host:
    """A machine with a node of the cluster, and what that node says."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.name = name
        self.machine = machine
        self._witness = machine.popen([sys.executable, "-c", WITNESS, name], stdin=subprocess.PIPE)

    def status_s(self, answering: int, limit_s: float = HEALED_S) -> float:
        """Wait until `kos status` tells here of so many nodes that answer, within this time; how long it took."""

        def soon() -> float:
            began_s = time.monotonic()
            said = self.machine.json("status")
            took_s = time.monotonic() - began_s
            return took_s if said["alive"] - len(said["silent"]) == answering and took_s < limit_s else 0.0

        return float(until(soon, f"{answering} answer, and that is told soon", HEALED_S))

    def says(self) -> tuple[set[str], set[str], str | None]:
        """Who is alive, who votes, and who coordinates."""
        self._witness.stdin.write("\n")
        self._witness.stdin.flush()
        alive, voters, coordinator = json.loads(self._witness.stdout.readline())
        return set(alive), set(voters), coordinator

    def end(self) -> None:
        self._witness.kill()
        self._witness.communicate()
        self.machine.end()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with network_of(HOSTS) as made:
        yield made


@pytest.fixture(scope="module")
def hosts(network: Network, machine_of: Callable[..., Machine]) -> Iterator[dict[str, Host]]:
    """A cluster of the three, each of which votes; its user is an admin on each host."""
    made = {name: machine_of(*network.prefix(name)) for name in HOSTS}
    founder, *others = HOSTS
    made[founder].ok(
        *("cluster", "create", "lab", "--listen", network.address[founder], "--name", founder, "--profile", "fast")
    )
    tokens = {name: made[founder].ok("cluster", "token").strip() for name in others}
    side_by_side(
        lambda name: made[name].ok(
            *("cluster", "join", "lab", network.address[founder], "--listen", network.address[name], "--name", name),
            KOS_TOKEN=tokens[name],
        ),
        others,
    )
    for name in others:  # its user is the same on all of them
        shutil.copytree(client(made[founder]), client(made[name]), dirs_exist_ok=True)
    known = {name: Host(name, machine) for name, machine in made.items()}
    yield known
    for host in known.values():
        host.end()


def client(machine: Machine) -> Path:
    return machine.home / "clusters" / "lab" / "client"


def agreed(hosts: dict[str, Host]) -> str:
    """Wait until all see all alive and voting, and the same coordinator; its name."""

    def same() -> str | None:
        said = [host.says() for host in hosts.values()]
        coordinators = {coordinator for _, _, coordinator in said}
        whole = all(alive == voters == set(HOSTS) for alive, voters, _ in said)
        return coordinators.pop() if whole and len(coordinators) == 1 else None

    return str(until(same, "all agree", HEALED_S))


def healed(hosts: dict[str, Host]) -> str:
    """As `agreed`, of a network that is whole again; tells how long that took."""
    began_s = time.monotonic()
    coordinator = agreed(hosts)
    print(f"all agreed {time.monotonic() - began_s:.1f} s after the network was whole again")
    return coordinator


def successor(host: Host, of: str) -> str:
    """Wait until this host sees another coordinate; its name."""
    return str(until(lambda: (now := host.says()[2]) != of and now, f"another than {of} coordinates", HEALED_S))


def refused(token: subprocess.Popen[str]) -> str:
    """Nothing could be decided where this token was asked for; what was said."""
    said, complaint = token.communicate(timeout=HEALED_S)
    assert (token.returncode, said) == (errors.UnreachableError.exit_code, ""), complaint
    return complaint


def test_a_coordinator_that_is_cut_off_decides_nothing_and_comes_back(network: Network, hosts: dict[str, Host]) -> None:
    """The majority goes on, and no work of it is lost, also when both sides hear what the other held to be dead.

    What was submitted on the host that is cut off completes, and its program goes on with all hosts.
    """
    first = agreed(hosts)
    majority, third = (name for name in HOSTS if name != first)
    end_it = hosts[majority].machine.home / "end it"
    work = hosts[majority].machine.start("run", "--on", third, "sh", "-c", WORK.format(end_it))
    assert work.stdout.readline() == "begun\n"
    program = hosts[first].machine.popen([sys.executable, "-c", PROGRAM, str(end_it)])
    assert program.stdout.readline() == "begun\n"
    usual_s = hosts[majority].status_s(3)
    network.cut_off(first)
    try:
        token = hosts[first].machine.start("cluster", "token")
        hosts[majority].status_s(2, usual_s + STATUS_WITHIN_S)
        hosts[first].status_s(1, usual_s + STATUS_WITHIN_S)
        second = successor(hosts[majority], first)
        assert hosts[majority].machine.ok("cluster", "token").startswith("KOS1.")
        until(lambda: hosts[first].says()[0] == {first}, "it sees nobody else", HEALED_S)
        status = hosts[first].machine.ok("cluster", "status")
        assert "3 voters, 1 taking part, 2 needed: nothing can be agreed on until 1 more does" in status
        assert "2 of its 3 voters must agree, and only 1 can be reached" in refused(token)
    finally:
        network.join_again(first)
    assert healed(hosts) == second
    assert hosts[first].machine.ok("cluster", "token").startswith("KOS1.")
    end_it.touch()
    said, complaints = work.communicate(timeout=HEALED_S)
    assert (work.returncode, said) == (0, "ended\n"), complaints
    said, complaints = program.communicate(timeout=HEALED_S)
    assert (program.returncode, said) == (0, "True 12\nall hosts work for it again\n"), complaints


def test_a_coordinator_that_is_deaf_steps_down_and_comes_back(network: Network, hosts: dict[str, Host]) -> None:
    first = agreed(hosts)
    majority, third = (name for name in HOSTS if name != first)
    network.deafen(first)
    try:
        second = successor(hosts[majority], first)
        until(lambda: hosts[first].says()[2] is None, "it steps down")
        until(lambda: hosts[first].says()[0] == {first}, "it sees nobody else", HEALED_S)
        assert [hosts[name].says()[2] for name in (majority, third)] == [second] * 2, (
            "whom nobody answers unseats nobody"
        )
        assert hosts[majority].machine.ok("cluster", "token").startswith("KOS1.")
    finally:
        network.hear_again(first)
    healed(hosts)
    assert hosts[first].machine.ok("cluster", "token").startswith("KOS1.")


def test_a_follower_that_is_deaf_then_mute_unseats_nobody_and_comes_back(
    network: Network, hosts: dict[str, Host]
) -> None:
    """The majority goes on under the same coordinator, also when the other hears it, or is heard by it."""
    first = agreed(hosts)
    follower = next(name for name in HOSTS if name != first)
    network.deafen(follower)
    try:
        deaf = hosts[follower].machine.start("cluster", "token")
        goes_on(first, follower, hosts)
        network.silence(follower)
    finally:
        network.hear_again(follower)
    try:
        mute = hosts[follower].machine.start("cluster", "token")
        goes_on(first, follower, hosts)
        refused(deaf)
        refused(mute)
    finally:
        network.hear(follower)
    assert healed(hosts) == first
    assert hosts[follower].machine.ok("cluster", "token").startswith("KOS1.")


def goes_on(first: str, without: str, hosts: dict[str, Host]) -> None:
    """The majority holds the other dead, and decides under the same coordinator."""
    rest = {name for name in HOSTS if name != without}
    until(lambda: all(hosts[name].says()[0] == rest for name in rest), "it is dead", HEALED_S)
    assert {hosts[name].says()[2] for name in rest} == {first}
    assert hosts[min(rest - {first})].machine.ok("cluster", "token").startswith("KOS1.")
