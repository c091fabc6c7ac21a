"""Draining, rotating and removing nodes of a real cluster, while work runs on it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kos_cluster.core.records import TaskState
from kos_cluster.errors import AuthError, NoSuchNodeError, RevokedError, StateError, UnreachableError
from kos_cluster.home import EMBEDDED_NAME, ClusterHome
from kos_cluster.net import wire
from kos_cluster.net.identity import Credentials
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.tasks import renewal
from tests.mesh.conftest import Mesh, until
from tests.mesh.speaker import Speaker
from tests.net.presented import present

REFUSED_WITHIN_S = 2.0  # a removed node's live sessions, counted from the answer of the removal
ASK_EVERY_S = 0.02


@pytest.fixture(scope="module")
def three() -> Iterator[Mesh]:
    """Three nodes, each a voter. The last test removes one."""
    mesh = Mesh(3)
    until(lambda: sum(row["voter"] for row in mesh.cluster.nodes()) == 3, "three voters")
    yield mesh
    mesh.down()


def row(mesh: Mesh, name: str) -> dict[str, Any]:
    return next(row for row in mesh.cluster.nodes() if row["name"] == name)


def credentials(mesh: Mesh, node: str) -> Credentials:
    return Credentials.load(ClusterHome(mesh.home, EMBEDDED_NAME).node(node))


def where(seconds: float) -> str:
    import os
    import time

    time.sleep(seconds)
    return os.environ["KOS_NODE"]


# ---- draining


def test_a_node_drained_while_work_runs_keeps_that_and_gets_nothing_more(three: Mesh) -> None:
    running = three.cluster.submit(where, 1.5, on="node2")
    until(lambda: row(three, "node2")["running"], "it runs")
    three.cluster.drain_node("node2")
    until(lambda: row(three, "node2")["drained"], "it says so")
    until(lambda: _known_as_drained(three, "node2"), "this client knows")
    assert set(three.cluster.map(where, [0.02] * 30)) == {"node1", "node3"}
    asked_for = three.cluster.submit(where, 0.0, on="node2")
    assert running.result(10) == "node2"
    story = three.cluster.stories(asked_for.task)
    assert not asked_for.done() and all(each.state is not TaskState.RUNNING for each in story)
    three.cluster.drain_node(row(three, "node2")["id"], undo=True)
    assert asked_for.result(10) == "node2"
    assert three.cluster.status()["drained"] == []


def test_a_program_that_comes_later_gives_a_drained_node_nothing(three: Mesh) -> None:
    three.cluster.drain_node("node3")
    until(lambda: row(three, "node3")["drained"], "it says so")
    assert three.cluster.status()["drained"] == ["node3"]
    program = three.program(
        """
        import os, time
        import kos_cluster as kos
        print(sorted(set(kos.connect().map(lambda _: (time.sleep(0.05), os.environ["KOS_NODE"])[1], range(12)))))
        """
    )
    assert program.communicate(timeout=30)[0] == "['node1', 'node2']\n"
    three.cluster.drain_node("node3", undo=True)
    until(lambda: not row(three, "node3")["drained"], "it works again")


def test_a_node_that_is_not_there_cannot_be_drained(three: Mesh) -> None:
    with pytest.raises(NoSuchNodeError, match="No node or client is named 'node9'"):
        three.cluster.drain_node("node9")


def _known_as_drained(mesh: Mesh, node: str) -> bool:
    nodes = mesh.cluster._mesh.ask(lambda: [n.view for n in mesh.cluster._mesh._core._nodes.values()])
    return any(view.drained for view in nodes if view.name == node)


# ---- certificates


def test_certificates_are_renewed_while_work_goes_on_and_links_stay(three: Mesh) -> None:
    before = {node: credentials(three, node).peer.serial for node in ("node1", "node2", "node3")}
    client = three.cluster._mesh.credentials
    large = [b"x" * (2 * BULK_BYTES)] * 6
    results = three.cluster.map(_slow_size, large)
    ends = [three.cluster.renew_node(node) for node in before]
    ends.append(three.cluster.renew())
    assert all(end > time.time() + 360 * 86400 for end in ends)
    assert list(results) == [2 * BULK_BYTES] * 6
    assert all(credentials(three, node).peer.serial != serial for node, serial in before.items())
    home = ClusterHome(three.home, EMBEDDED_NAME)
    kept = Credentials.load(home.client)
    assert kept.peer.serial == three.cluster._mesh.credentials.peer.serial != client.peer.serial
    ready = home.ready("node2")
    assert ready is not None
    until(lambda: _is_refused(ready.host, ready.port, client), "the former certificate is denied")
    assert present(ready.host, ready.port, kept).name == "node2"
    # Nobody was taken to be dead, and the cluster can still decide.
    assert {each["state"] for each in three.cluster.nodes()} == {"alive"}
    with three.cluster.lock("after", ttl=5):
        assert three.alive() == 3
    assert all("is suspect" not in log for log in _logs(three))


def _slow_size(data: bytes) -> int:
    import time

    time.sleep(0.3)
    return len(data)


def _is_refused(host: str, port: int, credentials: Credentials) -> bool:
    try:
        present(host, port, credentials)
    except RevokedError:
        return True
    return False


def _logs(mesh: Mesh) -> list[str]:
    return [path.read_text() for path in (ClusterHome(mesh.home, EMBEDDED_NAME).path / "run").glob("*/log")]


def test_a_client_renews_by_itself_when_it_is_time_and_others_follow(
    three: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial = three.cluster._mesh.credentials.peer.serial
    folder = ClusterHome(three.home, EMBEDDED_NAME).client
    program = three.program(
        f"""
        from kos_cluster.tasks import renewal
        renewal.is_due = lambda credentials, share, now: True
        import kos_cluster as kos, time
        cluster = kos.connect()
        while cluster._mesh.credentials.peer.serial == {serial}:
            time.sleep(0.01)
        print(cluster._mesh.credentials.peer.serial)
        """
    )
    printed, said = program.communicate(timeout=30)
    assert said == ""
    assert Credentials.load(folder).peer.serial == int(printed) != serial
    until(lambda: three.cluster._mesh.credentials.peer.serial == int(printed), "this process follows", 5)
    assert three.cluster.submit(where, 0.0).result(10)
    assert 0.5 <= three.cluster._mesh._renewal._share <= 0.8
    assert not renewal.is_due(three.cluster._mesh.credentials, 0.8, time.time())


# ---- removing


def test_with_a_voter_dead_the_quorum_is_kept_and_the_dead_one_can_be_drained_but_not_rotated(three: Mesh) -> None:
    three.cluster.drain_node("node3")
    os.kill(three.pid("node3"), signal.SIGKILL)
    until(lambda: row(three, "node3")["state"] == "dead", "it is dead")
    with pytest.raises(UnreachableError, match=r"Node node3 \(\w+\) cannot be reached"):
        three.cluster.renew_node("node3")
    with pytest.raises(StateError) as caught:  # with both gone one voter of three would be left
        three.cluster.remove("node2")
    assert "node2 cannot be removed. Of 2 voters 2 would have to agree, but only 1 would be reachable." in str(
        caught.value
    )
    three.cluster.drain_node("node3", undo=True)
    three.heal()
    until(lambda: _links_of(three) == 3, "all are linked")
    assert not row(three, "node3")["drained"]


def test_what_cannot_be_removed_is_a_sentence(three: Mesh) -> None:
    with pytest.raises(NoSuchNodeError, match=r"No node or client is named 'node9'. The cluster has node1, node2"):
        three.cluster.remove("node9")
    with pytest.raises(StateError, match="only admin is on node1"):
        three.cluster.remove("node1")


def test_a_removed_node_is_refused_within_two_seconds_and_stops_saying_why(three: Mesh) -> None:
    home = ClusterHome(three.home, EMBEDDED_NAME)
    futures = list(three.cluster.map(where, [0.4] * 20).futures)
    until(lambda: row(three, "node3")["running"], "it works")
    daemon = psutil.Process(three.pid("node3"))
    until(lambda: _links_of(three) == 3, "all are linked")

    late_s = asyncio.run(_refused_after(three, credentials(three, "node3")))
    assert late_s < REFUSED_WITHIN_S
    print(f"the last answer to the removed node came {late_s:.2f} s after the removal")

    assert {future.result(30) for future in futures} <= {"node1", "node2", "node3"}
    assert len(futures) == 20
    until(lambda: not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE, "its daemon stops", 20)
    log = (home.run("node3") / "log").read_text()
    assert "This node, node3, was removed from cluster 'local': the nodes that answer refuse its certificate." in log
    assert row(three, "node3")["state"] == "left"
    assert set(three.cluster.map(where, [0.0] * 8)) <= {"node1", "node2"}
    with pytest.raises(UnreachableError, match="left"):
        three.cluster.renew_node("node3")


async def _refused_after(mesh: Mesh, removed: Credentials) -> float:
    """Remove node3 while sessions in its name ask each other node all the time; how long after the answer to that the
    last of them was answered."""
    last: list[float] = []

    home = ClusterHome(mesh.home, EMBEDDED_NAME)

    async def ask(node: str, here: ClusterHome | None) -> None:
        ready = home.ready(node)
        assert ready is not None
        async with _Expelled(removed, ready.host, ready.port, here) as speaker:
            while not speaker.expelled.is_set():
                await speaker.ask(wire.Nodes())
                last.append(time.monotonic())
                await asyncio.sleep(ASK_EVERY_S)

    ways = (("node1", None), ("node2", None), ("node1", home))  # over the network, and within the machine
    asking = [asyncio.create_task(ask(*way)) for way in ways]
    async with asyncio.timeout(10):
        while len(last) <= 10:
            await asyncio.sleep(0.01)
    assert await asyncio.to_thread(mesh.cluster.remove, "node3") == ["node3"]
    removed_s = time.monotonic()
    for task in asking:
        try:
            async with asyncio.timeout(10):
                await task
        except AuthError:
            continue
    return max(last) - removed_s


class _Expelled(Speaker):
    """A session that is to be refused."""

    async def __aenter__(self) -> _Expelled:
        self.expelled = asyncio.Event()
        await super().__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.link.close()
        self._context.destroy()

    def link_gone(self, link: NodeLink, why: str) -> None:
        assert isinstance(link.failure, RevokedError)
        self.expelled.set()
        self._arrived.set()

    async def ask(self, question: wire.Asked) -> wire.Reply:
        """Raises AuthError when the session is refused instead."""
        self._requests += 1
        if not self.link.send(wire.Request(self._requests, question)):
            await self.expelled.wait()
            raise AuthError("It was refused.")
        while not self.expelled.is_set():
            for message, _ in self.heard:
                if isinstance(message, wire.Reply) and message.id == self._requests:
                    return message
            self._arrived.clear()
            await self._arrived.wait()
        raise AuthError("It was refused.")


def _links_of(mesh: Mesh) -> int:
    return mesh.cluster._mesh.ask(lambda: len(mesh.cluster._mesh._attachment.by_node))


def test_the_removed_node_of_a_machine_is_told_so_when_it_is_started_again(three: Mesh, tmp_path: Path) -> None:
    """By itself, as its service manager would: with the exit code of a refusal."""
    import subprocess

    from kos_cluster.services import daemons

    words, environ = daemons.command(ClusterHome(three.home, EMBEDDED_NAME), "node3")
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == RevokedError.exit_code == 6
    assert "was removed from cluster 'local'" in done.stderr
    assert "Traceback" not in done.stderr
