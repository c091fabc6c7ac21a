"""Workers, fork servers and nodes are lost in the middle of real work: each result comes once, the stories say why."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import kos_cluster as kos
from kos_cluster import errors
from kos_cluster.core.records import AttemptEnd, TaskState
from kos_cluster.tasks.futures import Future
from tests.mesh.conftest import Mesh, until

FILES = sorted(Path(os.__file__).parent.glob("*.py"))[:120]
DIGESTS = [hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES]
FINAL_S = 30.0
LOSSES = {AttemptEnd.NODE_LOST, AttemptEnd.WORKER_LOST}


@pytest.fixture(scope="module")
def three() -> Iterator[Mesh]:
    """Three nodes of this module's own, since they are killed."""
    mesh = Mesh(3)
    yield mesh
    mesh.down()


@pytest.fixture
def lossy(three: Mesh) -> Iterator[Mesh]:
    yield three
    three.heal()


class Lines:
    """A file to which each run of a task appends one line, with one write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lines"
        self.path.touch()

    def read(self) -> list[tuple[str, int, str, int]]:
        """(task, attempt, node, pid of the worker) of each run."""
        rows = (line.split() for line in self.path.read_text().splitlines())
        return [(task, int(attempt), node, int(pid)) for task, attempt, node, pid in rows]


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    return Lines(tmp_path)


@pytest.fixture
def anew(lossy: Mesh) -> Iterator[None]:
    """Connect anew after a test whose connection may have given a node up."""
    yield
    lossy.cluster.close()
    lossy.cluster = kos.connect()


def hashed(lines: Lines, wait_s: float = 0.02, go: Path | None = None) -> Callable[[str], str]:
    """Real work: the digest of a file; a line tells that it was run, and by which attempt, where.

    It takes so long, or until the file `go` is there.
    """
    log, awaited = str(lines.path), str(go or lines.path)

    def run(path: str) -> str:
        said = " ".join([*(os.environ[name] for name in ("KOS_TASK", "KOS_ATTEMPT", "KOS_NODE")), str(os.getpid())])
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, said.encode() + b"\n")
        os.close(descriptor)
        time.sleep(wait_s)
        while not os.path.exists(awaited):
            time.sleep(wait_s)
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    return run


def started(mesh: Mesh, lines: Lines, count: int = 15, go: Path | None = None, **options: Any) -> list[Future]:
    """A map over the files that is on its way: every node has run something of it, or does so until `go` is there."""
    futures = mesh.cluster.map(hashed(lines, go=go), map(str, FILES), **options).futures
    until(lambda: len(rows := lines.read()) >= count and len({row[2] for row in rows}) == 3, "all nodes work")
    assert not all(future.done() for future in futures)
    return futures


def audit(futures: Sequence[Future], lines: Lines) -> set[AttemptEnd]:
    """Every result is right, and what ran agrees with the stories. How attempts ended that brought nothing."""
    assert [future.result(FINAL_S) for future in futures] == DIGESTS[: len(futures)]
    runs = Counter((task, attempt, node) for task, attempt, node, _ in lines.read())
    assert {count for (_, _, _), count in runs.items()} == {1}, "one attempt ran twice on a node"
    assert len({(task, attempt) for task, attempt, _ in runs}) == len(runs), "one attempt ran on two nodes"
    ends: set[AttemptEnd] = set()
    told: set[tuple[str, int, str]] = set()
    for future in futures:
        story = future.story()
        assert story is not None and story.task == future.task and story.state is TaskState.DONE
        assert [a.end for a in story.attempts].count(AttemptEnd.DONE) == 1, story
        assert story.attempts[-1].end is AttemptEnd.DONE, story
        for attempt in story.attempts:
            key = (story.task, attempt.number, attempt.node)
            told.add(key)
            if attempt.end is AttemptEnd.DONE:
                assert runs[key] == 1, (key, story)
            else:
                ends.add(attempt.end)
                assert attempt.end is not AttemptEnd.RETURNED or runs[key] == 0, (key, story)
    assert set(runs) <= told
    return ends


def fork_servers(mesh: Mesh, node: str) -> list[int]:
    found = []
    for child in psutil.Process(mesh.pid(node)).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if "kos_cluster.tasks.forkserver" in child.cmdline():
                found.append(child.pid)
    return found


def submitted(mesh: Mesh, node: str, fn: Callable[..., Any], *args: Any, **options: Any) -> Future:
    """Submit to one node, as soon as this client has a link to it."""
    futures: list[Future] = []

    def placed() -> bool:
        try:
            futures.append(mesh.cluster.submit(fn, *args, on=node, **options))
        except errors.PlacementError:
            return False
        return True

    until(placed, f"there is a link to {node}")
    return futures[0]


def stop(mesh: Mesh, node: str) -> None:
    """End a daemon with SIGTERM, and wait until it has ended and the others know."""
    process = psutil.Process(mesh.pid(node))
    process.terminate()
    psutil.wait_procs([process], timeout=FINAL_S)
    assert not process.is_running()

    def known() -> bool:  # of this one: on a busy machine another may be suspected for a moment, too
        return not any(row["name"] == node and row["state"] == "alive" for row in mesh.cluster.nodes())

    until(known, f"{node} is known to have stopped")


# ---- in the middle of a map


@pytest.mark.parametrize("node", ["node2", "node1"], ids=["a node", "the founding node"])
def test_a_node_is_killed_in_the_middle_of_a_map(lossy: Mesh, lines: Lines, node: str):
    futures = started(lossy, lines)
    os.kill(lossy.pid(node), signal.SIGKILL)
    assert AttemptEnd.NODE_LOST in audit(futures, lines)
    lost = [a for f in futures for a in f.story().attempts if a.end in LOSSES]
    assert {a.node for a in lost} == {node}
    assert all(a.cause for a in lost)
    until(lambda: lossy.alive() == 2, "the others know that it is dead")
    # What is submitted now goes to the others.
    assert set(lossy.cluster.map(lambda _: os.environ["KOS_NODE"], range(20))) <= {"node1", "node2", "node3"} - {node}


def test_two_nodes_are_killed_one_after_the_other(lossy: Mesh, lines: Lines):
    futures = started(lossy, lines)
    for node in ("node3", "node1"):
        os.kill(lossy.pid(node), signal.SIGKILL)
        before = len(lines.read())
        until(lambda: len(lines.read()) > before + 5 or all(f.done() for f in futures), "it goes on")  # noqa: B023
    assert audit(futures, lines) <= {AttemptEnd.NODE_LOST, AttemptEnd.RETURNED}


def test_a_node_is_killed_under_a_stream_and_each_item_comes_once(lossy: Mesh):
    def numbered(stop: int) -> Iterator[tuple[int, str]]:
        for number in range(stop):
            yield number, os.environ["KOS_NODE"]

    stream = lossy.cluster.submit(numbered, 500)
    taken = [next(stream)]
    os.kill(lossy.pid(taken[0][1]), signal.SIGKILL)
    taken.extend(stream)
    assert [number for number, _ in taken] == list(range(500))
    assert len({node for _, node in taken}) == 2
    assert [attempt.end for attempt in stream.future.story().attempts] == [AttemptEnd.NODE_LOST, AttemptEnd.DONE]


def test_a_worker_is_killed_in_the_middle_of_a_map(lossy: Mesh, lines: Lines, tmp_path: Path):
    futures = started(lossy, lines, 3, tmp_path / "go")
    *_, pid = lines.read()[-1]
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    assert AttemptEnd.WORKER_LOST in audit(futures, lines)
    (lost,) = [a for f in futures for a in f.story().attempts if a.end is AttemptEnd.WORKER_LOST]
    assert lost.cause.startswith("SIGKILL")
    assert lossy.alive() == 3


def test_a_fork_server_is_killed_in_the_middle_of_a_map(lossy: Mesh, lines: Lines, tmp_path: Path):
    (before,) = fork_servers(lossy, "node2")
    futures = started(lossy, lines, 3, tmp_path / "go")
    os.kill(before, signal.SIGKILL)
    until(lambda: fork_servers(lossy, "node2") not in ([], [before]), "there is a new fork server")
    (tmp_path / "go").touch()  # its workers are ended by now
    assert AttemptEnd.WORKER_LOST in audit(futures, lines)
    assert submitted(lossy, "node2", os.getenv, "KOS_NODE").result(FINAL_S) == "node2"
    (story,) = [s for f in futures if (s := f.story()) and s.attempts[0].end is AttemptEnd.WORKER_LOST]
    assert story.attempts[0].node == "node2"
    assert "fork server" in story.attempts[0].cause


def test_a_daemon_is_stopped_in_an_orderly_way_in_the_middle_of_a_map(lossy: Mesh, lines: Lines):
    futures = started(lossy, lines)
    stop(lossy, "node2")
    audit(futures, lines)


# ---- silence


def test_a_node_that_is_silent_for_seconds_is_replaced(lossy: Mesh, anew: None, lines: Lines):
    """Its workers went on meanwhile: their results come late, and change nothing."""
    pid = lossy.pid("node2")
    futures = lossy.cluster.map(hashed(lines, wait_s=1.0), map(str, FILES[:6])).futures
    until(lambda: any(row[2] == "node2" for row in lines.read()), "node2 works")
    stopped_s = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        assert AttemptEnd.NODE_LOST in audit(futures, lines)
        until(lambda: lossy.alive() == 2 and time.monotonic() - stopped_s >= 7, "node2 is taken for dead")
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: lossy.alive() == 3, "node2 is alive again")
    assert AttemptEnd.NODE_LOST in audit(futures, lines)
    assert lossy.pid("node2") == pid


def test_a_node_that_was_silent_works_again_for_the_same_client(lossy: Mesh, anew: None, lines: Lines):
    until(lambda: lossy.cluster.packages().get("node2"), "node2 has told all that it tells after its start")
    future = submitted(lossy, "node2", hashed(lines, wait_s=1.0), str(FILES[0]))
    until(lines.read, "it runs")
    pid = lossy.pid("node2")
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: future.story().attempts[-1].end is AttemptEnd.NODE_LOST, "node2 is given up")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert future.result(3) == DIGESTS[0]


def test_a_short_silence_loses_nothing(lossy: Mesh, lines: Lines):
    futures = started(lossy, lines)
    pid = lossy.pid("node2")
    os.kill(pid, signal.SIGSTOP)
    try:
        before = len(lines.read())
        until(lambda: len(lines.read()) > before + 20 or sum(f.done() for f in futures) > 100, "others go on")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert audit(futures, lines) == set()


# ---- at most once


def test_without_retries_a_lost_task_fails_with_node_and_cause_and_ran_once(lossy: Mesh, lines: Lines):
    future = submitted(lossy, "node2", hashed(lines, wait_s=60), str(FILES[0]), retries=0)
    until(lines.read, "it runs")
    os.kill(lossy.pid("node2"), signal.SIGKILL)
    with pytest.raises(errors.TaskLostError, match=f"{future.task} was lost with node node2 .1 attempt; .+") as caught:
        future.result(FINAL_S)
    assert f"kos story {future.task}" in str(caught.value)
    assert [row[:3] for row in lines.read()] == [(future.task, 1, "node2")]
    (attempt,) = future.story().attempts
    assert (attempt.node, attempt.end) == ("node2", AttemptEnd.NODE_LOST)


def test_without_retries_no_task_of_a_map_runs_twice(lossy: Mesh, lines: Lines):
    futures = started(lossy, lines, retries=0)
    os.kill(lossy.pid("node3"), signal.SIGKILL)
    lost = 0
    for future, digest in zip(futures, DIGESTS, strict=True):
        error = future.exception(FINAL_S)
        if error is None:
            assert future.result() == digest
        else:
            lost += 1
            assert isinstance(error, errors.TaskLostError)
            assert "node3" in str(error)
    assert 0 < lost < len(futures)
    assert set(Counter(row[0] for row in lines.read()).values()) == {1}
    assert {row[1] for row in lines.read()} == {1}


def test_a_stopped_daemon_gives_back_what_it_had_not_begun(lossy: Mesh, lines: Lines, tmp_path: Path):
    """Tasks that wait behind another client's work on a node that stops are done elsewhere, also without retries."""
    go = tmp_path / "go"
    blocker = lossy.program(
        f"""
        import time, pathlib, kos_cluster as kos
        def block(_):
            while not pathlib.Path({str(go)!r}).exists():
                time.sleep(0.01)
        cluster = kos.connect()
        futures = [cluster.submit(block, 0, on=f"node{{n}}") for n in (1, 3)]
        futures += [cluster.submit(block, 0, on="node2", retries=0)]
        cluster.gather(futures[:2])
        """
    )
    nodes = lossy.cluster.nodes
    until(lambda: [row["running"] for row in nodes()] == [1, 1, 1], "all slots are taken")
    futures = [lossy.cluster.submit(hashed(lines), str(path), retries=0) for path in FILES[:3]]
    until(lambda: [row["queued"] for row in nodes()] == [1, 1, 1], "one waits on each node")
    stop(lossy, "node2")
    assert not any(future.done() for future in futures), [future.exception(0) for future in futures if future.done()]
    go.touch()
    ends = audit(futures, lines)
    assert ends == {AttemptEnd.RETURNED}
    assert {row[1] for row in lines.read()} == {1}  # what had not begun is no further attempt
    _, complaints = blocker.communicate(timeout=FINAL_S)
    assert blocker.returncode == 0, complaints


