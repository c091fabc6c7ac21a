"""What this machine is and how busy it is: versions, boot, slots, load, installed packages."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import socket
import time
from pathlib import Path

import psutil

from kos_cluster import __version__
from kos_cluster.core.records import Load, Versions
from kos_cluster.core.replicated import commands
from kos_cluster.net.wire import WIRE_VERSION

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SAMPLE_SHORTEST_S = 0.01  # what a shorter time between two samples is taken for


@functools.cache
def versions() -> Versions:
    """What this process runs."""
    return Versions(
        kos=__version__,
        wire=WIRE_VERSION,
        python=platform.python_version(),
        numpy=_installed("numpy"),
        cloudpickle=_installed("cloudpickle"),
        log_format=commands.FORMAT,
    )


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def packages() -> dict[str, str]:
    """Top-level import names that are installed, with their distribution's version. Reads the disk: takes a while."""
    found: dict[str, str] = {}
    for name, distributions in importlib.metadata.packages_distributions().items():
        if not name.startswith("_"):
            found[name] = _installed(distributions[0])
    return found


@functools.cache
def boot_id() -> str:
    """Names this boot of this kernel: two processes with the same one are on the same machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> int:
    """Names this process's pid namespace: a pid means the same to two processes only within one."""
    return os.stat("/proc/self/ns/pid").st_ino


def memory_bytes() -> int:
    """All of this machine's memory."""
    return int(psutil.virtual_memory().total)


def gpus(proc: Path = Path("/proc"), dev: Path = Path("/dev"), visible: str | None = None) -> tuple[str, ...]:
    """This machine's NVIDIA GPUs, by the names that CUDA_VISIBLE_DEVICES takes; none where there is no driver.

    `visible`: that variable, where it is set; then only the GPUs that it names are given to tasks.
    """
    folder = proc / "driver" / "nvidia" / "gpus"
    found = len(list(folder.iterdir())) if folder.is_dir() else 0
    found = found or sum(entry.name.removeprefix("nvidia").isdecimal() for entry in dev.glob("nvidia*"))
    if visible is None:
        return tuple(map(str, range(found)))
    named = [name.strip() for name in visible.split(",")]
    named = named[: next((place for place, name in enumerate(named) if name in ("", "-1")), len(named))]  # as CUDA does
    return tuple(dict.fromkeys(named))[:found]


def primary_address() -> str:
    """The IPv4 address of the interface that other machines are reached by. No packet is sent.

    The default route's; else that of the first interface with a route of its own; else loopback.
    """
    for probe in ("192.0.2.1", *_network_probes()):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chosen:
            chosen.connect((probe, 9))  # a datagram socket's connect only chooses the route
            address: str = chosen.getsockname()[0]
            return address
    return "127.0.0.1"


def _network_probes() -> list[str]:
    """An address within each network that the kernel has a route to, loopback apart."""
    lines = Path("/proc/net/route").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    destinations = [int(words[1], 16) for words in fields if words[0] != "lo"]
    return [
        socket.inet_ntoa((word.to_bytes(4, "little")[:3]) + bytes([word.to_bytes(4, "little")[3] | 1]))
        for word in destinations
        if word and word & 0xF0 != 0xE0  # not the default, not multicast
    ]


def is_own_address(host: str) -> bool:
    """Whether an address is one of this machine's, so that whoever connects from it runs here."""
    return host in {address.address.partition("%")[0] for found in psutil.net_if_addrs().values() for address in found}


class LoadMeter:
    """Samples the machine's load. The first figures of CPU and network are 0: they need two samples.

    The network is all interfaces together; loopback counts only where `loopback` says that the nodes talk over it.
    """

    def __init__(self, *, loopback: bool) -> None:
        self._loopback = loopback
        psutil.cpu_percent(interval=None)
        self._moved_bytes, self._moved_s = self._network_bytes(), time.monotonic()

    def sample(self, *, dropped_frames: int) -> Load:
        """The machine's part of a node's load."""
        memory = psutil.virtual_memory()
        received_bytes_s, sent_bytes_s = self._network_bytes_s()
        return Load(
            cpu_percent=psutil.cpu_percent(interval=None),
            memory_percent=memory.percent,
            memory_available_bytes=memory.available,
            dropped_frames=dropped_frames,
            received_bytes_s=received_bytes_s,
            sent_bytes_s=sent_bytes_s,
        )

    def _network_bytes_s(self) -> tuple[int, int]:
        """Received and sent since the last sample. An interface that was reset counts as still."""
        before, since_s = self._moved_bytes, self._moved_s
        self._moved_bytes, self._moved_s = self._network_bytes(), time.monotonic()
        passed_s = max(self._moved_s - since_s, SAMPLE_SHORTEST_S)
        received, sent = (
            max(0, round((now - then) / passed_s)) for now, then in zip(self._moved_bytes, before, strict=True)
        )
        return received, sent

    def _network_bytes(self) -> tuple[int, int]:
        """Received and sent so far."""
        counters = psutil.net_io_counters(pernic=True)
        counted = [counter for name, counter in counters.items() if self._loopback or name != "lo"]
        return sum(counter.bytes_recv for counter in counted), sum(counter.bytes_sent for counter in counted)
