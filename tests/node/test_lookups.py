"""How a daemon finds nodes by their ids: whom it asks, what it believes of what it is told, and what a lie can cost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kos_cluster.core.buckets import BUCKET_SIZE, Contact
from kos_cluster.core.kademlia import FindNode, Found
from kos_cluster.core.records import Member
from kos_cluster.core.roles import Role
from kos_cluster.errors import UnreachableError
from kos_cluster.net import wire
from kos_cluster.net.controlplane import Finding
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.node import lookups as module
from kos_cluster.node import machine
from kos_cluster.node.lookups import DIALS_LIMIT, Lookups

DENIED = 13
WAIT_S = 10.0


def member(id_: str, wire_version: int = wire.WIRE_VERSION) -> Member:
    host, port = PLACES[id_]
    versions = machine.versions()
    return Member(id_, id_, host, port, 1, type(versions)("", wire_version, "", "", ""), 1)


PLACES = {id_: (f"10.0.0.{n}", 7567) for n, id_ in enumerate(("me", "b", "c", "liar", "lost"), 1)}


def at(id_: str, host: str = "", port: int = 7567) -> Contact:
    return Contact(id_, host or PLACES[id_][0], port)


class Links:
    """Peers that keep what is sent, and are at no address but those that were found or that the test sets."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Finding]] = []
        self.addresses: dict[str, str] = {}

    def send(self, id_: str, message: Finding) -> bool:
        self.sent.append((id_, message))
        return True

    def address(self, id_: str) -> str:
        return self.addresses.get(id_, "")

    def found(self, id_: str, address: str) -> None:
        self.addresses[id_] = address


