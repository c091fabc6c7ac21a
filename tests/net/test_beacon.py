"""The LAN beacon over loopback: found, ignored, survived."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import pytest

from kos_cluster.net import beacon as beacon_module
from kos_cluster.net.beacon import FOUND_LIMIT, GROUP, INTERVAL_S, Announcement, Beacon, Finder

LOOPBACK = "127.0.0.1"
CA = "a" * 64


@pytest.fixture
def group_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def hear(group_port: int, *beacons: tuple[str, str, str, int], garbage: tuple[bytes, ...] = ()) -> Finder:
    """What a finder of cluster "lab" has heard once these were announced."""

    async def scene() -> Finder:
        finder = Finder("lab", CA, LOOPBACK, group_port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
            for data in garbage:
                stranger.sendto(data, (GROUP, group_port))
        running = [await Beacon.start(*one, interface=LOOPBACK, group_port=group_port) for one in beacons]
        await asyncio.to_thread(finder.listen, 5.0)
        for one in running:
            assert one.problem == ""
            one.close()
        finder.close()
        return finder

    return asyncio.run(scene())


def test_nodes_of_the_cluster_are_found(group_port: int) -> None:
    finder = hear(
        group_port,
        ("attic", CA, "10.0.0.1", 7567),
        ("lab", "b" * 64, "10.0.0.2", 7567),
        ("lab", CA, "10.0.0.3", 7567),
        ("lab", CA, "10.0.0.4", 7600),
    )
    assert finder.found == [("10.0.0.3", 7567), ("10.0.0.4", 7600)]


def test_garbage_is_ignored_and_counted(group_port: int) -> None:
    garbage = (b"", b"hello", b"KOSB1", b"KOSB1\xff\xff", b"KOSB1\x80", b"KOSB1" + b"\x91" * 2000)
    finder = hear(group_port, ("lab", CA, "10.0.0.3", 7567), garbage=garbage)
    assert finder.found == [("10.0.0.3", 7567)]
    assert finder.ignored == len(garbage)


def test_silence_finds_nothing(group_port: int) -> None:
    assert beacon_module.find("lab", CA, 0.05, LOOPBACK, group_port) == []


def test_a_machine_without_multicast_goes_on(group_port: int) -> None:
    async def scene() -> str:
        beacon = await Beacon.start("lab", CA, "10.0.0.3", 7567, interface="203.0.113.9", group_port=group_port)
        beacon.close()
        return beacon.problem

    assert asyncio.run(scene()) != ""
    assert beacon_module.find("lab", CA, 0.05, "203.0.113.9", group_port) == []


def test_announcements_are_one_each_interval() -> None:
    sent: list[bytes] = []
    put_off: list[tuple[float, Callable[[], None]]] = []
    timer = SimpleNamespace(cancel=lambda: None)
    loop = SimpleNamespace(call_later=lambda delay_s, do: put_off.append((delay_s, do)) or timer)

    async def made() -> Beacon:
        return Beacon(Announcement("lab", CA, "10.0.0.3", 7567))

    beacon = asyncio.run(made())
    beacon._loop = loop  # type: ignore[assignment]
    beacon.connection_made(SimpleNamespace(sendto=sent.append, close=lambda: None))  # type: ignore[arg-type]
    for announced in range(1, 5):
        assert (len(sent), len(put_off)) == (announced, announced)
        delay_s, do = put_off[-1]
        assert delay_s == INTERVAL_S
        do()
    beacon.close()
    assert len(set(sent)) == 1


def test_a_flood_of_forged_beacons_is_soon_over_and_bounded(group_port: int) -> None:
    finder = Finder("lab", CA, LOOPBACK, group_port)
    ended = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
            for port in itertools.cycle(range(1, 10 * FOUND_LIMIT)):
                if ended.is_set():
                    return
                forged = msgspec.msgpack.encode(Announcement("lab", CA, "10.0.0.9", port))
                stranger.sendto(b"KOSB1" + forged, (GROUP, group_port))

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        finder.listen(3600.0)
    finally:
        ended.set()
        flooding.join()
        finder.close()
    assert 1 < len(finder.found) <= FOUND_LIMIT
