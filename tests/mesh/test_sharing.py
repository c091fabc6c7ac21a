"""How programs share real nodes: turns, priorities, work taken back from busy nodes."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from kos_cluster.core.ownerevents import Dispatch
from kos_cluster.core.records import AttemptEnd, JobSummary, count_of
from kos_cluster.core.roles import Role
from kos_cluster.errors import UsageError
from kos_cluster.home import EMBEDDED_NAME, ClusterHome
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.job import Job
from kos_cluster.tasks.mapresult import MapResult
from kos_cluster.tasks.mesh import Mesh as Connection
from kos_cluster.tasks.outgoing import Outgoing
from tests.kernel.clusters import add_user
from tests.mesh.conftest import Mesh, until

FLOOD = 4_000  # tasks of `FLOOD_TASK_S` each: minutes of all slots
FLOOD_TASK_S = 0.05
WAITING = 200_000  # tasks at one owner
GROWN_LIMIT_BYTES = 8 << 20  # of a node's daemon, however many they are: some 40 bytes of each of these


def told(mesh: Mesh, result: MapResult) -> JobSummary:
    return next(job for job in mesh.cluster.own_jobs() if job.job == result.job)


def done(mesh: Mesh, result: MapResult) -> int:
    return told(mesh, result).done


def test_a_single_task_of_another_program_waits_for_no_flood(mesh: Mesh):
    flood = mesh.cluster.map(time.sleep, [FLOOD_TASK_S] * FLOOD)
    first = iter(flood)
    next(first)
    program = mesh.program("import kos_cluster as kos; print(kos.connect().submit(pow, 2, 10).result(60))")
    out, err = program.communicate(timeout=60)
    assert out == "1024\n", err
    assert done(mesh, flood) < FLOOD / 2
    flood.cancel()


def test_a_single_task_waits_for_no_flood_of_short_ones_of_its_own_program(mesh: Mesh):
    """Whose batches wait ahead of time at all nodes."""
    flood = mesh.cluster.map(time.sleep, [0.002] * FLOOD)
    until(lambda: done(mesh, flood) >= 200, "short tasks are sent ahead", 60)
    assert mesh.cluster.submit(pow, 2, 10).result(60) == 1024
    assert done(mesh, flood) < FLOOD / 2
    flood.cancel()


URGENT = """
import time, kos_cluster as kos
cluster = kos.connect()
result = cluster.map(time.sleep, [0.05] * 4000, priority=3)
next(iter(result))
print("begun", flush=True)
while next(job for job in cluster.own_jobs() if job.job == result.job).done < 120:
    time.sleep(0.01)
print("done", flush=True)
result.cancel()
"""


def test_a_higher_priority_has_the_larger_share_beside_another_programs(mesh: Mesh):
    """The nodes decide it, though their tasks are too long to be sent ahead."""
    flood = mesh.cluster.map(time.sleep, [FLOOD_TASK_S] * FLOOD)
    program = mesh.program(URGENT)
    assert program.stdout is not None and program.stdout.readline() == "begun\n"
    before = done(mesh, flood)
    assert program.stdout.readline() == "done\n"
    assert 0 < done(mesh, flood) - before < 60
    flood.cancel()
    assert program.wait(60) == 0


ANOTHERS = """
import time, kos_cluster as kos
cluster = kos.connect()
result = cluster.map(time.sleep, [0.05] * 4000)
next(iter(result))
print("begun", flush=True)
while next(job for job in cluster.own_jobs() if job.job == result.job).done < 40:
    time.sleep(0.01)
