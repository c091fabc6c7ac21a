"""Hosts of their own on this machine: network namespaces joined by a bridge.

A host is cut off by taking it from the bridge, or made deaf or mute by a rule that drops what comes from others or from
it; in none of these cases is a connection told.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest


class Network:
    """Hosts on a bridge, in a subnet of their own that this process reaches, too. `address` is each one's."""

    def __init__(self, hosts: Sequence[str]) -> None:
        subnet = f"10.77.{random.randrange(256)}"
        self.address = {name: f"{subnet}.{number}" for number, name in enumerate(hosts, 1)}
        self._tag = f"k{random.randrange(16**6):06x}"
        self._ip("netns", "add", self._tag)
        self._in_bridge("link", "add", "br0", "type", "bridge")
        self._in_bridge("link", "set", "br0", "up")
        self._ip("link", "add", self._tag, "type", "veth", "peer", "name", "door", "netns", self._tag)
        self._in_bridge("link", "set", "door", "master", "br0", "up")
        self._ip("addr", "add", f"{subnet}.254/24", "dev", self._tag)
        self._ip("link", "set", self._tag, "up")
        for name in self.address:
            host = self._host(name)
            self._ip("netns", "add", host)
            self._ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", f"to{name}", "netns", self._tag)
            self._in_bridge("link", "set", f"to{name}", "master", "br0", "up")
            self._ip("-n", host, "link", "set", "lo", "up")
            self._ip("-n", host, "addr", "add", f"{self.address[name]}/24", "dev", "eth0")
            self._ip("-n", host, "link", "set", "eth0", "up")
            # Room for rules before the one for local addresses, which is the first else.
            self._ip("-n", host, "rule", "add", "pref", "100", "lookup", "local")
            self._ip("-n", host, "rule", "del", "pref", "0")

    def prefix(self, name: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._host(name))

    def cut_off(self, name: str) -> None:
        self._in_bridge("link", "set", f"to{name}", "nomaster")

    def silence(self, name: str) -> None:
        """The others hear nothing of it; it hears them."""
        for other in self.address:
            if other != name:
                self._ip("-n", self._host(other), "rule", "add", "pref", "50", "from", self.address[name], "blackhole")

    def hear(self, name: str) -> None:
        """The others hear it again."""
        for other in self.address:
            if other != name:
                self._ip("-n", self._host(other), "rule", "del", "pref", "50", "from", self.address[name], "blackhole")

    def join_again(self, name: str) -> None:
        self._in_bridge("link", "set", f"to{name}", "master", "br0")

    def deafen(self, name: str) -> None:
        """It hears nothing of the others; they hear it."""
        for other in self.address:
            if other != name:
                words = ("rule", "add", "pref", "50", "from", self.address[other], "blackhole")
                self._ip("-n", self._host(name), *words)

    def hear_again(self, name: str) -> None:
        for other in self.address:
            if other != name:
                self._ip("-n", self._host(name), "rule", "del", "pref", "50", "from", self.address[other], "blackhole")

    def end(self) -> None:
        for name in (*map(self._host, self.address), self._tag):
            with suppress(subprocess.CalledProcessError):
                self._ip("netns", "del", name)

    def _host(self, name: str) -> str:
        return f"{self._tag}{name}"

    def _in_bridge(self, *words: str) -> None:
        self._ip("-n", self._tag, *words)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def network_of(hosts: Sequence[str]) -> Iterator[Network]:
    """These hosts; where they cannot be made the tests are skipped, and say so."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command")
    try:
        made = Network(hosts)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    try:
        yield made
    finally:
        made.end()
