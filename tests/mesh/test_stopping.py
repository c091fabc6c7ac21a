"""How work on a real cluster stops: by a timeout, by cancelling, by an interrupt, and with whoever submitted it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
import time
from pathlib import Path

import pytest

import kos_cluster as kos
from kos_cluster import errors
from kos_cluster.home import EMBEDDED_NAME, ClusterHome
from kos_cluster.net import wire
from kos_cluster.net.administration import ClusterStatus, Status
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.net.transport import Payload
from kos_cluster.tasks.mesh import Mesh as Connection
from tests.mesh.conftest import Mesh, until


def test_a_timeout_stops_the_task_alone_that_is_over_it(mesh: Mesh):
    before = time.monotonic()
    with pytest.raises(errors.TaskTimeoutError, match="longer than its timeout"):
        mesh.cluster.submit(time.sleep, 60, timeout=0.3).result()
    assert time.monotonic() - before < 10
    futures = mesh.cluster.map(lambda n: time.sleep(60 if n == 2 else 0) or n, range(5), timeout=0.3).futures
    assert isinstance(futures.pop(2).exception(10), errors.TaskTimeoutError)
    assert [future.result(10) for future in futures] == [0, 1, 3, 4]


def test_cancel_stops_a_running_task(mesh: Mesh, tmp_path: Path):
    mark = tmp_path / "running"

    def run(path: str) -> None:
        Path(path).touch()
        time.sleep(60)

    future = mesh.cluster.submit(run, str(mark))
    until(mark.exists, "the task runs")
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(10)
    until(lambda: mesh.cluster.status()["running"] == 0, "its slot is free")


LINKED_LATE = """
import asyncio
import kos_cluster as kos
from kos_cluster.tasks.attachment import Attachment
welcome = Attachment._welcome
def late(self, link, message):
    delay_s = 1.0 if message.member.name == "node2" else 0.0
    asyncio.get_running_loop().call_later(delay_s, welcome, self, link, message)