print("done", flush=True)
result.cancel()
"""


def test_a_priority_takes_nothing_from_another_user_nor_do_many_jobs(mesh: Mesh, tmp_path: Path):
    """Users have equal shares, whatever their jobs' priorities say; this one's would have 64 times the other's."""
    add_user(mesh.home.path, Role.CLIENT, tmp_path)
    floods = [mesh.cluster.map(time.sleep, [FLOOD_TASK_S] * FLOOD, priority=6) for _ in range(3)]
    next(iter(floods[0]))
    program = mesh.program(ANOTHERS, home=tmp_path)
    assert program.stdout is not None and program.stdout.readline() == "begun\n"
    before = sum(done(mesh, flood) for flood in floods)
    assert program.stdout.readline() == "done\n"
    assert 0 < sum(done(mesh, flood) for flood in floods) - before < 100
    for flood in floods:
        flood.cancel()
    assert program.wait(60) == 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tasks each batch has that this process sends."""
    counts: list[int] = []

    def counted(outgoing: Outgoing, link: NodeLink, job: Job, dispatch: Dispatch, *more: Any) -> None:
        counts.append(count_of(dispatch.runs))
        send(outgoing, link, job, dispatch, *more)

    send = Outgoing.send
    monkeypatch.setattr(Outgoing, "send", counted)
    return counts


def test_separate_submits_travel_together(mesh: Mesh, sent: list[int]):
    count = 2_000
    futures = [mesh.cluster.submit(abs, -number) for number in range(count)]
    assert [future.result(60) for future in futures] == list(range(count))
    assert sum(sent) >= count and len(sent) < count / 10, f"{len(sent)} messages"


def test_short_tasks_of_a_map_travel_together_once_some_were_measured(mesh: Mesh, sent: list[int]):
    count = 2_000
    assert list(mesh.cluster.map(abs, range(-count, 0))) == list(range(count, 0, -1))
    assert sent[0] == 1, "nothing was known of them"
    assert sum(sent) >= count and len(sent) < count / 10, f"{len(sent)} messages"


def test_tasks_of_a_map_that_last_travel_alone(mesh: Mesh, sent: list[int]):
    """So that none waits behind another while a slot is free, and all slots end together."""
    count = 80
    assert list(mesh.cluster.map(time.sleep, [FLOOD_TASK_S] * count)) == [None] * count
    assert set(sent) == {1} and len(sent) >= count


def test_tasks_that_wait_at_their_owner_take_no_memory_of_the_nodes(mesh: Mesh):
    processes = [psutil.Process(mesh.pid(node)) for node in ("node1", "node2")]
    mesh.cluster.submit(abs, -1).result(60)
    before = [process.memory_info().rss for process in processes]
    flood = mesh.cluster.map(time.sleep, itertools.repeat(0.01, WAITING))
    until(lambda: done(mesh, flood) >= 200, "both nodes are busy with it", 60)
    grown = [process.memory_info().rss - size for process, size in zip(processes, before, strict=True)]
    assert told(mesh, flood).done < WAITING / 2
    flood.cancel()
    assert max(grown) < GROWN_LIMIT_BYTES


def test_a_higher_priority_has_the_larger_share(mesh: Mesh):
    jobs = [mesh.cluster.map(time.sleep, [0.02] * FLOOD, priority=priority) for priority in (0, 3)]
    next(iter(jobs[1]))
    until(lambda: done(mesh, jobs[1]) >= 160, "160 tasks of the higher priority", 60)
    low, high = (done(mesh, job) for job in jobs)
    for job in jobs:
        job.cancel()
    assert 0 < low < high / 2


def _noted(index: int, folder: str, lasts: int) -> int:
    """Note that it runs; the one of this index until a file is there."""
    with open(f"{folder}/{index}", "a") as file:
        file.write(os.environ["KOS_NODE"] + "\n")
    while index == lasts and not os.path.exists(f"{folder}/go"):
        time.sleep(0.005)
    return index


def _runs(folder: Path, count: int) -> list[list[str]]:
    """The nodes on which each task has run."""
    return [(folder / str(index)).read_text().split() for index in range(1_000, 1_000 + count)]


def test_a_task_that_lasts_holds_up_no_other_of_its_map(mesh: Mesh, tmp_path: Path):
    """Neither those that ended before it in its batch nor those behind it, which run elsewhere, each once."""
    count, lasts = 3_000, 1_500
    list(mesh.cluster.map(_noted, range(200), [str(tmp_path)] * 200, [-1] * 200))
    result = mesh.cluster.map(_noted, range(1_000, 1_000 + count), [str(tmp_path)] * count, [1_000 + lasts] * count)
    futures = result.futures
    others = [future for index, future in enumerate(futures) if index != lasts]
    until(lambda: all(future.done() for future in others), "all results but one", 60)
    assert not futures[lasts].done()
    (tmp_path / "go").touch()
    assert futures[lasts].result(60) == 1_000 + lasts
    ran = _runs(tmp_path, count)
    assert sum(map(len, ran)) == count + told(mesh, result).reruns  # of a node that was lost, should one be
    assert {node for nodes in ran for node in nodes} == {"node1", "node2"}


def _holds_a_slot(go: str, name: str) -> None:
    Path(go + name).touch()
    while not os.path.exists(go):
        time.sleep(0.01)


QUEUES = """
import time, kos_cluster as kos
cluster, slots = kos.connect(), SLOTS
futures = [cluster.submit(pow, 2, number) for number in range(slots + 4)]
while sum(job.running for job in cluster.own_jobs()) < slots:
    time.sleep(0.01)
