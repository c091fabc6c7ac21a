"""What load gossip costs on the wire: at most 4 KiB a second a node, whatever the cluster's size."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from kos_cluster.core import loadgossip
from kos_cluster.core.loadgossip import LoadEntry, LoadGossip, LoadReport, Measured, PackedLoad, Peers, Reported
from kos_cluster.core.records import Load
from kos_cluster.net import wire
from kos_cluster.net.controlplane import LoadNews
from kos_cluster.net.identity import Credentials
from kos_cluster.net.transport import Link
from tests.net.echoes import HOST, NetworkEcho, running, until

LIMIT_BYTES_S = 4096
SPAN_S = 60.0
SPEAKERS = 3  # of a cluster's nodes; all do the same
FIRST_SERIAL = 1_700_000_000_000_000_000
BUSY = Load(3, 17, 55.5, 44.25, 12_345_678_901, 12_345, 1_250_000_000, 1_250_000_000, 12_345_678_901, 4, (2, 3), True)


def ids(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


def news(count: int) -> LoadReport:
    load = msgspec.convert(msgspec.structs.astuple(BUSY), PackedLoad)
    return LoadReport(tuple(LoadEntry(id_, FIRST_SERIAL, 0.25, load) for id_ in ids(count)))


def on_the_wire_bytes(report: LoadReport) -> int:
    """Of its message: an encrypted frame, with a long size from 256 bytes on."""
    encrypted = 8 + 8 + 16 + 1 + len(wire.encode(LoadNews(report)))  # name, nonce, authenticator, flags
    return encrypted + (2 if encrypted < 256 else 9)


def sent_bytes(members: int) -> int:
    """By a node that knows everybody's load all the time, so that its reports are as long as they get."""
    sent = 0
    for id_ in ids(SPEAKERS):
        node = LoadGossip(id_, FIRST_SERIAL, random.Random(id_), 0.0)
        node.handle(Peers(tuple(ids(members))), 0.0)
        while (now := node.deadline) < SPAN_S:
            node.handle(Measured(BUSY), now)
            node.handle(Reported(news(members)), now)
            sent += sum(on_the_wire_bytes(effect.report) for effect in node.tick(now))
    return sent


@pytest.mark.parametrize("members", [9, 10, 150, 1000])
def test_a_node_sends_at_most_4_kib_of_load_news_a_second(members: int) -> None:
    assert 0.5 * LIMIT_BYTES_S < sent_bytes(members) / SPEAKERS / SPAN_S <= LIMIT_BYTES_S


class CountingRelay:
    """Passes on what connections send to a port and back, and counts what it took from those who connect."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.taken_bytes = 0

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, HOST, 0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self._port)
        try:
            await asyncio.gather(self._pass_on(reader, back, True), self._pass_on(there, writer, False))
        finally:
            writer.close()
            back.close()

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counted: bool) -> None:
        while data := await source.read(1 << 16):
            if counted:
                self.taken_bytes += len(data)
            sink.write(data)
        sink.close()


@pytest.mark.parametrize("entries", [1, 9])
def test_a_report_takes_what_is_counted_for_it(node: Credentials, client: Credentials, port: int, entries: int) -> None:
    """On a real link, as counted between its ends. ZeroMQ's own heartbeats may add to some of these reports."""
    report = news(entries)

    async def scene() -> None:
        async with running(NetworkEcho(node, port)) as echo:
            echo.admitted.admit(client.peer)
            relay = CountingRelay(port)
            async with await relay.listen() as server:
                states: list[str] = []
                heard: list[wire.Message] = []
                link = Link(
                    echo.clients,
                    client,
                    node.curve_public,
                    HOST,
                    server.sockets[0].getsockname()[1],
                    lambda message, payload: heard.append(message),
                    states.append,
                )
                await until(lambda: states == ["up"])
                took = []
                for number in range(1, 6):
                    before = relay.taken_bytes
                    assert link.send(LoadNews(report))
                    await until(lambda: len(heard) == number)  # noqa: B023
                    took.append(relay.taken_bytes - before)
                link.close()
                assert min(took) == on_the_wire_bytes(report)
                entries_bytes = sum(len(msgspec.msgpack.encode(entry)) for entry in report.entries)
                assert min(took) <= entries_bytes + loadgossip.ENVELOPE_BYTES

    asyncio.run(scene())
