"""The flagship: a notebook computes on a cluster of five; its coordinator and one more node are killed under it.

At that moment the notebook is attached to the coordinator, and tasks are queued, running, and finished but not
delivered there. Its futures complete all the same, each with one result, and what ran is what the stories tell.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from kos_cluster.core.records import AttemptEnd
from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home
from kos_cluster.net import wire
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.mesh import Mesh
from tests.e2e.conftest import Machine
from tests.e2e.fleet import until
from tests.kernel.kernels import Kernel

NODES = 5
TASKS = 4000
FINISHED = 2  # tasks that end at the coordinator while the notebook takes nothing
LARGE_BYTES = 2 << 20  # of a result that lies at the node until it is fetched, as no link's buffers hold it
FINAL_S = 60.0
STRIDE = 400  # tasks between two moments at which it may be stalled
# The notebook's cells. A task writes a line as it begins and one as it ends. While `hold` exists, those from the number
# on that stands in it do not end, but for one for each step of its node, whose result is large.
SET_UP = """
import json, os, time, kos_cluster as kos
def say(what):
    line = " ".join([what, *(os.environ[n] for n in ("KOS_TASK", "KOS_ATTEMPT", "KOS_NODE"))]) + "\\n"
    descriptor = os.open({lines!r}, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, line.encode())
    os.close(descriptor)
def is_held(number):
    try:
        with open({hold!r}) as file:
            return number >= int(file.read())
    except FileNotFoundError:
        return False
def may_end():
    step = {hold!r} + os.environ["KOS_NODE"]
    try:
        os.rename(step, step + ".taken")
        return True
    except FileNotFoundError:
        return False
def work(number):
    say("begin")
    size = 1
    while is_held(number):
        if may_end():
            size = {large}
            break
        time.sleep(0.01)
    say("end")
    return number, bytes(size)
cluster = kos.connect()
futures = cluster.map(work, range({tasks})).futures
settled = []
for future in futures:
    future.add_done_callback(lambda f: settled.append(f.task))
print(os.getpid())
"""
ATTACHED = """
print(cluster._mesh.ask(lambda: cluster._mesh._attachment.choose("").peer.name))
"""
RESULTS = "results = [future.result({final}) for future in futures]"
TOLD = """
print(json.dumps({
    "numbers": [number for number, _ in results],
    "settled": settled,
    "tasks": [f.task for f in futures],
    "stories": [[(a.number, a.node, a.end.value) for a in f.story().attempts] for f in futures],
}))
"""


@pytest.fixture
def five(machine: Machine) -> Iterator[tuple[Machine, Cluster]]:
    """An embedded cluster of five nodes, and a connection of the test's own to it."""
    machine.ok("up", "-n", str(NODES))
    mesh = Mesh(ClusterHome(Home(machine.home), EMBEDDED_NAME))
    mesh.start()
    cluster = Cluster(mesh)
    yield machine, cluster
    cluster.close()
    machine.ok("down")


@pytest.fixture
def notebook(five: tuple[Machine, Cluster]) -> Iterator[Kernel]:
    machine, _ = five
    kernel = Kernel({"KOS_HOME": str(machine.home)})
    yield kernel
    kernel.stop()


Row = tuple[str, int, str]  # task, attempt, node