print("sent", flush=True)
print([future.result(60) for future in futures])
"""


def test_a_new_connection_knows_before_its_first_task_which_nodes_are_busy(mesh: Mesh, tmp_path: Path):
    go = str(tmp_path / "go")
    slots = next(node["slots"] for node in mesh.cluster.nodes() if node["name"] == "node1")
    held = [mesh.cluster.submit(_holds_a_slot, go, f"-{n}", on="node1") for n in range(slots)]
    until(lambda: len(list(tmp_path.iterdir())) == slots, "all slots of node1 are taken")
    for _ in range(6):
        connection = Connection(ClusterHome(mesh.home, EMBEDDED_NAME))
        connection.start()
        with Cluster(connection) as cluster:
            assert cluster.submit(os.getenv, "KOS_NODE").result(60) == "node2"
    Path(go).touch()
    for future in held:
        future.result(60)


def test_what_waits_at_a_busy_node_goes_to_one_that_is_free_by_now(mesh: Mesh, tmp_path: Path):
    slots = {node["name"]: node["slots"] for node in mesh.cluster.nodes()}
    go = {name: str(tmp_path / name) for name in slots}
    held = {
        name: [mesh.cluster.submit(_holds_a_slot, go[name], f"-{n}", on=name) for n in range(slots[name])]
        for name in slots
    }
    until(lambda: len(list(tmp_path.iterdir())) == sum(slots.values()), "all slots are taken")
    program = mesh.program(QUEUES.replace("SLOTS", str(sum(slots.values()))))
    assert program.stdout is not None and program.stdout.readline() == "sent\n"
    Path(go["node2"]).touch()
    out, err = program.communicate(timeout=60)
    assert out == f"{[2**number for number in range(sum(slots.values()) + 4)]}\n", err
    assert not any(future.done() for future in held["node1"])
    Path(go["node1"]).touch()
    for future in (*held["node1"], *held["node2"]):
        future.result(60)


def test_what_ended_before_its_worker_died_does_not_run_again(mesh: Mesh, tmp_path: Path):
    count = 400
    list(mesh.cluster.map(_noted, range(200), [str(tmp_path)] * 200, [-1] * 200))
    result = mesh.cluster.map(_noted_then_killed, range(1_000, 1_000 + count), [str(tmp_path)] * count)
    assert list(result) == list(range(1_000, 1_000 + count))
    ran = _runs(tmp_path, count)
    assert len(ran[200]) == 2
    assert sum(map(len, ran)) == count + told(mesh, result).reruns


def _noted_then_killed(index: int, folder: str) -> int:
    if index == 1_200 and not os.path.exists(f"{folder}/killed"):
        Path(f"{folder}/killed").touch()
        _noted(index, folder, -1)
        os.kill(os.getpid(), signal.SIGKILL)
    return _noted(index, folder, -1)


def _straggles_at_first(index: int) -> int:
    while index == 5 and os.environ["KOS_ATTEMPT"] == "1":
        time.sleep(0.01)
    return index


def test_a_straggler_runs_a_second_time_and_its_story_tells_which_was_faster(mesh: Mesh):
    result = mesh.cluster.map(_straggles_at_first, range(20), speculate=True)
    futures = result.futures
    assert [future.result(60) for future in futures] == list(range(20))
    story = futures[5].story()
    assert story is not None
    first, second = (a for a in story.attempts if a.end is not AttemptEnd.RETURNED)
    assert (first.number, first.end, first.cause) == (1, AttemptEnd.CANCELLED, "attempt 2 was faster")
    assert (second.number, second.end) == (2, AttemptEnd.DONE) and second.node != first.node
    with pytest.raises(UsageError, match="a second time, and retries=0"):
        mesh.cluster.map(abs, [1], speculate=True, retries=0)


def test_what_links_carry_is_measured_from_blocks_that_move(mesh: Mesh):
    ref = mesh.cluster.put(bytes(8 << 20))
    other = next(name for name in ("node1", "node2") if name != ref.node_name)
    assert mesh.cluster.submit(len, ref, on=other).result(60) == 8 << 20
    views = [node.view for node in mesh.cluster._mesh._core._nodes.values()]
    (here,) = [view for view in views if view.name == other]
    until(lambda: here.links.get(ref.node, 0) > 1e6, "the rate of the link is known")


@pytest.mark.parametrize("priority", [11, -11, 1.5, "high", True])
def test_a_priority_that_is_none_is_refused(mesh: Mesh, priority: object):
    with pytest.raises(UsageError, match="is not a whole number from -10 to 10"):
        mesh.cluster.submit(abs, -1, priority=priority)