# ---- afterwards


def test_a_node_that_is_started_again_takes_work_again(lossy: Mesh):
    before = lossy.pid("node2")
    os.kill(before, signal.SIGKILL)
    until(lambda: lossy.alive() == 2, "node2 is dead")
    lossy.heal()
    assert submitted(lossy, "node2", os.getenv, "KOS_NODE").result(FINAL_S) == "node2"
    assert lossy.pid("node2") != before
    assert set(lossy.cluster.map(lambda _: time.sleep(0.02) or os.environ["KOS_NODE"], range(60))) == {
        "node1",
        "node2",
        "node3",
    }


def test_kos_story_tells_every_attempt_after_a_loss_in_another_process(lossy: Mesh, lines: Lines):
    slow = hashed(lines, wait_s=1.0)
    future = lossy.cluster.map(slow, [str(FILES[0])]).futures[0]
    until(lines.read, "it runs")
    first = lines.read()[0][2]
    os.kill(lossy.pid(first), signal.SIGKILL)
    assert future.result(FINAL_S) == DIGESTS[0]
    second = lines.read()[-1][2]
    told = {}

    def story(*words: str) -> bool:
        """Whether the command tells the story; a node that it could not ask in time may be the one that knows."""
        command = [str(Path(sys.executable).with_name("kos")), "story", future.task, *words]
        environ = {**os.environ, "KOS_HOME": str(lossy.home.path)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        told[words] = done.stdout
        return done.returncode == 0

    until(lambda: story("--json"), "the story is told")
    (row,) = json.loads(told["--json",])
    assert [(a["number"], a["node"], a["end"]) for a in row["attempts"]] == [
        (1, first, "node-lost"),
        (2, second, "done"),
    ]
    until(story, "the story is told to people")
    assert first in told[()]
    assert second in told[()]
