"""The table of role x command, cell by cell, against real daemons; and messages that claim what is another's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import cloudpickle
import msgspec
import pytest

from kos_cluster.core import swim
from kos_cluster.core.records import JobSummary, Member, MemberState, Story
from kos_cluster.core.roles import ALLOWED, Command, Role
from kos_cluster.errors import AuthError, KosError, NoSuchNodeError, NoSuchTaskError
from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home, Ready
from kos_cluster.net import wire
from kos_cluster.net.administration import DrainNode, LeaveCluster, MintToken, RemoveNode, RenewNode, StopNode
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.bulk import get_result, put_part
from kos_cluster.net.controlplane import Heartbeat
from kos_cluster.net.engineauthority import make_request
from kos_cluster.net.engines import CertifyEngine
from kos_cluster.net.identity import Credentials
from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.services import embedded
from tests.mesh.conftest import Mesh
from tests.mesh.speaker import Speaker, authority_of, by_value, identity, part

LARGE_BYTES = 2 * BULK_BYTES
LISTED_S = 2.0  # within which a member that was let in is listed


class Scene:
    """The cluster that a cell of the table is tried on, and an identity of the cell's role."""

    def __init__(self, home: Home, authority: CertificateAuthority, role: Role, folder: Path) -> None:
        self.home = home
        self.authority = authority
        self.role = role
        self.folder = folder
        self.me = identity(authority, role)
        self.founder = self.ready("node1")

    def ready(self, node: str) -> Ready:
        ready = ClusterHome(self.home, EMBEDDED_NAME).ready(node)
        assert ready is not None
        return ready

    def speaker(self, credentials: Credentials | None = None, node: str = "node1") -> Speaker:
        ready = self.ready(node)
        return Speaker(credentials or self.me, ready.host, ready.port)

    def put(self, data: bytes) -> bool:
        hash_, data = part(data)
        return put_part(self.founder.host, self.founder.port, self.me, hash_, data)


def refused(reply: wire.Reply) -> bool:
    """Whether a request was refused because of the role, in words that name it."""
    if reply.error is None:
        return False
    kind, message, _ = reply.error
    if kind == NoSuchNodeError.__name__:  # it was allowed, and there was nothing to do it to
        return False
    assert kind == AuthError.__name__, reply.error
    assert "role" in message
    assert bytes(reply.value) == b"\xc0"
    return True


def sleep_marked(path: str) -> None:
    """Work that shows that it runs until it is stopped."""
    mark = Path(path)
    mark.touch()
    try:
        time.sleep(60)
    finally:
        mark.unlink()


# ---- one try for each command: whether it was done


async def try_read(scene: Scene) -> bool:
    async with scene.speaker() as speaker:
        replies = [
            not refused(await speaker.ask(question))
            for question in (wire.Nodes(), wire.Jobs(), wire.Logs("x"), wire.Stories("x"))
        ]
        assert len(set(replies)) == 1
        return replies[0]