class Scene:
    """Node `me`, and who shows which certificate where."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.links = Links()
        self.known: dict[str, Member] = {}
        self.there = {f"{host}:{port}": self.peer(id_) for id_, (host, port) in PLACES.items()}
        self.dialled: list[str] = []
        self.hold: asyncio.Event | None = None  # what whoever dials has to wait for
        monkeypatch.setattr(module, "present", self._present)
        self.lookups = Lookups(
            member("me"),
            self.links,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            lambda serial: serial == DENIED,
            self.known.get,
            lambda id_: id_ != "removed",
        )

    def peer(self, id_: str, role: Role = Role.NODE, serial: int = 1) -> Peer:
        return Peer("lab", id_, id_, role, serial, b"", 0.0)

    async def _present(self, host: str, port: int, credentials: Credentials) -> Peer:
        self.dialled.append(f"{host}:{port}")
        if self.hold is not None:
            await self.hold.wait()
        if f"{host}:{port}" not in self.there:
            raise UnreachableError("Nobody is there.")
        return self.there[f"{host}:{port}"]

    def meet(self, id_: str) -> None:
        self.links.addresses[id_] = "{}:{}".format(*PLACES[id_])
        self.lookups.reached(member(id_), self.links.addresses[id_])

    async def asked(self, id_: str) -> FindNode:
        """The next question to this node."""
        await until(lambda: any(to == id_ for to, _ in self.links.sent))
        (_, said) = self.links.sent.pop(next(n for n, (to, _) in enumerate(self.links.sent) if to == id_))
        assert isinstance(said.message, FindNode)
        return said.message

    async def answer(self, id_: str, *contacts: Contact) -> None:
        """Let this node answer the next question to it."""
        question = await self.asked(id_)
        self.lookups.said(id_, Found(question.request, contacts))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


Play = Callable[[Scene], Awaitable[None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Play], None]:
    def run(act: Play) -> None:
        async def whole() -> None:
            scene = Scene(monkeypatch)
            try:
                await act(scene)
            finally:
                if scene.hold is not None:
                    scene.hold.set()
                scene.lookups.close()

        asyncio.run(whole())

    return run


def test_a_node_that_one_member_names_is_found_and_kept(play: Callable[[Play], None]) -> None:
    async def act(scene: Scene) -> None:
        scene.meet("b")
        scene.lookups.seek("lost")
        await scene.answer("b", at("lost"))
        await scene.answer("lost")
        assert scene.dialled == ["10.0.0.5:7567"]
        assert scene.links.address("lost") == "10.0.0.5:7567"
        assert scene.lookups.contacts == 2

    play(act)


def test_a_node_that_knows_one_member_learns_of_the_others_by_itself(play: Callable[[Play], None]) -> None:
    async def act(scene: Scene) -> None:
        scene.meet("b")
        scene.lookups.tick()
        await scene.answer("b", at("c"), at("lost"))
        for id_ in ("c", "lost"):
            await scene.answer(id_)
        assert scene.lookups.contacts == 3

    play(act)


@pytest.mark.parametrize("lie", ["10.0.0.4", "10.0.0.99", "no such..name"])
def test_who_lies_of_an_address_delays_and_does_not_mislead(lie: str, play: Callable[[Play], None]) -> None:
    """The address is another node's, nobody's, or none at all. Nothing is said there."""

    async def act(scene: Scene) -> None:
        scene.meet("liar")
        scene.meet("b")
        scene.lookups.seek("lost")
        await scene.answer("liar", at("lost", lie))
        await until(lambda: scene.dialled == [f"{lie}:7567"])
        await scene.answer("b", at("lost"))
        assert (await scene.asked("lost")).request
        assert scene.links.address("lost") == "10.0.0.5:7567"
        assert scene.links.sent == []

    play(act)


@pytest.mark.parametrize(
    "shown", [Peer("lab", "lost", "", Role.CLIENT, 1, b"", 0.0), Peer("lab", "lost", "", Role.NODE, DENIED, b"", 0.0)]
)
def test_a_certificate_that_does_not_hold_proves_nothing(shown: Peer, play: Callable[[Play], None]) -> None:
    """One of a client, and one that is denied."""

    async def act(scene: Scene) -> None:
        scene.there["10.0.0.5:7567"] = shown
        scene.meet("b")
        scene.lookups.seek("lost")
        await scene.answer("b", at("lost"), at("c"))
        await scene.answer("c")
        assert scene.dialled.count("10.0.0.5:7567") == 1
        assert scene.links.address("lost") == ""
        assert scene.links.sent == []

    play(act)


def test_made_up_contacts_are_dialled_a_few_at_a_time(play: Callable[[Play], None]) -> None:
    async def act(scene: Scene) -> None:
        scene.hold = asyncio.Event()
        scene.meet("liar")
        for number in range(DIALS_LIMIT):
            scene.lookups.seek(f"lost{number}")
            made_up = [Contact(f"ghost{number}.{n}", f"10.1.{number}.{n}", 7567) for n in range(BUCKET_SIZE)]
            await scene.answer("liar", *made_up)
        await until(lambda: len(scene.dialled) >= DIALS_LIMIT)
        for _ in range(20):  # turns of the loop, in which more would be dialled
            await asyncio.sleep(0.001)
        assert len(scene.dialled) == DIALS_LIMIT
        assert set(scene.links.addresses) == {"liar"}

    play(act)


def test_a_node_is_not_looked_up_again_at_once_nor_when_it_was_removed(play: Callable[[Play], None]) -> None:
    async def act(scene: Scene) -> None:
        scene.meet("b")
        scene.lookups.seek("lost")
        await scene.answer("b")
        scene.lookups.seek("lost")
        scene.lookups.seek("removed")
        scene.lookups.seek("me")
        assert scene.links.sent == []

    play(act)


def test_a_node_that_cannot_be_reached_where_it_is_looked_for_is_looked_up(play: Callable[[Play], None]) -> None:
    async def act(scene: Scene) -> None:
        scene.meet("b")
        scene.links.addresses["lost"] = "10.0.0.77:7567"
        scene.lookups.unreachable("lost", "10.0.0.66:7567")
        assert scene.links.sent == [], "a link to where it was before means nothing"
        scene.lookups.unreachable("lost", "10.0.0.77:7567")
        await scene.answer("b", at("lost"))
        await scene.answer("lost")
        assert scene.links.address("lost") == "10.0.0.5:7567"

    play(act)


def test_a_node_of_a_wire_version_without_look_ups_is_asked_nothing(play: Callable[[Play], None]) -> None:
    async def act(scene: Scene) -> None:
        scene.links.addresses["c"] = "10.0.0.3:7567"
        scene.known["c"] = member("c", 1)
        scene.lookups.reached(scene.known["c"], "10.0.0.3:7567")
        scene.lookups.greeted("c")
        scene.meet("b")
        scene.lookups.seek("lost")
        await scene.answer("b", at("c"))
        assert (scene.links.sent, scene.dialled, scene.lookups.contacts) == ([], [], 1)

    play(act)


def test_who_asks_and_has_no_known_address_is_answered_and_not_kept(play: Callable[[Play], None]) -> None:
    async def act(scene: Scene) -> None:
        scene.meet("b")
        scene.lookups.said("c", FindNode(7, bytes(32)))
        assert scene.links.sent == [("c", Finding(Found(7, (at("b"),))))]
        assert scene.lookups.contacts == 1

    play(act)