Attachment._welcome = late
kos.tasks.attachment.ALL_NODES_TIMEOUT_S = 0.0
print(kos.connect().cancel({job!r}), kos.connect().cancel("nosuchid"))
"""


def test_who_asks_before_it_is_linked_to_the_node_that_knows_the_work_is_not_told_that_nobody_does(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
):
    """node1 has not heard of the job, which is on node2, and the one that cancels reaches node1 first."""
    send = NodeLink.send

    def unheard(link: NodeLink, message: wire.Message, payload: Payload = b"") -> bool:
        to_node1 = link.peer is not None and link.peer.name == "node1"
        return (to_node1 and isinstance(message, wire.OwnerBeat)) or send(link, message, payload)

    monkeypatch.setattr(NodeLink, "send", unheard)
    future = mesh.cluster.submit(time.sleep, 60, on="node2")
    until(lambda: mesh.cluster.stories(future.task), "node2 has it")
    program = mesh.program(LINKED_LATE.format(job=future.job))
    assert program.communicate(timeout=60) == ("True False\n", "")
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(10)


def test_an_interrupt_stops_remote_work_within_a_second(mesh: Mesh, tmp_path: Path):
    program = mesh.program(
        f"""
        import time, pathlib, kos_cluster as kos
        def work(number):
            path = pathlib.Path({str(tmp_path)!r}) / str(number)
            path.touch()
            try:
                time.sleep(60)
            finally:
                path.unlink()
        list(kos.connect().map(work, range(8)))
        """
    )
    until(lambda: len(list(tmp_path.iterdir())) == 2, "tasks run on both nodes")
    program.send_signal(signal.SIGINT)
    sent = time.monotonic()
    until(lambda: not list(tmp_path.iterdir()), "no task runs any more")
    assert time.monotonic() - sent < 5.0  # 1 s, and what a loaded machine adds
    assert program.wait(20) != 0
    assert "KeyboardInterrupt" in program.communicate()[1]


def test_children_are_cancelled_with_their_parent(mesh: Mesh, tmp_path: Path):
    def child(path: str) -> None:
        Path(path).touch()
        time.sleep(60)

    def parent(folder: str) -> None:
        futures = [kos.connect().submit(child, f"{folder}/{number}") for number in range(2)]
        futures[0].result()

    future = mesh.cluster.submit(parent, str(tmp_path))
    until(lambda: list(tmp_path.iterdir()), "a child runs")
    until(lambda: any(job.parent == future.task for job in mesh.cluster.jobs()), "whose children they are is told")
    future.cancel()
    until(lambda: mesh.cluster.status()["running"] == 0, "parent and children have stopped")


def test_jobs_logs_and_cancel_by_id_from_elsewhere(mesh: Mesh, tmp_path: Path):
    mark = tmp_path / "running"

    def speak(path: str) -> None:
        print("listening", flush=True)
        Path(path).touch()
        time.sleep(60)

    future = mesh.cluster.submit(speak, str(mark), name="speaker")
    until(mark.exists, "the task runs")
    until(lambda: any(job.name == "speaker" for job in mesh.cluster.jobs()), "the job is listed")
    assert (future.task, b"listening\n") in mesh.cluster.logs(future.job)
    assert mesh.cluster.cancel(future.job)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(10)
    assert not mesh.cluster.cancel("nosuchid")


def test_work_of_a_client_that_is_killed_is_freed_at_once(mesh: Mesh, tmp_path: Path):
    program = mesh.program(
        f"""
        import time, pathlib, kos_cluster as kos
        def work(number):
            pathlib.Path({str(tmp_path)!r}, str(number)).touch()
            time.sleep(60)
        list(kos.connect().map(work, range(4)))
        """
    )
    until(lambda: len(list(tmp_path.iterdir())) == 2, "tasks run")
    program.kill()
    program.communicate()
    until(lambda: mesh.cluster.status()["running"] == 0, "its work is stopped", 10)


def test_work_is_freed_at_once_when_its_owner_closes_the_connection(mesh: Mesh, tmp_path: Path):
    program = mesh.program(
        f"""
        import sys, time, pathlib, kos_cluster as kos
        def work(number):
            pathlib.Path({str(tmp_path)!r}, str(number)).touch()
            time.sleep(60)
        cluster = kos.connect()
        results = cluster.map(work, range(4))
        while len(list(pathlib.Path({str(tmp_path)!r}).iterdir())) < 2:
            time.sleep(0.01)
        cluster.close()
        print("closed", flush=True)
        time.sleep(60)
        """
    )
    assert program.stdout is not None and program.stdout.readline() == "closed\n"
    until(lambda: mesh.cluster.status()["running"] == 0, "its work is stopped", 10)
    assert program.poll() is None, "although the process goes on"


def test_a_question_that_is_out_when_the_connection_closes_ends_in_a_sentence(mesh: Mesh):
    connection = Connection(ClusterHome(mesh.home, EMBEDDED_NAME))
    connection.start()
    asked, ended = threading.Event(), []

    async def unanswered(*_: object) -> bytes:
        asked.set()
        return await asyncio.get_running_loop().create_future()

    connection._asking.one = unanswered

    def ask() -> None:
        try:
            connection.request(Status(), ClusterStatus)
        except BaseException as error:
            ended.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert asked.wait(30)
    connection.close()
    asking.join(30)
    assert [str(error) for error in ended] == [
        "The connection to the cluster was closed meanwhile. Call kos.connect() again."
    ]
    assert isinstance(ended[0], errors.StateError)


def test_a_cancelled_future_is_cancelled_at_once(mesh: Mesh):
    future = mesh.cluster.submit(time.sleep, 60)
    assert future.cancel()
    assert future.cancelled() and future.done()
    done = mesh.cluster.submit(int, 1)
    assert done.result() == 1
    assert not done.cancel()
