"""Hosts that cannot reach each other, both ways or one way: who is in the majority goes on, who is not says so, and
all agree again when the network is whole.

The hosts are network namespaces joined by a bridge. They are cut off by taking them from the bridge, or made deaf by a
rule of their own that drops what comes from others; in both cases no connection is told.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kos_cluster import errors
from tests.e2e.conftest import Machine, _until
from tests.e2e.fleet import side_by_side

until = _until
HOSTS = ("n1", "n2", "n3")
ADDRESS = {name: f"10.77.0.{number}" for number, name in enumerate(HOSTS, 1)}
WORK = "echo begun; while [ ! -e '{}' ]; do sleep 0.05; done; echo ended"
HEALED_S = 40.0  # for all to agree again: connections that stalled are tried again by the kernel ever more seldom


class Network:
    """Three hosts on a bridge."""

    def __init__(self) -> None:
        self._tag = f"k{random.randrange(16**6):06x}"
        self._ip("netns", "add", self._tag)
        self._in_bridge("link", "add", "br0", "type", "bridge")
        self._in_bridge("link", "set", "br0", "up")
        for name in HOSTS:
            host = self._host(name)
            self._ip("netns", "add", host)
            self._ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", f"to{name}", "netns", self._tag)
            self._in_bridge("link", "set", f"to{name}", "master", "br0", "up")
            self._ip("-n", host, "link", "set", "lo", "up")
            self._ip("-n", host, "addr", "add", f"{ADDRESS[name]}/24", "dev", "eth0")
            self._ip("-n", host, "link", "set", "eth0", "up")
            # Room for rules before the one for local addresses, which is the first else.
            self._ip("-n", host, "rule", "add", "pref", "100", "lookup", "local")
            self._ip("-n", host, "rule", "del", "pref", "0")

    def prefix(self, name: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._host(name))

    def cut_off(self, name: str) -> None:
        self._in_bridge("link", "set", f"to{name}", "nomaster")

    def join_again(self, name: str) -> None:
        self._in_bridge("link", "set", f"to{name}", "master", "br0")

    def deafen(self, name: str) -> None:
        """It hears nothing of the others; they hear it."""
        for other in HOSTS:
            if other != name:
                words = ("rule", "add", "pref", "50", "from", ADDRESS[other], "blackhole")
                self._ip("-n", self._host(name), *words)

    def hear_again(self, name: str) -> None:
        for other in HOSTS:
            if other != name:
                self._ip("-n", self._host(name), "rule", "del", "pref", "50", "from", ADDRESS[other], "blackhole")

    def end(self) -> None:
        for name in (*map(self._host, HOSTS), self._tag):
            with suppress(subprocess.CalledProcessError):
                self._ip("netns", "del", name)

    def _host(self, name: str) -> str:
        return f"{self._tag}{name}"

    def _in_bridge(self, *words: str) -> None:
        self._ip("-n", self._tag, *words)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command")
    try:
        made = Network()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    yield made
    made.end()


@pytest.fixture(scope="module")
def hosts(network: Network, machine_of: Callable[..., Machine]) -> Iterator[dict[str, Machine]]:
    """A cluster of the three, each of which votes; its user is an admin on each host."""
    made = {name: machine_of(*network.prefix(name)) for name in HOSTS}
    founder, *others = HOSTS
    made[founder].ok("cluster", "create", "lab", "--listen", ADDRESS[founder], "--name", founder)
    tokens = {name: made[founder].ok("cluster", "token").strip() for name in others}
    side_by_side(
        lambda name: made[name].ok(
            *("cluster", "join", "lab", ADDRESS[founder], "--listen", ADDRESS[name], "--name", name),
            KOS_TOKEN=tokens[name],
        ),
        others,
    )
    for name in others:  # its user is the same on all of them
        shutil.copytree(client(made[founder]), client(made[name]), dirs_exist_ok=True)
    until(lambda: all(whole(made[name]) for name in HOSTS), "all are alive and vote", HEALED_S)
    yield made
    for machine in made.values():
        machine.end()


def client(machine: Machine) -> Path:
    return machine.home / "clusters" / "lab" / "client"


def status(machine: Machine) -> dict[str, Any]:
    """What this host's user sees."""
    said: dict[str, Any] = json.loads(machine.ok("cluster", "status", "--json"))
    return said


def whole(machine: Machine) -> str:
    """Who coordinates, when this host sees all alive and voting."""
    said = status(machine)
    return said["coordinator"] or "" if said["alive"] == len(said["voters"]) == len(HOSTS) else ""


def agreed(hosts: dict[str, Machine]) -> str:
    """Wait until all see all alive and the same coordinator; its name."""

    def same() -> str:
        said = {whole(machine) for machine in hosts.values()}
        return said.pop() if len(said) == 1 else ""

    return str(until(same, "all agree", HEALED_S))


def coordinator_of(machine: Machine, than: str) -> str:
    """Wait until this host sees another coordinate; its name."""
    return str(until(lambda: (now := status(machine)["coordinator"]) != than and now, f"another than {than}", HEALED_S))


def refuses(machine: Machine) -> None:
    """Nothing can be decided from here, and that is said with the arithmetic."""
    typed = machine.kos("cluster", "token")
    assert typed.returncode == errors.UnreachableError.exit_code, typed.stdout + typed.stderr
    assert "2 of its 3 voters must agree, and only 1 can be reached" in typed.stderr


def test_a_coordinator_that_is_cut_off_decides_nothing_and_comes_back(
    network: Network, hosts: dict[str, Machine]
) -> None:
    first = agreed(hosts)
    majority, third = (name for name in HOSTS if name != first)
    goes_on = hosts[majority].home / "end it"
    work = hosts[majority].start("run", "--on", third, "sh", "-c", WORK.format(goes_on))
    assert work.stdout.readline() == "begun\n"
    network.cut_off(first)
    try:
        second = coordinator_of(hosts[majority], first)
        assert hosts[majority].ok("cluster", "token").startswith("KOS1.")
        refuses(hosts[first])
        assert "1 reachable, 2 needed" in hosts[first].ok("cluster", "status")
    finally:
        network.join_again(first)
    assert agreed(hosts) == second
    assert hosts[first].ok("cluster", "token").startswith("KOS1.")
    goes_on.touch()
    said, complaints = work.communicate(timeout=HEALED_S)
    assert (work.returncode, said) == (0, "ended\n"), complaints


def test_a_coordinator_that_is_deaf_steps_down_and_comes_back(network: Network, hosts: dict[str, Machine]) -> None:
    first = agreed(hosts)
    majority = next(name for name in HOSTS if name != first)
    network.deafen(first)
    try:
        second = coordinator_of(hosts[majority], first)
        assert hosts[majority].ok("cluster", "token").startswith("KOS1.")
        refuses(hosts[first])
        assert status(hosts[majority])["coordinator"] == second, "whom nobody can answer unseats nobody"
    finally:
        network.hear_again(first)
    agreed(hosts)
    assert hosts[first].ok("cluster", "token").startswith("KOS1.")