class Lines:
    """What the tasks have written: (task, attempt, node) of each begin and each end, in their order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def read(self, what: str) -> list[Row]:
        rows = (line.split() for line in self.path.read_text().splitlines())
        return [(task, int(attempt), node) for kind, task, attempt, node in rows if kind == what]

    def at(self, node: str, what: str) -> set[Row]:
        return {row for row in self.read(what) if row[2] == node}

    def running_at(self, node: str) -> set[Row]:
        return self.at(node, "begin") - self.at(node, "end")


def test_a_notebooks_map_outlives_the_coordinator_and_one_more_node(
    five: tuple[Machine, Cluster], notebook: Kernel, tmp_path: Path
) -> None:
    machine, cluster = five
    until(lambda: len(cluster.status()["voters"]) == 3, "three nodes vote")
    lines, hold = Lines(tmp_path / "lines"), tmp_path / "hold"
    set_up = SET_UP.format(lines=str(lines.path), hold=str(hold), large=LARGE_BYTES, tasks=TASKS)
    hold_from(hold, STRIDE)
    pid = int(notebook.run(set_up).text())

    nodes = {row["name"]: row for row in cluster.nodes()}
    first, undelivered = Stalling(cluster, notebook, pid, nodes, lines, hold).all_kinds_at_the_coordinator()
    other = next(row["name"] for row in cluster.nodes() if row["voter"] is False)
    killed = [psutil.Process(nodes[name]["pid"]) for name in (first, other)]
    for process in killed:
        process.kill()
    psutil.wait_procs(killed, timeout=FINAL_S)
    hold.unlink()
    os.kill(pid, signal.SIGCONT)

    assert not notebook.run(RESULTS.format(final=FINAL_S), timeout=2 * FINAL_S).error
    told = json.loads(notebook.run(TOLD).text())
    assert told["numbers"] == list(range(TASKS))
    assert Counter(told["settled"]) == dict.fromkeys(told["tasks"], 1)
    lost = audit(told, lines)
    begun, ended = set(lines.read("begin")), set(lines.read("end"))
    at_first = {row for row in lost if row[2] == first}
    assert at_first - begun, "tasks that were queued at the coordinator were lost with it"
    assert at_first & begun - ended, "so were some that ran there"
    assert undelivered <= at_first & ended, "and those that were finished and not delivered"
    assert {task for task, *_ in undelivered} <= {task for task, attempt, _ in ended if attempt > 1}, "all ran again"
    assert {row for row in lost if row[2] == other}, "the other node took work with it, too"

    second = until(lambda: (now := cluster.status()["coordinator"]) not in (None, first) and now, "another coordinates")
    assert second not in (first, other)
    until(lambda: attached_to(notebook) == cluster.status()["coordinator"], "the notebook is attached to that one")
    assert machine.ok("cluster", "token", "--role", "client").startswith("KOS1.")
    task, *_ = next(iter(undelivered))
    # A node that could not be asked in time may be the one that knows.
    (story,) = until(lambda: json.loads(machine.kos("story", task, "--json").stdout or "[]"), "its story is told")
    attempts = [(a["number"], a["node"], a["end"]) for a in story["attempts"]]
    assert attempts == [tuple(attempt) for attempt in told["stories"][told["tasks"].index(task)]]


@dataclass(frozen=True)
class Stalling:
    """Stalls the notebook at the moment that the test is about."""

    cluster: Cluster
    notebook: Kernel
    pid: int
    nodes: Collection[str]
    lines: Lines
    hold: Path

    def all_kinds_at_the_coordinator(self) -> tuple[str, set[Row]]:
        """Stall it when it is attached to the coordinator, and this has tasks of it that are queued, running, and
        finished but not delivered; that node, and the latter."""
        for held_from in range(STRIDE, TASKS, STRIDE):
            until(lambda: all(self.lines.running_at(name) for name in self.nodes), "every node holds one")
            node = attached_to(self.notebook)
            os.kill(self.pid, signal.SIGSTOP)
            until(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED, "the notebook stands still")
            finished = self._finished_meanwhile(node)
            running, queued = self.lines.running_at(node), load(self.cluster, node).queued
            coordinates = self.cluster.status()["coordinator"] == node
            if len(finished) == FINISHED and running and queued and coordinates:
                return node, finished
            hold_from(self.hold, held_from + STRIDE)
            os.kill(self.pid, signal.SIGCONT)
            until(lambda: len(self.lines.read("end")) >= held_from, "it goes on")  # noqa: B023
        raise AssertionError("the coordinator never had tasks of all kinds; make more tasks")

    def _finished_meanwhile(self, node: str) -> set[Row]:
        """Let some end at the node, as many as it has up to `FINISHED`, and the next one begin."""
        before = self.lines.at(node, "end")
        for _ in range(FINISHED):
            until(lambda: self.lines.running_at(node) or is_idle(self.cluster, node), "one runs")
            running = self.lines.running_at(node)
            if running:
                Path(f"{self.hold}{node}").touch()
                until(lambda: running <= self.lines.at(node, "end"), "one ends")  # noqa: B023
        until(lambda: self.lines.running_at(node) or is_idle(self.cluster, node), "the next one runs")
        return self.lines.at(node, "end") - before


def attached_to(notebook: Kernel) -> str:
    """The node that the notebook asks what needs agreement."""
    return notebook.run(ATTACHED).text().strip()


def hold_from(hold: Path, number: int) -> None:
    written = hold.with_suffix(".written")
    written.write_text(str(number))
    written.replace(hold)


def is_idle(cluster: Cluster, node: str) -> bool:
    now = load(cluster, node)
    return now.queued == 0 and now.running == 0


def load(cluster: Cluster, node: str) -> Any:
    data = cluster._mesh.request(wire.Nodes(), wire.SyncData, node=node)
    (id_,) = (member.id for member in data.members or () if member.name == node)
    return data.loads[id_][0]


def audit(told: dict[str, Any], lines: Lines) -> set[Row]:
    """What ran is what the stories tell, and what they tell ran; the attempts that nodes took with them."""
    begun, ended = (Counter(lines.read(what)) for what in ("begin", "end"))
    assert set(begun.values()) == {1}, "one attempt ran twice"
    assert set(ended.values()) == {1}, "one attempt ended twice"
    attempts: dict[AttemptEnd, set[Row]] = {end: set() for end in AttemptEnd}
    for task, story in zip(told["tasks"], told["stories"], strict=True):
        assert [end for *_, end in story].count(AttemptEnd.DONE) == 1, story
        assert story[-1][2] == AttemptEnd.DONE, story
        for number, node, end in story:
            attempts[AttemptEnd(end)].add((task, number, node))
    done, lost = attempts[AttemptEnd.DONE], attempts[AttemptEnd.NODE_LOST] | attempts[AttemptEnd.RESULT_LOST]
    assert set(ended) <= set(begun) <= done | lost, "what ran is told"
    assert done <= set(ended), "what is told to be done ran to its end"
    return lost