async def try_submit(scene: Scene) -> bool:
    """Run a task, be certified for an engine, give a part over either port: all of it is allowed, or none."""
    mark = scene.folder / "ran"
    async with scene.speaker() as speaker:
        speaker.run(lambda path: Path(path).touch(), str(mark))
        answer, _ = await speaker.wait(wire.Result, wire.Refused)
        ran = isinstance(answer, wire.Result)
        if isinstance(answer, wire.Result):
            assert not answer.failed
            speaker.say(wire.Release([answer.serial]))
        else:
            assert scene.role in answer.reason
        certified = not refused(await speaker.ask(CertifyEngine("dask", make_request()[1], "10.1.2.3")))
    try:
        given = await asyncio.to_thread(scene.put, uuid4().bytes * (LARGE_BYTES // 16))
    except AuthError:
        given = False
    assert mark.exists() is ran is certified is given is await _part_is_kept(scene)
    return ran


async def _part_is_kept(scene: Scene) -> bool:
    """Give a part over the control port; then another, who may run work, finds it there or not."""
    function = by_value(lambda path: Path(path).touch())
    hash_, data = part(function + uuid4().bytes)  # what follows a pickle is not read
    async with scene.speaker() as speaker:
        speaker.say(wire.PutPart(hash_), data)
        await speaker.members()
    async with scene.speaker(identity(scene.authority, Role.CLIENT)) as other:
        job = uuid4().hex[:8]
        exec_ = wire.Exec(1, job, "probe", [(0, 1)], 1, hash_, "", [hash_], wire.Needs())
        other.say(exec_, msgspec.msgpack.encode([cloudpickle.dumps(((str(scene.folder / "kept"),), {}))]))
        answer, _ = await other.wait(wire.Result, wire.Missing)
        return isinstance(answer, wire.Result)


async def try_cancel_any(scene: Scene) -> bool:
    """Cancel a job of another identity."""
    mark = scene.folder / "runs"
    async with scene.speaker(identity(scene.authority, Role.CLIENT)) as owner, scene.speaker() as speaker:
        job = owner.run(sleep_marked, str(mark))
        await _until(mark.exists)
        summary = JobSummary(job, "work", "", 1, 0, 0, 1, time.time())
        owner.say(wire.OwnerBeat(-1, [1], [summary]))
        await owner.wait(wire.NodeBeat)
        reply = await speaker.ask(wire.CancelWork(job))
        await owner.members()
        if refused(reply):
            assert mark.exists()
        else:
            assert msgspec.msgpack.decode(reply.value, type=bool)
        told = owner.has_heard(wire.CancelWanted)
        assert told is not refused(reply)
        owner.say(wire.Cancel([1]))
        await owner.wait(wire.Lost)
        return told


async def try_mint_token(scene: Scene) -> bool:
    async with scene.speaker() as speaker:
        reply = await speaker.ask(MintToken("observer", 60.0))
        if refused(reply):
            return False
        assert msgspec.msgpack.decode(reply.value, type=str).startswith("KOS1.")
        return True


async def try_stop_node(scene: Scene) -> bool:
    """Tried on the second node, which its test may lose."""
    pid = scene.ready("node2").pid
    async with scene.speaker(node="node2") as speaker:
        if refused(await speaker.ask(StopNode())):
            await speaker.members()  # it serves on
            return False
    await _until(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text())
    return True


async def try_be_member(scene: Scene) -> bool:
    async with scene.speaker() as speaker:
        speaker.say(speaker.heartbeat())
        try:
            await _until_listed(speaker, scene.me.peer.id)
        except TimeoutError:
            return False
        return True


async def try_remove_self(scene: Scene) -> bool:
    async with scene.speaker() as speaker:
        return not refused(await speaker.ask(LeaveCluster()))


async def try_remove_node(scene: Scene) -> bool:
    async with scene.speaker() as speaker:
        return not refused(await speaker.ask(RemoveNode("nobody")))


async def try_drain_node(scene: Scene) -> bool:
    async with scene.speaker() as speaker:
        reply = await speaker.ask(DrainNode("node2", True))
        if not refused(reply):
            await speaker.answer(DrainNode("node2", False), bool)
        return not refused(reply)


async def try_rotate(scene: Scene) -> bool:
    async with scene.speaker() as speaker:
        return not refused(await speaker.ask(RenewNode()))


TRIES: dict[Command, Callable[[Scene], Awaitable[bool]]] = {
    Command.READ: try_read,
    Command.SUBMIT: try_submit,
    Command.CANCEL_ANY: try_cancel_any,
    Command.MINT_TOKEN: try_mint_token,
    Command.STOP_NODE: try_stop_node,
    Command.BE_MEMBER: try_be_member,
    Command.REMOVE_SELF: try_remove_self,
    Command.REMOVE_NODE: try_remove_node,
    Command.DRAIN_NODE: try_drain_node,
    Command.ROTATE: try_rotate,
}
# Written out, so that a change of the code's own table is noticed here.
EXPECTED: dict[Command, set[Role]] = {
    Command.READ: {Role.NODE, Role.CLIENT, Role.OBSERVER, Role.ADMIN},
    Command.SUBMIT: {Role.CLIENT, Role.ADMIN},
    Command.CANCEL_ANY: {Role.ADMIN},
    Command.MINT_TOKEN: {Role.ADMIN},
    Command.STOP_NODE: {Role.ADMIN},
    Command.BE_MEMBER: {Role.NODE},
    Command.REMOVE_SELF: {Role.NODE},
    Command.REMOVE_NODE: {Role.ADMIN},
    Command.DRAIN_NODE: {Role.ADMIN},
    Command.ROTATE: {Role.ADMIN},
}


async def _until_listed(speaker: Speaker, id_: str) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(LISTED_S):
        while id_ not in await speaker.members():
            await asyncio.sleep(0.01)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """A cluster of this module's own: its members, tokens and stopped nodes are seen by nobody else."""
    mesh = Mesh(2)
    yield mesh.home
    mesh.down()


@pytest.fixture
def scene(home: Home, tmp_path: Path) -> Callable[[Role], Scene]:
    embedded.up(home, 2)
    return lambda role: Scene(home, authority_of(home), role, tmp_path)


def test_every_command_and_role_is_tried() -> None:
    assert set(TRIES) == set(Command) == set(EXPECTED) == set(ALLOWED)
    assert {command: set(roles) for command, roles in ALLOWED.items()} == EXPECTED


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("command", list(Command))
def test_a_role_can_do_what_the_table_says_and_no_more(
    scene: Callable[[Role], Scene], command: Command, role: Role
) -> None:
    assert asyncio.run(TRIES[command](scene(role))) is (role in EXPECTED[command])


# ---- claims that the certificate does not cover


def test_a_record_that_its_member_did_not_sign_changes_nothing(scene: Callable[[Role], Scene]) -> None:
    there = scene(Role.NODE)

    async def forge() -> None:
        async with there.speaker() as forger:
            before = _standing(await forger.members())
            (victim,) = (m for m in before.values() if m.name == "node2")
            for changes in ({"id": victim.id}, {"id": victim.id, "name": victim.name}):
                forger.say(forger.heartbeat(incarnation=time.time_ns(), **changes))
            forger.say(Heartbeat(swim.Gossip((swim.Dead(victim.id, victim.incarnation, "nobody"),))))
            assert _standing(await forger.members()) == before
            log = (ClusterHome(there.home, EMBEDDED_NAME).run("node1") / "log").read_text()
            assert f"What {there.me.peer.id} said about {victim.id} was ignored: its signature is wrong." in log

    asyncio.run(forge())


def test_cancel_and_release_reach_only_ones_own_batches(scene: Callable[[Role], Scene]) -> None:
    there = scene(Role.ADMIN)
    mark = there.folder / "runs"

    async def forge() -> None:
        client = identity(there.authority, Role.CLIENT)
        async with there.speaker(client) as owner, there.speaker() as forger:
            owner.run(lambda: "kept", batch=1)
            result, _ = await owner.wait(wire.Result)
            owner.run(sleep_marked, str(mark), batch=2)
            await _until(mark.exists)
            forger.say(wire.Release([result.serial, 1, 2, 3]))
            forger.say(wire.Cancel([1, 2]))
            await forger.members()
            # The running one runs on; the finished one is still kept for its owner, who did not release it.
            owner.say(wire.OwnerBeat(-1, [1, 2], []))
            beat, _ = await owner.wait(wire.NodeBeat)
            assert beat.unknown == []
            assert mark.exists()
            owner.say(wire.Release([result.serial]))
            owner.say(wire.OwnerBeat(-1, [1, 2], []))
            beat, _ = await owner.wait(wire.NodeBeat)
            assert beat.unknown == [1]
            owner.say(wire.Cancel([2]))
            await owner.wait(wire.Lost)

    asyncio.run(forge())
    assert not mark.exists()


def test_a_client_cannot_end_what_anothers_task_has_submitted(scene: Callable[[Role], Scene]) -> None:
    """`AttemptEnded` is about one's own tasks; to stop another's there is cancelling, which needs a right."""
    there = scene(Role.CLIENT)
    mark = there.folder / "runs"

    async def forge() -> None:
        victim = identity(there.authority, Role.CLIENT)
        async with there.speaker(victim) as owner, there.speaker() as forger:
            owner.run(sleep_marked, str(mark), parent=f"{victim.peer.id}/victim00.0#1")
            await _until(mark.exists)
            forger.say(wire.AttemptEnded("victim00", [(0, 1)], 1))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # longer than stopping takes
                    await owner.wait(wire.Lost)
            lost = owner.has_heard(wire.Lost)
            owner.say(wire.Cancel([1]))
            await _until(lambda: owner.has_heard(wire.Lost))
            assert not lost

    asyncio.run(forge())


def test_a_large_result_is_given_to_its_owner_alone(scene: Callable[[Role], Scene]) -> None:
    there = scene(Role.ADMIN)
    ready = there.founder

    async def fetch() -> None:
        client = identity(there.authority, Role.CLIENT)
        async with there.speaker(client) as owner:
            owner.run(bytes, LARGE_BYTES)
            result, _ = await owner.wait(wire.Result)
            ((name, size),) = result.large.values()
            for role in Role:
                other = identity(there.authority, role)
                kind: type[KosError] = NoSuchTaskError if role in EXPECTED[Command.SUBMIT] else AuthError
                with pytest.raises(kind):
                    await asyncio.to_thread(get_result, ready.host, ready.port, other, name, size)
            for path in ("../ready.json", "..", "ready.json", "/etc/passwd", f"parts/{name}"):
                with pytest.raises(KosError):
                    await asyncio.to_thread(get_result, ready.host, ready.port, client, path, 1)
            assert len(await asyncio.to_thread(get_result, ready.host, ready.port, client, name, size)) == size
            owner.say(wire.Release([result.serial]))

    asyncio.run(fetch())


def test_a_part_is_kept_only_under_the_hash_of_its_bytes(scene: Callable[[Role], Scene]) -> None:
    there = scene(Role.CLIENT)
    hash_, data = part(b"x" * LARGE_BYTES)

    async def poison() -> None:
        async with there.speaker() as speaker:
            speaker.say(wire.PutPart(hash_), b"other bytes")
            with pytest.raises(KosError, match="other bytes than its hash"):
                await asyncio.to_thread(
                    put_part, there.founder.host, there.founder.port, there.me, hash_, b"y" * LARGE_BYTES
                )
            await speaker.members()
            assert there.put(data)  # it was not there yet

    asyncio.run(poison())


def test_stories_and_jobs_do_not_tell_of_work_that_was_refused(scene: Callable[[Role], Scene]) -> None:
    there = scene(Role.OBSERVER)

    async def look() -> None:
        async with there.speaker() as speaker:
            job = speaker.run(int)
            await speaker.wait(wire.Refused)
            assert await speaker.answer(wire.Stories(job), list[Story]) == []
            assert job not in [row.job for row in await speaker.answer(wire.Jobs(), list[JobSummary])]

    asyncio.run(look())


def _standing(members: dict[str, Member]) -> dict[str, Member]:
    return {id_: member for id_, member in members.items() if member.state is not MemberState.LEFT}
