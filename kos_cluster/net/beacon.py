"""The LAN beacon: nodes announce over UDP multicast where they are, so that a joiner need not type an address.

Rules: it is a hint and no more; whoever follows it checks the authority against its token before it sends anything.
A datagram that is not a beacon of ours is ignored and counted. A machine without a multicast route does without:
`problem` says so, nothing fails.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from typing import cast

import msgspec

GROUP = "239.255.75.67"  # administratively scoped: it does not leave the site
PORT = 7567
INTERVAL_S = 2.0
DATAGRAM_LIMIT_BYTES = 512
FOUND_LIMIT = 64
SETTLE_S = 0.25  # for which `find` goes on after its first find
_HOPS = 1
_MAGIC = b"KOSB1"

_log = logging.getLogger(__name__)


class Announcement(msgspec.Struct, frozen=True):
    """Where a node of a cluster says that it is."""

    cluster: str
    ca_sha256: str
    host: str
    port: int  # control


class Beacon(asyncio.DatagramProtocol):
    """Announces one node each `INTERVAL_S`, until closed."""

    def __init__(self, announcement: Announcement) -> None:
        self.problem = ""  # why an announcement could not be sent
        self._datagram = _MAGIC + msgspec.msgpack.encode(announcement)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.DatagramTransport | None = None
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def start(
        cls, cluster: str, ca_sha256: str, host: str, port: int, interface: str = "0.0.0.0", group_port: int = PORT
    ) -> Beacon:
        """Begin to announce on the interface of that address (0.0.0.0: where the route leads)."""
        beacon = cls(Announcement(cluster, ca_sha256, host, port))
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sender.setblocking(False)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _HOPS)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
            sender.connect((GROUP, group_port))
            await beacon._loop.create_datagram_endpoint(lambda: beacon, sock=sender)
        except OSError as error:
            sender.close()
            beacon._failed(error)
        return beacon

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # not a subclass of it in every Python
        self._announce()

    def error_received(self, exc: Exception) -> None:
        self._failed(exc)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()

    def _announce(self) -> None:
        assert self._transport is not None
        self._transport.sendto(self._datagram)
        self._timer = self._loop.call_later(INTERVAL_S, self._announce)

    def _failed(self, error: Exception) -> None:
        if str(error) != self.problem:
            _log.warning("The LAN beacon cannot be sent (%s); joiners must be given an address.", error)
        self.problem = str(error)


class Finder:
    """Listens for the beacons of one cluster."""

    def __init__(self, cluster: str, ca_sha256: str, interface: str = "0.0.0.0", group_port: int = PORT) -> None:
        """Raises OSError on a machine that has no multicast route."""
        self.ignored = 0
        self.found: list[tuple[str, int]] = []
        self._wanted = (cluster, ca_sha256)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # several listen on one machine
            self._socket.bind((GROUP, group_port))
            membership = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(interface))
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        except OSError:
            self._socket.close()
            raise

    def listen(self, timeout_s: float) -> None:
        """Fill `found` until the time is over, or `SETTLE_S` have passed since the first."""
        deadline = time.monotonic() + timeout_s
        while len(self.found) < FOUND_LIMIT and (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                datagram = self._socket.recv(DATAGRAM_LIMIT_BYTES + 1)
            except TimeoutError:
                return
            if self._take(datagram) and len(self.found) == 1:
                deadline = min(deadline, time.monotonic() + SETTLE_S)

    def close(self) -> None:
        self._socket.close()

    def _take(self, datagram: bytes) -> bool:
        """Whether a datagram told of an address that is new."""
        try:
            if len(datagram) > DATAGRAM_LIMIT_BYTES or not datagram.startswith(_MAGIC):
                raise msgspec.DecodeError("not a beacon")
            said = msgspec.msgpack.decode(datagram[len(_MAGIC) :], type=Announcement)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.ignored += 1
            return False
        address = (said.host, said.port)
        if (said.cluster, said.ca_sha256) != self._wanted or not 0 < said.port < 65535 or address in self.found:
            return False
        self.found.append(address)
        return True


def find(
    cluster: str, ca_sha256: str, timeout_s: float, interface: str = "0.0.0.0", group_port: int = PORT
) -> list[tuple[str, int]]:
    """Addresses (host, control port) that nodes of the cluster announce; empty when none is heard."""
    try:
        finder = Finder(cluster, ca_sha256, interface, group_port)
    except OSError as error:
        _log.warning("This machine cannot listen for LAN beacons (%s).", error)
        return []
    try:
        finder.listen(timeout_s)
        return finder.found
    finally:
        finder.close()
